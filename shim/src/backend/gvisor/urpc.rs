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

/// So much of what a sandbox says is passed on: into logs, and into answers that containerd takes only up to 4 MiB.
const MAX_WORDS: usize = 2048;
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
    let request = encode(method, arg)?;
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

/// A request as it goes over the wire; pure, as `parse` is.
pub fn encode<A: Serialize>(method: &'static str, arg: A) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(&Request { method, arg }).map_err(|error| CallError::Nonsense { method, why: error.to_string() })
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
        let room = (MAX_REPLY + 1 - from) as u64; // a vector that doubles would take more
        if (&mut *stream).take(room).read_buf(&mut bytes).await? == 0 {
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

/// The end of the first JSON object in a stream that comes in these pieces.
#[cfg(any(test, feature = "fuzzing"))]
pub fn end(pieces: &[&[u8]]) -> Option<usize> {
    let (mut scanner, mut at) = (Scanner::default(), 0);
    pieces.iter().find_map(|piece| {
        let end = scanner.feed(at, piece);
        at += piece.len();
        end
    })
}

/// Decodes a reply; pure, so that it can be fuzzed and fed with recordings.
pub fn parse<R: DeserializeOwned>(method: &'static str, bytes: &[u8]) -> Result<R, CallError> {
    let nonsense = |error: serde_json::Error| CallError::Nonsense { method, why: words(error.to_string()) };
    let reply: Reply = serde_json::from_slice(bytes).map_err(nonsense)?;
    if !reply.success {
        let why = words(reply.err);
        let unable = why == UNKNOWN_METHOD || why.starts_with(MISFIT);
        return Err(if unable { CallError::Unable { method, why } } else { CallError::Refused(why) });
    }
    serde_json::from_value(reply.result).map_err(nonsense)
}

fn words(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_WORDS));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn results_refusals_and_what_a_build_cannot_are_told_apart() {
        // Of each a line; what real builds answer to each of our calls is recorded, and read by `control`'s tests.
        assert_eq!(parse::<i32>("m", br#"{"success":true,"err":"","result":2}"#).unwrap(), 2);
        let failed = |why: &str| parse::<i32>("m", json!({"success": false, "err": why}).to_string().as_bytes());
        assert!(matches!(failed("no such container"), Err(CallError::Refused(why)) if why == "no such container"));
        for why in ["unknown method", "json: cannot unmarshal bool into Go value of type string"] {
            assert!(matches!(failed(why), Err(CallError::Unable { .. })), "{why}");
        }
        assert!(matches!(failed("an unknown method of a program"), Err(CallError::Refused(_))));
    }

    #[test]
    fn a_sandbox_s_flood_of_words_goes_no_further() {
        let long = "ö".repeat(1 << 20);
        for reply in [json!({"success": false, "err": long}), json!({"success": true, "result": long})] {
            let error = parse::<i32>("m", reply.to_string().as_bytes()).unwrap_err().to_string();
            assert!((1000..2 * MAX_WORDS).contains(&error.len()), "{} bytes", error.len());
        }
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

    /// Talks to a sandbox that has fallen into a stranger's hands; also how many bytes the stranger could send.
    async fn hostile(
        patience: Duration,
        answer: impl FnOnce(&mut StdStream) -> usize + Send + 'static,
    ) -> (Result<Value, CallError>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let stranger = std::thread::spawn(move || answer(&mut listener.accept().unwrap().0));
        let said = call(&socket, "m", json!({}), &[], Some(patience)).await;
        (said, stranger.join().unwrap())
    }

    /// Writes the same until nobody takes it any more.
    fn endless(chunk: Vec<u8>) -> impl FnOnce(&mut StdStream) -> usize {
        move |stream| {
            let mut sent = 0;
            while let Ok(n) = stream.write(&chunk) {
                sent += n;
            }
            sent
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_hostile_sandbox_gets_an_error_out_of_us_within_bounds_and_nothing_else() {
        const BUFFERS: usize = 2 << 20; // the kernel's
        for byte in *b" [\"\\x\0{" {
            let (said, sent) = hostile(PROMPT, endless(vec![byte; 4096])).await;
            assert!(matches!(said, Err(CallError::Nonsense { .. })), "{byte}: {said:?}");
            assert!(sent <= MAX_REPLY + BUFFERS, "{sent} bytes of {byte} were taken");
        }
        let deep = [vec![b'['; 1 << 20], vec![b']'; 1 << 20]].concat();
        let (said, _) = hostile(PROMPT, move |stream| stream.write(&deep).unwrap_or(0)).await;
        assert!(matches!(said, Err(CallError::Nonsense { .. })), "{said:?}");
        let short = Duration::from_millis(50);
        let (said, _) = hostile(short, |stream| stream.read_to_end(&mut Vec::new()).unwrap_or(0)).await;
        assert!(matches!(said, Err(CallError::Silent("m"))), "{said:?}");
        // Byte by byte, each in time: it is the whole that is bounded.
        let (said, _) = hostile(short, |stream| (0..).take_while(|_| stream.write_all(b" ").is_ok()).count()).await;
        assert!(matches!(said, Err(CallError::Silent("m") | CallError::Nonsense { .. })), "{said:?}");
        let (said, _) = hostile(PROMPT, |stream| stream.write(b"{\"success\":tr").unwrap_or(0)).await;
        assert!(matches!(said, Err(CallError::Gone(_))), "{said:?}");
    }

    fn end(pieces: &[Vec<u8>]) -> Option<usize> {
        super::end(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn a_reply_ends_at_the_same_byte_however_it_is_cut(
            (whole, pieces) in prop_oneof![
                crate::arbitrary::bytes(),
                "[\\[\\]{}\"\\\\a ]{0,40}".prop_map(String::into_bytes),
            ].prop_flat_map(|whole| (Just(whole.clone()), crate::arbitrary::pieces(whole))),
        ) {
            prop_assert_eq!(end(&pieces), end(&[whole]));
        }

        #[test]
        fn the_end_of_an_object_is_where_it_was_written(
            (object, pieces) in prop::collection::btree_map(crate::arbitrary::text(), crate::arbitrary::json(), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect()).to_string())
                .prop_flat_map(|object| {
                    let more = format!(" {object}garbage}}]\"").into_bytes();
                    (Just(object.len() + 1), crate::arbitrary::pieces(more))
                }),
        ) {
            prop_assert_eq!(end(&pieces), Some(object));
        }

        #[test]
        fn only_a_reply_that_says_so_is_a_success(bytes in prop_oneof![
            crate::arbitrary::bytes(),
            crate::arbitrary::json().prop_map(|json| json.to_string().into_bytes()),
            crate::arbitrary::altered(json!({"success": true, "err": "e", "result": 3}))
                .prop_map(|json| json.to_string().into_bytes()),
        ]) {
            let says = serde_json::from_slice::<Value>(&bytes).is_ok_and(|reply| reply["success"] == json!(true));
            prop_assert!(says || parse::<i32>("m", &bytes).is_err());
            if let Ok(number) = parse::<i32>("m", &bytes) {
                let reply: Value = serde_json::from_slice(&bytes).unwrap();
                prop_assert_eq!(&reply["result"], &json!(number));
            }
        }
    }
}
