//! A request that is part of a trace: its caller's `traceparent` is taken on, stands on every line that is logged for it, and the caller
//! is told by which span. Where spans are exported, all requests have one. Source: W3C Trace Context, levels 1 (`traceparent`) and 2
//! (`traceresponse`).

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
use tracing::field::{self, Empty};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::telemetry;
use crate::telemetry::spans::{ROUTE, STATUS};

/// So much of a path is told, in bytes: a stranger writes it.
const PATH: usize = 256;

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

impl Parent {
    /// Of a request that has one, and only one.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all("traceparent").iter();
        Self::parse(all.next()?.to_str().ok()?).filter(|_| all.next().is_none())
    }

    fn context(self) -> SpanContext {
        let flags = TraceFlags::new(self.flags) & TraceFlags::SAMPLED; // of the flags those that we know
        SpanContext::new(self.trace.into(), self.span.into(), flags, true, TraceState::NONE)
    }
}

/// A request that is part of a trace: its caller's, or one that is exported and begins here.
pub struct Traced {
    span: Span,
    /// What its caller is told of it.
    told: Option<HeaderValue>,
}

/// The span of a request; none where it is in nobody's trace.
pub fn begin(method: &Method, path: &str, headers: &HeaderMap) -> Option<Traced> {
    let parent = Parent::of(headers);
    if parent.is_none() && !telemetry::exports() {
        return None;
    }
    let path = path.get(..path.floor_char_boundary(PATH)).unwrap_or_default();
    let span = tracing::info_span!("request", trace_id = Empty, span_id = Empty, parent_id = Empty, %method, path);
    if let Some(parent) = parent {
        // Refused where spans are not exported.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent.context()));
    }
    let mut own = span.context().span().span_context().clone();
    if let (false, Some(parent)) = (own.is_valid(), parent) {
        let mut random = [0; 8];
        getrandom::fill(&mut random).ok()?;
        let (id, parent) = (u64::from_ne_bytes(random).max(1), parent.context());
        own = SpanContext::new(parent.trace_id(), id.into(), parent.trace_flags(), false, TraceState::NONE);
    }
    if own.is_valid() {
        span.record("trace_id", field::display(own.trace_id()));
        span.record("span_id", field::display(own.span_id()));
    }
    let told = parent.and_then(|parent| {
        span.record("parent_id", field::display(parent.context().span_id()));
        let (trace, span, flags) = (own.trace_id(), own.span_id(), own.trace_flags().to_u8());
        HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}")).ok()
    });
    Some(Traced { span, told })
}

impl Traced {
    /// The answer, made within the span.
    pub async fn answer<E>(self, answered: impl Future<Output = Result<Response, E>>) -> Result<Response, E> {
        let Self { span, told } = self;
        let mut response = answered.instrument(span.clone()).await?;
        span.set_attribute(STATUS, i64::from(response.status().as_u16()));
        if let Some(told) = told {
            response.headers_mut().insert("traceresponse", told);
        }
        Ok(response)
    }
}

/// For a request that has found its route: its span is called by that.
pub async fn routed(path: MatchedPath, request: Request, next: Next) -> Response {
    Span::current().set_attribute(ROUTE, path.as_str().to_owned());
    next.run(request).await
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
            begin(&Method::GET, "/health", &headers).map(|traced| traced.told.unwrap().to_str().unwrap().to_owned())
        };
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-ff");
        let (one, other) = (begin(&[&parent]).unwrap(), begin(&[&parent]).unwrap());
        assert!(one.starts_with(&format!("00-{TRACE}-")) && one.ends_with("-01") && one.len() == 55, "{one}");
        assert!(one != other && !one.contains("00f067aa0ba902b7"));
        assert_eq!((begin(&[]), begin(&["nonsense"]), begin(&[&parent, &parent])), (None, None, None));
    }
}
