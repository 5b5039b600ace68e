//! A TLS ClientHello as it comes: spread over records, and records over segments. What it says of the name, and no more.
//!
//! Source: RFC 8446 §4.1.2 and §5.1 (hello, records), RFC 6066 §3 (server_name), RFC 9849 §5 (encrypted_client_hello).

use tls_parser::{SNIType, TlsExtension, parse_tls_extension_sni_hostname, parse_tls_extension_unknown};

use super::sniff::Malformed;

/// The content type of the only record that a ClientHello comes in.
const HANDSHAKE: u8 = 22;
/// The most that a plaintext record holds, in bytes.
const MAX_RECORD: usize = 1 << 14;
/// A record's header; a handshake message's header.
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// Types of extensions.
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

/// What a ClientHello says of where it wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name in it, as it was sent.
    pub server_name: Option<String>,
    /// Whether another one may be hidden in it: it has an `encrypted_client_hello`, real or for show, which nobody on the
    /// way can tell apart, or the `encrypted_server_name` of its drafts.
    pub encrypted: bool,
}

/// Reads one from the beginning of a connection; `None` as long as it is not complete. `max` bounds its length, in bytes.
///
/// Nothing may stand beside it in its records, and no other record before or between them: what a server would make of that
/// is the server's affair, so none is let through.
pub fn read(bytes: &[u8], max: usize) -> Result<Option<Hello>, Malformed> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some((&record_type, after)) = rest.split_first() {
            let major = after.first().copied().unwrap_or(3);
            if record_type != HANDSHAKE || major != 3 {
                return Err(Malformed("no TLS handshake record where one was due"));
            }
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err(Malformed("a TLS record of a length that none has"));
        }
        let end = message.len() + length;
        let here = after.len().min(length);
        message.extend_from_slice(&after[..here]);
        if message.first().is_some_and(|first| *first != CLIENT_HELLO) {
            return Err(Malformed("a TLS message other than ClientHello at the beginning"));
        }
        if let Some(&[_, a, b, c]) = message.first_chunk::<MESSAGE_HEADER>() {
            let whole = MESSAGE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
            if whole > max {
                return Err(Malformed("a ClientHello that is too long"));
            }
            if end > whole {
                return Err(Malformed("something beside the ClientHello in its records"));
            }
            if message.len() == whole {
                return parse(&message[MESSAGE_HEADER..]).map(Some);
            }
        }
        if here < length {
            return Ok(None);
        }
        rest = &after[length..];
    }
}

/// Reads the body of a ClientHello. Only the extensions that matter are looked into, so that one which is news to the parser
/// is not taken for an error, and never hides those behind it.
fn parse(body: &[u8]) -> Result<Hello, Malformed> {
    let bad = Malformed("a ClientHello that does not follow RFC 8446");
    let (rest, contents) = tls_parser::parse_tls_handshake_client_hello(body).map_err(|_| bad)?;
    if !rest.is_empty() {
        return Err(bad);
    }
    let mut hello = Hello { server_name: None, encrypted: false };
    let mut extensions = contents.ext.unwrap_or_default();
    while !extensions.is_empty() {
        let Ok((rest, TlsExtension::Unknown(kind, data))) = parse_tls_extension_unknown(extensions) else {
            return Err(bad);
        };
        extensions = rest;
        match kind.0 {
            SERVER_NAME if hello.server_name.is_some() => return Err(Malformed("more than one server_name")),
            SERVER_NAME => hello.server_name = Some(server_name(data)?),
            ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// The one name in a `server_name` extension.
fn server_name(data: &[u8]) -> Result<String, Malformed> {
    let bad = Malformed("a server_name that does not follow RFC 6066");
    let (length, list) = data.split_first_chunk::<2>().ok_or(bad)?;
    if usize::from(u16::from_be_bytes(*length)) != list.len() {
        return Err(bad);
    }
    let (rest, (kind, name)) = parse_tls_extension_sni_hostname(list).map_err(|_| bad)?;
    if !rest.is_empty() {
        return Err(Malformed("more than one name in server_name"));
    }
    if kind != SNIType::HostName || !name.is_ascii() {
        return Err(bad);
    }
    String::from_utf8(name.to_vec()).map_err(|_| bad)
}
