//! What a client speaks, by its first bytes: TLS, cleartext HTTP, or something in which no name of a host is expected.
//!
//! Pure and incremental: told all bytes so far. An answer is final: more bytes never change it. Whatever a forgiving server
//! might take for HTTP or TLS is called that here, for only as such is it compared with the name; the strict reading of it then refuses
//! what it finds odd. Not here: whether the name is the right one (`filter`).

use super::hello::{self, Hello};

/// The longest ClientHello or head of an HTTP request, in bytes, with what wraps it.
pub const MAX_HEAD: usize = 32 * 1024;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Not yet to be told. Once there are any, they look like the beginning of TLS or HTTP.
    NeedMore,
    /// TLS, and the whole ClientHello.
    Tls(Hello),
    /// Cleartext HTTP; its head may not be complete yet.
    Http,
    /// Neither.
    Opaque,
    /// TLS or HTTP, but not as its specification has it.
    Malformed(Malformed),
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Tells it.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let sniffed = match head {
        [] => Sniffed::NeedMore,
        // A record of TLS: its type, and the major version that all of TLS has. Any type: some servers pass over an alert
        // or a change_cipher_spec before the ClientHello.
        [20..=24] => Sniffed::NeedMore,
        [20..=24, 3, ..] => match hello::read(head, MAX_HEAD) {
            Ok(Some(hello)) => Sniffed::Tls(hello),
            Ok(None) => Sniffed::NeedMore,
            Err(malformed) => Sniffed::Malformed(malformed),
        },
        _ => request_line(head),
    };
    match sniffed {
        Sniffed::NeedMore if head.len() == MAX_HEAD => Sniffed::Malformed(Malformed("a beginning that has no end")),
        sniffed => sniffed,
    }
}

/// HTTP has a method, white space and `HTTP/` in its first line that is not empty (RFC 9112 §2.2, §3).
fn request_line(bytes: &[u8]) -> Sniffed {
    let is_blank = |byte: &u8| matches!(byte, b'\r' | b'\n' | b' ' | b'\t');
    let Some(start) = bytes.iter().position(|byte| !is_blank(byte)) else { return Sniffed::NeedMore };
    let line = &bytes[start..];
    let (line, ended) = match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&line[..end], true),
        None => (line, false),
    };
    let method = line.iter().position(|byte| !is_token(*byte));
    match method {
        Some(at) if !matches!(line[at], b' ' | b'\t') => Sniffed::Opaque,
        Some(_) if line.windows(5).any(|part| part.eq_ignore_ascii_case(b"HTTP/")) => Sniffed::Http,
        _ if ended => Sniffed::Opaque,
        _ => Sniffed::NeedMore,
    }
}

/// Whether a byte may stand in a method (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
pub(super) mod tests;
