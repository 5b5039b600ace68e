//! `GET /v1/sandboxes/{id}/logs`: what a sandbox has written, and with `follow=true` what it goes on to write, until it ends.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::auth::Via;
use super::exec::has_written;
use super::input::{Asked, At};
use super::problem::Problem;
use super::route::{Access, Route, get};
use super::sandboxes::{ID, LOOKED_UP};
use crate::exec;
use crate::logs::last_lines;

/// Parts that wait to be sent.
const WAITING: usize = 4;

const TEXT: &str = "text/plain; charset=utf-8";

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// So many lines from the end.
    tail: Option<usize>,
    /// And what it goes on to write, until it ends.
    #[serde(default)]
    follow: bool,
}

pub fn routes() -> Vec<Route> {
    vec![
        get("/v1/sandboxes/{id}/logs", logs)
            .named("getSandboxLogs", "What a sandbox has written: the end of it, and with follow what comes.")
            .may(Access::Agent)
            .parameter::<String>("id", ID)
            .query::<Which>()
            .answers_as::<String>(TEXT, StatusCode::OK, "Its output.")
            .problems(&LOOKED_UP)
            .problems(&[(500, "log-unreadable")]),
    ]
}

async fn logs(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    Asked(Which { tail, follow }): Asked<Which>,
) -> Result<impl IntoResponse, Problem> {
    let id = has_written(&api, via, &headers, &id).await?; // what a sandbox writes is its agent's
    let (text, position) = api.sandboxes.log(&id).await?;
    let shown = Bytes::copy_from_slice(tail.map_or(&text, |lines| last_lines(&text, lines)));
    let body = if follow {
        let (to, parts) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING);
        tokio::spawn(async move {
            if to.send(Ok(shown)).await.is_ok()
                && let Err(error) = exec::attached(&api.ports, &id, position, to, Ok).await
            {
                tracing::debug!(sandbox = %id, %error, "its output is followed no more");
            }
        });
        Body::from_stream(ReceiverStream::new(parts))
    } else {
        Body::from(shown)
    };
    Ok(([(CONTENT_TYPE, TEXT)], body))
}
