//! Cleartext HTTP/1 from a client, followed request by request: each goes to the host that the flow is for, or not on.
//!
//! One connection carries any number of requests, each with a Host of its own, so the first alone proves nothing. Bodies are
//! measured, not kept. What servers are known to read in different ways (two lengths, folded lines, bare line feeds in chunk sizes)
//! is refused. Source: RFC 9110 §7, RFC 9112. Not here: what servers answer, except for the `101` that ends HTTP.

use httparse::{EMPTY_HEADER, Header, Request, Status};

use super::refusal::Refusal;
use super::sniff::{MAX_HEAD, Malformed};
use crate::policy::Fqdn;

/// The most fields in a head, or in a trailer.
const MAX_FIELDS: usize = 128;
/// The longest line with a chunk's size, in bytes.
const MAX_CHUNK_LINE: usize = 1024;
/// How a server says that what follows is not HTTP any more.
const SWITCHED: &[u8] = b"HTTP/1.1 101";

/// The requests of one connection.
#[derive(Debug)]
pub struct Requests {
    name: Fqdn,
    port: u16,
    at: At,
    is_first: bool,
}

/// Where in the stream it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At a head.
    Head,
    /// In a body, with so many bytes to go.
    Body(u64),
    /// At a chunk's size.
    ChunkSize,
    /// In a chunk, with so many bytes to go.
    Chunk(u64),
    /// At the end of a chunk.
    ChunkEnd,
    /// At the fields after the last chunk.
    Trailer,
    /// After a request to speak something else, which the server has not answered.
    Switching,
    /// HTTP has ended: anything may come.
    Switched,
}

/// What matters of a head.
struct Head {
    length: usize,
    body: At,
    switches: bool,
}

impl Requests {
    /// None seen yet. All are to go to this host and port.
    pub fn to(name: Fqdn, port: u16) -> Self {
        Self { name, port, at: At::Head, is_first: true }
    }

    /// How many of these bytes may go on now, which are then behind us; the rest is to be shown again, with more behind it.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.step(&bytes[passed..])? {
                0 => break,
                step => passed += step,
            }
        }
        Ok(passed)
    }

    /// Whether nothing passes until the server has answered: show its bytes to `answered`.
    pub fn awaits_answer(&self) -> bool {
        self.at == At::Switching
    }

    /// Whether HTTP has ended, and all passes.
    pub fn have_ended(&self) -> bool {
        self.at == At::Switched
    }

    /// All that the server has answered so far. Returns false as long as that does not tell whether it switches.
    pub fn answered(&mut self, bytes: &[u8]) -> bool {
        let told = bytes.len() >= SWITCHED.len() || !SWITCHED.starts_with(bytes);
        if told {
            self.at = if bytes.starts_with(SWITCHED) { At::Switched } else { At::Head };
        }
        told
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let take = |left: u64| left.min(bytes.len() as u64);
        let (step, next) = match self.at {
            At::Switching => (0, At::Switching),
            At::Switched => (bytes.len(), At::Switched),
            At::Head => match self.head(bytes)? {
                None => (0, At::Head),
                Some(head) => {
                    // Only as the first request: of later ones nobody here knows which answer is theirs.
                    let switches = head.switches && self.is_first && head.body == At::Head;
                    self.is_first = false;
                    (head.length, if switches { At::Switching } else { head.body })
                }
            },
            At::Body(left) => match take(left) {
                all if all == left => (all as usize, At::Head),
                some => (some as usize, At::Body(left - some)),
            },
            At::Chunk(left) => match take(left) {
                all if all == left => (all as usize, At::ChunkEnd),
                some => (some as usize, At::Chunk(left - some)),
            },
            At::ChunkSize => match chunk_size(bytes)? {
                None => (0, At::ChunkSize),
                Some((length, 0)) => (length, At::Trailer),
                Some((length, size)) => (length, At::Chunk(size)),
            },
            At::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => (2, At::ChunkSize),
                [b'\r'] => (0, At::ChunkEnd),
                _ => return Err(Malformed("a chunk that is longer than it says").into()),
            },
            At::Trailer => match trailer(bytes)? {
                None => (0, At::Trailer),
                Some(length) => (length, At::Head),
            },
        };
        self.at = next;
        Ok(step)
    }

    /// Reads a head and holds it to the name; `None` as long as it is not complete.
    fn head(&self, bytes: &[u8]) -> Result<Option<Head>, Refusal> {
        let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut request = Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if bytes.len() == MAX_HEAD => return Err(Malformed("a head that is too long").into()),
            Ok(Status::Partial) => return Ok(None),
            Err(httparse::Error::Version) => return Err(Refusal::HttpVersion),
            Err(_) => return Err(Malformed("a head that does not follow RFC 9112").into()),
        };
        let method = request.method.unwrap_or_default();
        let target = request.path.unwrap_or_default();
        let mut hosts = values(request.headers, "host");
        let host = hosts.next().ok_or(Refusal::NoHost)??;
        if hosts.next().is_some() {
            return Err(Malformed("more than one Host").into());
        }
        self.compare(host)?;
        match target.as_bytes() {
            _ if method.eq_ignore_ascii_case("CONNECT") => return Err(Refusal::Host(target.to_owned())),
            [b'/', ..] | b"*" => {}
            // In this form the server goes by it and not by Host (RFC 9112 §3.2.2).
            _ => self.compare(authority(target).ok_or(Malformed("a request target of no known form"))?)?,
        }
        let upgrades = values(request.headers, "upgrade").collect::<Result<Vec<_>, _>>()?;
        if upgrades.iter().any(|protocols| protocols.to_ascii_lowercase().contains("h2c")) {
            return Err(Refusal::HttpVersion);
        }
        let body = body(request.headers, request.version == Some(1))?;
        Ok(Some(Head { length, body, switches: !upgrades.is_empty() }))
    }

    /// Whether a host, with a port or without, is the one that the flow is for.
    fn compare(&self, authority: &str) -> Result<(), Refusal> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port).filter(|port| !port.is_empty())),
            None => (authority, None),
        };
        let same_port =
            port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse() == Ok(self.port));
        match host.is_ascii() && same_port && Fqdn::parse(host).is_ok_and(|host| host == self.name) {
            true => Ok(()),
            false => Err(Refusal::Host(authority.to_owned())),
        }
    }
}

