//! Bodies and queries, parsed; what is wrong with them is a problem that names it.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Api;
use super::problem::Problem;

/// A JSON body. None at all is `null` where the type allows it, else an empty object.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (limit, within) = (api.ports.config.api.body_bytes, api.ports.config.api.body);
        let bytes = tokio::time::timeout(within, to_bytes(request.into_body(), limit)).await.map_err(|_| {
            let why = format!("the body took longer than {within:?} (api.body)");
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", why)
        })?;
        let bytes = bytes.map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                format!("the body ended early, or is larger than {limit} bytes (api.body_bytes)"),
            )
        })?;
        let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
        serde_json::from_slice(bytes)
            .map(Self)
            .map_err(|e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-body", format!("the body: {e}")))
    }
}

/// What stands behind `?`.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query
            .map(|Query(asked)| Self(asked))
            .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "invalid-query", format!("the query: {e}")))
    }
}
