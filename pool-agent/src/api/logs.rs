//! `GET /v1/sandboxes/{id}/logs`: what a sandbox has written, and with `follow=true` what it goes on to write, until it ends.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::auth::Via;
use super::exec::has_written;
use super::input::Asked;
use super::problem::Problem;
use crate::exec;
use crate::logs::last_lines;

/// Parts that wait to be sent.
const WAITING: usize = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

pub async fn logs(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    Path(id): Path<String>,
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
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], body))
}
