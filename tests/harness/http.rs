//! HTTP/1.1 to the node agent by hand, over TCP and over its socket: also what no client would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::network::Network;

/// What was answered.
pub struct Answer {
    /// The status; 0 where the connection ended without an answer.
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let body = bytes.get(end + 4..).unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = if head.contains("transfer-encoding: chunked") { dechunked(body) } else { body.to_vec() };
        Self { status, head, body }
    }

    /// The body as JSON; `null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()))
    }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap().trim(), 16).unwrap();
        let from = end + 2;
        if length == 0 || bytes.len() < from + length {
            break;
        }
        whole.extend_from_slice(&bytes[from..from + length]);
        bytes = bytes.get(from + length + 2..).unwrap_or_default();
    }
    whole
}

/// A question as text. `headers` end in a line break each.
pub fn question(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: creto\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// Sends bytes over TCP and gives what comes. The other end may hang up before it has read all.
pub fn over_tcp(network: &Network, bytes: &[u8]) -> Answer {
    network.host.inside(|| exchange(TcpStream::connect("127.0.0.1:8080").unwrap(), bytes))
}

/// The same over the socket, as the operator.
pub fn over_socket(network: &Network, bytes: &[u8]) -> Answer {
    exchange(UnixStream::connect(network.node.path("creto/run/pool-agent.sock")).unwrap(), bytes)
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Answer {
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Answer::parse(&answer)
}
