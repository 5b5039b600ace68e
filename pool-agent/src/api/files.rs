//! `/v1/sandboxes/{id}/files?path=…`: files out of a sandbox and into it, as a tar stream, by the sandbox's own tar: as `kubectl cp`.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::auth::Via;
use super::exec::{EXEC, allowed};
use super::input::{Asked, At, is_of, late};
use super::problem::Problem;
use super::route::{self, Access, Route};
use super::sandboxes::LOOKED_UP;
use crate::channels::{Frame, STDIN};
use crate::exec::Session;
use crate::running::Command;
use crate::spec::AbsolutePath;

/// Parts that wait to be sent or written.
const WAITING: usize = 16;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// In the sandbox.
    path: AbsolutePath,
}

const TAR: &str = "application/x-tar";

pub fn routes() -> Vec<Route> {
    let path = "/v1/sandboxes/{id}/files";
    let told = |route: Route| {
        let told =
            route.may(Access::Agent).parameter::<String>("id", "The sandbox's id, or its name.").query::<Which>();
        told.problems(&LOOKED_UP).problems(&EXEC)
    };
    vec![
        told(route::get(path, get))
            .named("getFiles", "A file or a directory of a sandbox, as a tar stream.")
            .answers_bytes(TAR, "Where its tar fails the stream ends early.")
            .problems(&[(404, "file-not-found")]),
        told(route::put(path, put))
            .named("putFiles", "Unpacks a tar stream into a directory of a sandbox.")
            .bytes(TAR)
            .answers_nothing(StatusCode::NO_CONTENT, "It is unpacked.")
            .problems(&[(422, "unpack-failed")]),
    ]
}

fn tar(words: &[&str]) -> Command {
    let args = ["tar"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    Command { args, ..Command::default() }
}

/// A file or a directory, under its own name. Where its tar fails the stream ends early.
async fn get(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    Asked(Which { path }): Asked<Which>,
) -> Result<Response, Problem> {
    let sandbox = allowed(&api, via, &headers, &id).await?;
    let trimmed = path.as_str().trim_end_matches('/');
    let (dir, name) = trimmed.rsplit_once('/').unwrap_or(("", "."));
    let (dir, name) = (if dir.is_empty() { "/" } else { dir }, if name.is_empty() { "." } else { name });
    let there = Session::start(&api.ports, &sandbox, &test(trimmed), false, false).await?;
    let (_say, from) = mpsc::channel(1);
    let (to, _said) = mpsc::channel(WAITING);
    if there.run(from, to).await? != 0 {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "file-not-found",
            format!("there is no {} in {id}", path.as_str()),
        ));
    }
    let session = Session::start(&api.ports, &sandbox, &tar(&["-C", dir, "-cf", "-", name]), false, false).await?;
    let (to, mut said) = mpsc::channel(WAITING);
    let (parts, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING);
    tokio::spawn(async move {
        let (say, from) = mpsc::channel(1);
        let mut running = tokio::spawn(session.run(from, to));
        while let Some(frame) = said.recv().await {
            if let Frame::Stdout(bytes) = frame
                && parts.send(Ok(bytes)).await.is_err()
            {
                running.abort();
                return;
            }
        }
        drop(say);
        if !matches!((&mut running).await, Ok(Ok(0))) {
            let _ = parts.send(Err(std::io::Error::other("tar has failed in the sandbox"))).await;
        }
    });
    Ok(([(CONTENT_TYPE, TAR)], Body::from_stream(ReceiverStream::new(body))).into_response())
}

/// Whether something is at a path.
fn test(path: &str) -> Command {
    let path = if path.is_empty() { "/" } else { path };
    Command { args: ["ls", "-d", path].map(str::to_owned).to_vec(), ..Command::default() }
}

/// Unpacks a tar stream into a directory that is there.
async fn put(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    Asked(Which { path }): Asked<Which>,
    body: Body,
) -> Result<StatusCode, Problem> {
    is_of(&headers, |kind| kind == TAR || kind == "application/octet-stream")?;
    let sandbox = allowed(&api, via, &headers, &id).await?;
    let session = Session::start(&api.ports, &sandbox, &tar(&["-C", path.as_str(), "-xf", "-"]), false, true).await?;
    let (say, from) = mpsc::channel(WAITING);
    let (to, mut said) = mpsc::channel(WAITING);
    let running = tokio::spawn(session.run(from, to));
    let deadline = api.ports.config.api.body;
    let feed = async move {
        let mut parts = body.into_data_stream();
        loop {
            let part = match tokio::time::timeout(deadline, parts.next()).await {
                Err(_) => return late(deadline),
                Ok(Some(Ok(part))) => part,
                Ok(Some(Err(_))) => return failed("the body ended early"),
                Ok(None) => break,
            };
            if say.send(Frame::Stdin(part)).await.is_err() {
                break; // what has been heard of it says why
            }
        }
        let _ = say.send(Frame::Close(STDIN)).await; // it may have ended meanwhile
        std::future::pending::<Problem>().await // the sender lives until the process has ended
    };
    let listen = async {
        let mut complaint = Vec::new();
        while let Some(frame) = said.recv().await {
            if let Frame::Stderr(bytes) = frame {
                complaint.extend_from_slice(&bytes);
            }
        }
        (running.await, complaint)
    };
    let (ended, complaint) = tokio::select! {
        heard = listen => heard,
        problem = feed => return Err(problem),
    };
    match ended {
        Ok(Ok(0)) => Ok(StatusCode::NO_CONTENT),
        Ok(Ok(_)) => Err(failed(String::from_utf8_lossy(&complaint).trim())),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn failed(why: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unpack-failed", format!("tar in the sandbox: {why}"))
        .hint("the directory must be there, and the image must have tar")
}
