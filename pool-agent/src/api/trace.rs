//! A request that is part of a trace: its caller's `traceparent` is taken on, stands on every line that is logged for it, and the caller
//! is told by which span. Source: W3C Trace Context, levels 1 (`traceparent`) and 2 (`traceresponse`).

use axum::http::{HeaderMap, HeaderValue, Method};
use tracing::Span;

/// A trace, as a caller tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl Parent {
    /// `00-TRACE-SPAN-FLAGS`, in lower-case hexadecimal digits; of a later version what this one has, too.
    fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str, length: usize| {
            let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            (text.len() == length && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok())?
        };
        let mut parts = text.split('-');
        let version = digits(parts.next()?, 2)?;
        let (trace, span) = (digits(parts.next()?, 32)?, digits(parts.next()?, 16)?);
        let flags = digits(parts.next()?, 2)?;
        let is_whole = version != 0xff && (version > 0 || parts.next().is_none());
        let parent = Self { trace, span: span.try_into().ok()?, flags: flags.try_into().ok()? };
        (is_whole && trace != 0 && span != 0).then_some(parent)
    }
}

/// The span of a request that is part of a trace, and what its caller is told of it.
pub fn begin(method: &Method, path: &str, headers: &HeaderMap) -> Option<(Span, HeaderValue)> {
    let mut all = headers.get_all("traceparent").iter();
    let parent = Parent::parse(all.next()?.to_str().ok()?).filter(|_| all.next().is_none())?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).ok()?;
    let (trace, span) = (format!("{:032x}", parent.trace), format!("{:016x}", u64::from_ne_bytes(random).max(1)));
    // Of the flags those that we know: whether it is recorded.
    let told = HeaderValue::try_from(format!("00-{trace}-{span}-{:02x}", parent.flags & 1)).ok()?;
    let parent = format!("{:016x}", parent.span);
    Some((tracing::info_span!("request", trace_id = trace, span_id = span, parent_id = parent, %method, path), told))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_is_read_as_the_standard_has_it() {
        for (text, read) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(Parent::parse(text).is_some(), read, "{text:?}");
        }
    }

    #[test]
    fn the_caller_is_told_a_span_of_its_own_in_its_trace() {
        let begin = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", HeaderValue::from_str(value).unwrap());
            }
            begin(&Method::GET, "/health", &headers).map(|(_, told)| told.to_str().unwrap().to_owned())
        };
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-ff");
        let (one, other) = (begin(&[&parent]).unwrap(), begin(&[&parent]).unwrap());
        assert!(one.starts_with(&format!("00-{TRACE}-")) && one.ends_with("-01") && one.len() == 55, "{one}");
        assert!(one != other && !one.contains("00f067aa0ba902b7"));
        assert_eq!((begin(&[]), begin(&["nonsense"]), begin(&[&parent, &parent])), (None, None, None));
    }
}
