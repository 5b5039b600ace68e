//! The client's way to the node agent: HTTP/1.1 over its socket, JSON in and out, errors as RFC 9457 problems.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::problem::Problem;

/// How long the agent may take to accept us. What it is asked to do may take longer, and says so itself.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentApiError {
    /// Nobody listens.
    #[error(
        "creto-pool-agent does not answer at {}: {why}; start it with `systemctl start creto-runtime`, and see `journalctl -u creto-runtime`",
        socket.display()
    )]
    NotRunning {
        /// Where it should.
        socket: PathBuf,
        /// What came of it.
        why: io::Error,
    },
    /// It says no, and why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The connection ended early, or what came is not HTTP.
    #[error("talking to creto-pool-agent")]
    Http(#[from] hyper::Error),
    /// What it answered is not what was asked for: it is of another version.
    #[error("creto-pool-agent answered {0} with something else than this client reads: are they of the same version?")]
    Unreadable(StatusCode, #[source] serde_json::Error),
    /// What was to be asked.
    #[error("the question")]
    Question(#[from] hyper::http::Error),
    /// No runtime.
    #[error("starting")]
    Io(#[from] io::Error),
}

/// Asks, and waits for the answer.
pub fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, AgentApiError> {
    let (status, bytes) = exchange(socket, method, path, body)?;
    let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|e| AgentApiError::Unreadable(status, e))
}

/// The same, of an answer that is text.
pub fn ask_text(socket: &Path, path: &str) -> Result<String, AgentApiError> {
    let (_, bytes) = exchange(socket, Method::GET, path, None::<&()>)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<(StatusCode, Bytes), AgentApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| AgentApiError::Unreadable(StatusCode::OK, e))?,
            None => Vec::new(),
        };
        let not_running = |why| AgentApiError::NotRunning { socket: socket.to_owned(), why };
        let stream = tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(not_running)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let carried = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "creto")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        carried.abort();
        if status.is_success() {
            return Ok((status, bytes));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(AgentApiError::Problem(Box::new(problem))),
            Err(error) => Err(AgentApiError::Unreadable(status, error)),
        }
    })
}
