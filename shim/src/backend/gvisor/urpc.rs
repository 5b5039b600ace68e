//! gVisor's RPC: one JSON object each way over a unix stream, descriptors beside the first byte. A compromised sandbox
//! owns the other end, so size, depth (serde_json's 128) and time are bounded.
//! Source: gVisor `pkg/urpc`.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// No reply we use is longer; a process list of 10,000 entries is about 2 MB.
const MAX_REPLY: usize = 4 << 20;
/// For calls that the sentry answers from memory.
pub const PROMPT: Duration = Duration::from_secs(10);

/// The sentry's words for a method that it does not have.
const UNKNOWN_METHOD: &str = "unknown method";
/// How its words begin where an argument cannot be decoded, before anything is done (Go's `encoding/json`).
pub const MISFIT: &str = "json: ";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket cannot be reached, or it closed: the sandbox is gone.
    #[error("the sandbox's control socket: {0}")]
    Gone(#[from] io::Error),
    /// The sandbox answered with an error.
    #[error("{0}")]
    Refused(String),
    /// This build has no such method, or it takes something else. Nothing was done.
    #[error("this build of runsc cannot {method}: {why}")]
    Unable {
        /// The method called.
        method: &'static str,
        /// The sandbox's words.
        why: String,
    },
    /// The answer is not what the method answers.
    #[error("the sandbox's answer to {method} makes no sense: {why}")]
    Nonsense {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No answer in time.
    #[error("the sandbox did not answer {0} in time")]
    Silent(&'static str),
}

#[derive(Serialize)]
struct Request<'a, A> {
    method: &'a str,
    arg: A,
}

#[derive(serde::Deserialize)]
struct Reply {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    result: serde_json::Value,
}

/// Calls one method; `patience` of `None` waits as long as the sandbox lives (`Wait`).
pub async fn call<A: Serialize, R: DeserializeOwned>(
    socket: &Path,
    method: &'static str,
    arg: A,
    fds: &[BorrowedFd<'_>],
    patience: Option<Duration>,
) -> Result<R, CallError> {
    let request = serde_json::to_vec(&Request { method, arg })
        .map_err(|error| CallError::Nonsense { method, why: error.to_string() })?;
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        send(&mut stream, &request, fds).await?;
        receive(&mut stream, method).await
    };
    let bytes = match patience {
        Some(patience) => tokio::time::timeout(patience, exchange).await.map_err(|_| CallError::Silent(method))??,
        None => exchange.await?,
    };
    parse(method, &bytes)
}

async fn send(stream: &mut UnixStream, request: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &control[..] };
    stream.writable().await?;
    let sent = stream.async_io(Interest::WRITABLE, || {
        let first = [IoSlice::new(&request[..1])];
        sendmsg::<()>(stream.as_raw_fd(), &first, control, MsgFlags::MSG_NOSIGNAL, None).map_err(io::Error::from)
    });
    sent.await?;
    stream.write_all(&request[1..]).await
}

/// Reads until the bytes are one whole JSON value: the sentry keeps the connection open for more calls.
async fn receive(stream: &mut UnixStream, method: &'static str) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    let mut end = Scanner::default();
    loop {
        let from = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(length) = end.feed(from, &bytes[from..]) {
            bytes.truncate(length);
            return Ok(bytes);
        }
        if bytes.len() > MAX_REPLY {
            return Err(CallError::Nonsense { method, why: format!("it is longer than {MAX_REPLY} bytes") });
        }
    }
}

/// Finds the end of the first JSON object without parsing it again for each chunk.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    fn feed(&mut self, offset: usize, chunk: &[u8]) -> Option<usize> {
        for (at, byte) in chunk.iter().enumerate() {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(offset + at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Decodes a reply; pure, so that it can be fuzzed and fed with recordings.
pub fn parse<R: DeserializeOwned>(method: &'static str, bytes: &[u8]) -> Result<R, CallError> {
    let nonsense = |error: serde_json::Error| CallError::Nonsense { method, why: error.to_string() };
    let reply: Reply = serde_json::from_slice(bytes).map_err(nonsense)?;
    if !reply.success {
        let unable = reply.err == UNKNOWN_METHOD || reply.err.starts_with(MISFIT);
        return Err(if unable { CallError::Unable { method, why: reply.err } } else { CallError::Refused(reply.err) });
    }
    serde_json::from_value(reply.result).map_err(nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_refusals_are_told_apart() {
        // Written after the source (callResult in pkg/urpc), not yet recordings.
        assert_eq!(parse::<i32>("m", br#"{"success":true,"err":"","result":2}"#).unwrap(), 2);
        parse::<serde_json::Value>("m", br#"{"success":true,"err":"","result":{}}"#).unwrap();
        let refused = parse::<i32>("m", br#"{"success":false,"err":"no such container","result":null}"#);
        assert!(matches!(refused, Err(CallError::Refused(why)) if why == "no such container"));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for bytes in
            [&b""[..], b"{", b"null", b"[]", b"\xff\xfe{}", br#"{"success":1}"#, br#"{"success":true,"result":"x"}"#]
        {
            assert!(parse::<i32>("m", bytes).is_err(), "{bytes:?}");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(parse::<serde_json::Value>("m", &deep).is_err());
    }

    #[test]
    fn the_end_of_a_reply_is_found_across_chunks() {
        let reply = br#"{"err":"a } in \" a string","result":{"x":[1]}}"#;
        for split in 0..reply.len() {
            let mut scanner = Scanner::default();
            let end = scanner.feed(0, &reply[..split]).or_else(|| scanner.feed(split, &reply[split..]));
            assert_eq!(end, Some(reply.len()), "split at {split}");
        }
    }
}
