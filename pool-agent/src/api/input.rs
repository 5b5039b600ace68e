//! Bodies and queries, parsed; what is wrong with them is a problem that names it.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::Api;
use super::problem::Problem;

/// A JSON body. None at all is `null` where the type allows it, else an empty object.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        is_of(request.headers(), |kind| kind == "application/json" || kind.ends_with("+json"))?;
        let (limit, deadline) = (api.ports.config.api.body_bytes, api.ports.config.api.body);
        let read = tokio::time::timeout(deadline, to_bytes(request.into_body(), limit)).await;
        let bytes = read.map_err(|_| late(deadline))?.map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                format!("the body ended early, or is larger than {limit} bytes (api.body_bytes)"),
            )
        })?;
        let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
        let invalid =
            |why: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-body", format!("the body: {why}"));
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(invalid("a list; give an object".into())); // serde would take it for one
        }
        serde_json::from_slice(bytes).map(Self).map_err(|e| invalid(e.to_string()))
    }
}

/// A body, or a part of one, has not come in time.
pub fn late(deadline: Duration) -> Problem {
    let why = format!("the body did not come within {deadline:?} (api.body)");
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", why)
}

/// Whether a body is of a kind that is read; one of which nothing is said is taken for it.
pub fn is_of(headers: &HeaderMap, known: impl Fn(&str) -> bool) -> Result<(), Problem> {
    let Some(said) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = said.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match known(&kind) {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            format!("this path does not take a body of {said:?}"),
        )),
    }
}

/// What stands in the path.
pub struct At<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(at)| Self(at)).map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "invalid-path", e.body_text()))
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_body_of_another_kind_is_refused_and_one_without_a_kind_is_not() {
        let json = |kind: &str| kind == "application/json";
        let of = |kind: Option<&'static str>| {
            let kind = kind.map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind)));
            is_of(&kind.into_iter().collect(), json).map_err(|problem| problem.status)
        };
        for (kind, result) in [
            (None, Ok(())),
            (Some("application/json"), Ok(())),
            (Some("Application/JSON; charset=utf-8"), Ok(())),
            (Some("text/plain"), Err(415)),
            (Some(""), Err(415)),
        ] {
            assert_eq!(of(kind), result, "{kind:?}");
        }
    }
}
