//! The client's way to the node agent: HTTP/1.1 over its socket, JSON in and out, errors as RFC 9457 problems; a WebSocket where
//! a command's streams are carried. Each question has a connection of its own.

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use form_urlencoded::Serializer as Query;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::chunks::Chunks;
use crate::api::problem::Problem;
use crate::channels;
use crate::node::Root;

/// How long the agent may take to accept us. What it is asked to do may take longer, and says so itself.
const CONNECT: Duration = Duration::from_secs(5);
/// How much of an answer that is no problem an error repeats, in characters.
const SHOWN: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentApiError {
    /// Nobody listens.
    #[error(
        "creto-pool-agent does not answer at {}: {why}\nstart it with `systemctl start creto-runtime`; `journalctl -u creto-runtime` says why it does not run",
        socket.display()
    )]
    NotRunning {
        /// Where it should.
        socket: PathBuf,
        /// What came of it.
        why: io::Error,
    },
    /// Its socket is root's.
    #[error("{} may not be used by this user\nthe node agent answers root: try sudo", socket.display())]
    Forbidden {
        /// Where it listens.
        socket: PathBuf,
    },
    /// It says no, and why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// It says no, and not in the way that our agent does.
    #[error("creto-pool-agent answered {status}: {text}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The beginning of what came with it.
        text: String,
    },
    /// The connection ended early, or what came is not HTTP.
    #[error("talking to creto-pool-agent")]
    Http(#[from] hyper::Error),
    /// What it answered is not what was asked for: it is of another version.
    #[error("creto-pool-agent answered {0} with something else than this client reads: are they of the same version?")]
    Unreadable(StatusCode, #[source] serde_json::Error),
    /// It does not stream as this client does.
    #[error("creto-pool-agent does not speak {}: are it and this client of the same version?", channels::PROTOCOL)]
    NoStream,
    /// What was to be asked cannot be written.
    #[error("writing the question as JSON")]
    Body(#[source] serde_json::Error),
    /// It is no HTTP.
    #[error("the question")]
    Question(#[from] hyper::http::Error),
    /// No runtime.
    #[error("starting")]
    Runtime(#[source] io::Error),
    /// The answer could not be passed on.
    #[error("writing the answer")]
    Output(#[source] io::Error),
}

impl AgentApiError {
    /// Whether it is no matter of what was asked about: whatever else is asked fails alike.
    pub fn is_of_all(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Forbidden { .. })
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A WebSocket to the agent, its subprotocol agreed on.
pub type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// An answer that comes bit by bit.
#[derive(Debug)]
pub struct Answer(Incoming);

impl Answer {
    /// The next bit; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentApiError> {
        while let Some(frame) = self.0.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

/// The agent of a node.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

/// Does what waits for answers.
pub fn block_on<T, E: From<AgentApiError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(AgentApiError::Runtime)?.block_on(work)
}

/// A path with what is asked for behind it, percent-encoded. Ids and names need no encoding: their types see to that.
pub fn with_query<V: AsRef<str>>(path: &str, pairs: impl IntoIterator<Item = (&'static str, V)>) -> String {
    let mut query = Query::new(String::new());
    query.extend_pairs(pairs);
    match query.finish() {
        none if none.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

impl Agent {
    /// The one of this node.
    pub fn of(root: &Root) -> Self {
        Self { socket: root.agent_socket() }
    }

    /// Asks, without a body.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, AgentApiError> {
        read(self.answer(method, path, empty()).await?).await
    }

    /// Asks, with a body.
    pub async fn tell<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AgentApiError> {
        let body = serde_json::to_vec(body).map_err(AgentApiError::Body)?;
        read(self.answer(method, path, full(body)).await?).await
    }

    /// Asks where an answer with any status is one.
    pub async fn ask_whatever_the_status<T: DeserializeOwned>(&self, path: &str) -> Result<T, AgentApiError> {
        let response = self.send(request(Method::GET, path).body(empty())?).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        match serde_json::from_slice(&bytes) {
            Ok(answer) => Ok(answer),
            Err(_) if !status.is_success() => Err(refused(status, &bytes)),
            Err(error) => Err(AgentApiError::Unreadable(status, error)),
        }
    }

    /// Asks for something that comes bit by bit.
    pub async fn listen(&self, path: &str) -> Result<Answer, AgentApiError> {
        Ok(Answer(self.answer(Method::GET, path, empty()).await?.into_body()))
    }

    /// Asks, and passes on what comes, as it comes.
    pub async fn copy(&self, path: &str, out: &mut dyn Write) -> Result<(), AgentApiError> {
        let mut answer = self.listen(path).await?;
        while let Some(bytes) = answer.next().await? {
            out.write_all(&bytes).and_then(|()| out.flush()).map_err(AgentApiError::Output)?;
        }
        Ok(())
    }

    /// Sends what another thread makes.
    pub async fn upload(&self, path: &str, kind: &str, chunks: Chunks) -> Result<(), AgentApiError> {
        let frames = stream::unfold(chunks, |mut chunks| async move {
            let chunk = chunks.recv().await?;
            Some((chunk.map(Frame::data), chunks))
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        let request = request(Method::PUT, path).header(CONTENT_TYPE, kind).body(body)?;
        succeeded(self.send(request).await?).await.map(drop)
    }

    /// Opens a WebSocket.
    pub async fn stream(&self, path: &str) -> Result<Stream, AgentApiError> {
        let key = generate_key();
        let request = request(Method::GET, path)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, channels::PROTOCOL)
            .body(empty())?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            succeeded(response).await?;
            return Err(AgentApiError::NoStream);
        }
        let says = |name: HeaderName, text: &str| response.headers().get(name).is_some_and(|value| value == text);
        if !says(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()))
            || !says(SEC_WEBSOCKET_PROTOCOL, channels::PROTOCOL)
        {
            return Err(AgentApiError::NoStream);
        }
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
    }

    async fn answer(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, AgentApiError> {
        let request = request(method, path).header(CONTENT_TYPE, "application/json").body(body)?;
        succeeded(self.send(request).await?).await
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, AgentApiError> {
        let stream = tokio::time::timeout(CONNECT, UnixStream::connect(&self.socket)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|why| {
            let socket = self.socket.clone();
            match why.kind() {
                io::ErrorKind::PermissionDenied => AgentApiError::Forbidden { socket },
                _ => AgentApiError::NotRunning { socket, why },
            }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drop(tokio::spawn(connection.with_upgrades())); // it ends with the answer, which tells what goes wrong
        Ok(sender.send_request(request).await?)
    }
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header(HOST, "creto")
}

fn empty() -> Body {
    full(Vec::new())
}

fn full(bytes: Vec<u8>) -> Body {
    BodyExt::boxed_unsync(Full::new(Bytes::from(bytes)).map_err(|never| match never {}))
}

async fn succeeded(response: Response<Incoming>) -> Result<Response<Incoming>, AgentApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = response.into_body().collect().await?.to_bytes();
    Err(refused(status, &bytes))
}

fn refused(status: StatusCode, bytes: &[u8]) -> AgentApiError {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(mut problem) => {
            problem.hint = problem.hint.or_else(|| hint(&problem.code).map(str::to_owned));
            AgentApiError::Problem(Box::new(problem))
        }
        Err(_) => {
            let text: String = String::from_utf8_lossy(bytes).trim().chars().take(SHOWN).collect();
            let text = if text.is_empty() { "and nothing more".to_owned() } else { text };
            AgentApiError::Refused { status, text }
        }
    }
}

/// What to do next, where the agent does not say: in the words of this client.
fn hint(code: &str) -> Option<&'static str> {
    match code {
        "pool-not-found" => Some("see what there is: creto-runtime-cli pool list"),
        "sandbox-not-found" => Some("see what there is: creto-runtime-cli list"),
        _ => None,
    }
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, AgentApiError> {
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|e| AgentApiError::Unreadable(status, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_cannot_change_the_question() {
        for (pairs, path) in [
            (vec![], "/v1"),
            (vec![("command", "a b"), ("command", "&c=d#e/é\n")], "/v1?command=a+b&command=%26c%3Dd%23e%2F%C3%A9%0A"),
            (vec![("env", "K=V")], "/v1?env=K%3DV"),
        ] {
            assert_eq!(with_query("/v1", pairs), path);
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_where_to_look() {
        let said = |code, hint: &str| {
            let problem = Problem::new(StatusCode::NOT_FOUND, code, "there is no pool a");
            let problem = if hint.is_empty() { problem } else { problem.hint(hint) };
            refused(StatusCode::NOT_FOUND, &serde_json::to_vec(&problem).unwrap()).to_string()
        };
        assert_eq!(said("pool-not-found", ""), "there is no pool a\nsee what there is: creto-runtime-cli pool list");
        assert_eq!(said("pool-not-found", "make it"), "there is no pool a\nmake it");
        assert_eq!(said("pool-exists", ""), "there is no pool a");
    }

    #[test]
    fn an_answer_that_is_no_problem_is_shown_in_part() {
        let said = |bytes: &[u8]| refused(StatusCode::BAD_GATEWAY, bytes).to_string();
        assert_eq!(said(b""), "creto-pool-agent answered 502 Bad Gateway: and nothing more");
        assert_eq!(said(b"<html>\n"), "creto-pool-agent answered 502 Bad Gateway: <html>");
        assert!(said(&[b'x'; 4096]).len() < 300);
    }
}