/// The values of a field, in the order of their lines.
fn values<'h>(fields: &'h [Header<'h>], name: &'static str) -> impl Iterator<Item = Result<&'h str, Malformed>> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| {
        str::from_utf8(field.value).map(str::trim_ascii).map_err(|_| Malformed("a field that is not text"))
    })
}

/// The authority of a target in absolute form.
fn authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let is_scheme = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    (is_scheme && !authority.contains(['@', '\\'])).then_some(authority)
}

/// What follows a head (RFC 9112 §6.3).
fn body(fields: &[Header<'_>], is_1_1: bool) -> Result<At, Malformed> {
    let mut lengths = values(fields, "content-length");
    let mut codings = values(fields, "transfer-encoding");
    match (lengths.next().transpose()?, codings.next().transpose()?) {
        _ if lengths.next().is_some() || codings.next().is_some() => Err(Malformed("more than one length of a body")),
        (None, None) => Ok(At::Head),
        (Some(length), None) => match length.parse() {
            Ok(0) => Ok(At::Head),
            Ok(bytes) if length.bytes().all(|byte| byte.is_ascii_digit()) => Ok(At::Body(bytes)),
            _ => Err(Malformed("a Content-Length that is no number")),
        },
        (None, Some(coding)) if is_1_1 && coding.eq_ignore_ascii_case("chunked") => Ok(At::ChunkSize),
        _ => Err(Malformed("a body whose end is not told in one way")),
    }
}

/// The length of a line with a chunk's size, and the size; `None` as long as it is not complete.
fn chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, Malformed> {
    let bad = Malformed("a chunk size that does not follow RFC 9112");
    let line = &bytes[..bytes.len().min(MAX_CHUNK_LINE)];
    if !line.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(bad);
    }
    match httparse::parse_chunk_size(line).map_err(|_| bad)? {
        Status::Partial if line.len() == MAX_CHUNK_LINE => Err(bad),
        Status::Partial => Ok(None),
        // A bare line feed in an extension ends the line for some servers.
        Status::Complete((length, _)) if line[..length - 2].iter().any(u8::is_ascii_control) => Err(bad),
        Status::Complete(told) => Ok(Some(told)),
    }
}

/// The length of what follows the last chunk; `None` as long as it is not complete.
fn trailer(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let bad = Malformed("a trailer that does not follow RFC 9112");
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut fields).map_err(|_| bad)? {
        Status::Complete((length, _)) => Ok(Some(length)),
        Status::Partial if bytes.len() == MAX_HEAD => Err(bad),
        Status::Partial => Ok(None),
    }
}

#[cfg(test)]
mod tests;
