//! gRPC, as far as it takes to call a method of containerd's that has one request and one response, over its unix socket.
//! Source: grpc `doc/PROTOCOL-HTTP2.md`.

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::net::UnixStream;

/// No response is longer, in bytes: the limit of containerd's own clients.
const LONGEST: usize = 16 << 20;
/// Before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;

/// A connection to containerd.
pub struct Channel {
    http: SendRequest<Bytes>,
    namespace: HeaderValue,
}

/// Why a call has no response.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// Nobody listens there.
    #[error("connecting: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// The request cannot be written.
    #[error("request: {0}")]
    Request(#[from] http::Error),
    /// Not gRPC that answers.
    #[error("HTTP status {0}")]
    Status(StatusCode),
    /// The method failed.
    #[error("gRPC status {code}: {message}")]
    Grpc {
        /// `grpc-status`; 5 is NotFound.
        code: String,
        /// `grpc-message`, as it came.
        message: String,
    },
    /// Not one whole message.
    #[error("the response is no message: {0}")]
    Message(String),
}

impl Channel {
    /// Connects; all calls are about this namespace of containerd's.
    pub async fn open(socket: &Path, namespace: &str) -> Result<Self, GrpcError> {
        let namespace = HeaderValue::from_str(namespace).map_err(http::Error::from)?;
        let (http, connection) = h2::client::handshake(UnixStream::connect(socket).await?).await?;
        tokio::spawn(connection); // its errors are those of the calls
        Ok(Self { http, namespace })
    }

    /// Calls a method by its path.
    pub async fn call<Q, A>(&self, method: &str, question: &Q) -> Result<A, GrpcError>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        let request = Request::post(format!("http://containerd{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.namespace)
            .body(())?;
        let (response, mut body) = self.http.clone().ready().await?.send_request(request, false)?;
        body.send_data(framed(question), true)?;
        let (head, mut body) = response.await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(GrpcError::Status(head.status));
        }
        let mut message = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            if message.len() + chunk.len() > LONGEST {
                return Err(GrpcError::Message(format!("it has more than {LONGEST} bytes")));
            }
            message.extend_from_slice(&chunk);
        }
        // One that failed at once has its trailers where the head is.
        let trailers = body.trailers().await?;
        succeeded(trailers.as_ref().unwrap_or(&head.headers))?;
        unframed(&message)
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + body.len());
    framed.put_u8(0);
    framed.put_u32(body.len() as u32);
    framed.put_slice(&body);
    framed.freeze()
}

fn unframed<A: prost::Message + Default>(framed: &[u8]) -> Result<A, GrpcError> {
    let Some(([compressed, length @ ..], body)) = framed.split_first_chunk::<PREFIX>() else {
        return Err(GrpcError::Message(format!("{} bytes", framed.len())));
    };
    if *compressed != 0 || u32::from_be_bytes(*length) as usize != body.len() {
        return Err(GrpcError::Message("it is compressed, or not one".into()));
    }
    A::decode(body).map_err(|e| GrpcError::Message(e.to_string()))
}

fn succeeded(trailers: &HeaderMap) -> Result<(), GrpcError> {
    let text = |name| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(code) if code == "0" => Ok(()),
        code => Err(GrpcError::Grpc {
            code: code.unwrap_or_else(|| "missing".into()),
            message: text("grpc-message").unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Word {
        #[prost(string, tag = "1")]
        word: String,
    }

    /// What a server answers with: a body, and trailers behind it, or in place of it.
    struct Answer {
        status: u16,
        head: &'static [(&'static str, &'static str)],
        body: Option<Vec<u8>>,
        trailers: &'static [(&'static str, &'static str)],
    }

    async fn ask(answer: Answer) -> Result<Word, String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut http = h2::server::handshake(stream).await.unwrap();
            let (request, mut respond) = http.accept().await.unwrap().unwrap();
            assert_eq!(request.uri().path(), "/s/M");
            assert_eq!(request.headers()["containerd-namespace"], "ns");
            let mut response = http::Response::builder().status(answer.status);
            for (name, value) in answer.head {
                response = response.header(*name, *value);
            }
            let ends = answer.body.is_none();
            let mut stream = respond.send_response(response.body(()).unwrap(), ends).unwrap();
            if let Some(body) = answer.body {
                stream.send_data(body.into(), false).unwrap();
                let mut trailers = HeaderMap::new();
                for (name, value) in answer.trailers {
                    trailers.insert(*name, HeaderValue::from_static(value));
                }
                stream.send_trailers(trailers).unwrap();
            }
            while http.accept().await.is_some() {}
        };
        let client = async {
            let channel = Channel::open(&socket, "ns").await.unwrap();
            channel.call("/s/M", &Word { word: "question".into() }).await.map_err(|e| e.to_string())
        };
        tokio::select! { answer = client => answer, () = server => unreachable!("the client went first") }
    }

    #[tokio::test]
    async fn a_response_is_one_message_with_a_good_status_or_an_error_that_says_what_it_was() {
        let word = |word: &str| Word { word: word.into() };
        let body = |body: &[u8]| Some(body.to_vec());
        let good = framed(&word("answer")).to_vec();
        let ok: &[_] = &[("grpc-status", "0")];
        let gone: &[_] = &[("grpc-status", "5"), ("grpc-message", "container \"c\": not found")];
        let answers = [
            (200, &[][..], body(&good), ok, Ok("answer")),
            (200, &[], body(&good), gone, Err("gRPC status 5: container \"c\": not found")),
            (200, gone, None, &[], Err("gRPC status 5")),
            (200, &[], body(&good), &[], Err("status missing")),
            (200, &[], None, &[], Err("status missing")),
            (503, &[], None, &[], Err("503")),
            (200, &[], body(&good[..4]), ok, Err("4 bytes")),
            (200, &[], body(&good[..6]), ok, Err("not one")),
            (200, &[], body(&[&good[..], &good[..]].concat()), ok, Err("not one")),
            (200, &[], body(&[1, 0, 0, 0, 0]), ok, Err("compressed")),
            (200, &[], body(&[0, 0, 0, 0, 1, 0xff]), ok, Err("no message")),
        ];
        for (status, head, body, trailers, expected) in answers {
            match (ask(Answer { status, head, body, trailers }).await, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, word(expected)),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}, expected {expected}"),
                (got, expected) => panic!("{got:?}, expected {expected:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_framed_is_read_back_and_no_other_bytes_panic(text in ".{0,40}", bytes in crate::arbitrary::bytes()) {
            let message = Word { word: text };
            prop_assert_eq!(unframed::<Word>(&framed(&message)).unwrap(), message);
            let _ = unframed::<Word>(&bytes);
        }
    }
}
