//! `/.well-known/jwks.json` and `/v1/keys`: the node's public keys. They are for everybody: who verifies a statement needs them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::keys::jwks::{JwkSet, TrustRoot};

use super::problem::Problem;
use super::route::{Access, Route, get};
use super::{Api, blocking};
use crate::keys::{KeyView, PublishedError, published, views};

/// RFC 7517 §8.5.
const JWK_SET: &str = "application/jwk-set+json";

/// `GET /v1/keys`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Keys {
    /// In the order in which they are to be tried.
    pub keys: Vec<KeyView>,
}

pub(super) fn routes() -> Vec<Route> {
    let problems = [(404, "no-keys"), (500, "keys-unreadable")];
    vec![
        get("/.well-known/jwks.json", jwks)
            .named("getJwks", "The node's public keys, as a JWK Set.")
            .may(Access::Anyone)
            .answers_as::<JwkSet>(JWK_SET, StatusCode::OK, "The keys (RFC 7517).")
            .problems(&problems),
        get("/v1/keys", list)
            .named("listKeys", "The node's public keys, and how far each counts.")
            .may(Access::Anyone)
            .answers::<Keys>(StatusCode::OK, "The keys.")
            .problems(&problems),
    ]
}

async fn read(api: &Api) -> Result<(JwkSet, TrustRoot), Problem> {
    let path = api.ports.root.jwks();
    Ok(blocking(move || published(&path)).await??)
}

async fn jwks(State(api): State<Api>) -> Result<impl IntoResponse, Problem> {
    let (set, _) = read(&api).await?;
    let text = serde_json::to_string(&set)
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "keys-unreadable", e))?;
    Ok(([(CONTENT_TYPE, JWK_SET)], text))
}

async fn list(State(api): State<Api>) -> Result<Json<Keys>, Problem> {
    let (set, trusted) = read(&api).await?;
    Ok(Json(Keys { keys: views(&set, &trusted, api.ports.now()) }))
}

impl From<PublishedError> for Problem {
    fn from(error: PublishedError) -> Self {
        let (status, code) = match error {
            PublishedError::NoKeys(_) => (StatusCode::NOT_FOUND, "no-keys"),
            PublishedError::Read { .. } | PublishedError::Jwks { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "keys-unreadable")
            }
        };
        Self::new(status, code, trust::chain::chain(&error))
    }
}
