//! Errors as the API tells them: RFC 9457 problem details. The one place where an error becomes an HTTP status.

use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::chain::chain;

use crate::error::{ClaimError, STORE_HINT, SpawnError};
use crate::pools::PoolError;
use crate::sandboxes::SandboxError;
use crate::store::StoreError;

/// Before the code of a problem, to make its `type`.
pub const TYPES: &str = "https://creto.dev/problems/";

/// What may come of it where a sandbox is made; a test holds it to [`SpawnError`].
pub const SPAWN: [(u16, &str); 17] = [
    (404, "image-not-found"),
    (502, "image-unavailable"),
    (503, "backend-unavailable"),
    (503, "backend-drained"),
    (503, "node-draining"),
    (503, "resource-exhausted"),
    (403, "identity-rejected"),
    (422, "policy-invalid"),
    (422, "secret-unavailable"),
    (503, "egress-unavailable"),
    (503, "network-unavailable"),
    (422, "start-failed"),
    (422, "not-ready"),
    (409, "name-taken"),
    (504, "timeout"),
    (503, "interrupted"),
    (503, "store-unavailable"),
];

/// A problem. Programs branch on `code`; people read `detail` and `hint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `https://creto.dev/problems/` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the status means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A word that stays the same from version to version.
    pub code: String,
    /// What went wrong, this time.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// After so many seconds it is worth asking again; the header Retry-After, too.
    #[serde(default, rename = "retryAfter", skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// With this status; `code` never changes its meaning.
    pub fn new(status: StatusCode, code: &str, detail: impl fmt::Display) -> Self {
        Self {
            kind: format!("{TYPES}{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.to_string(),
            hint: None,
            retry_after: None,
        }
    }

    /// And what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// And when to ask again: not before this.
    pub fn again_after(self, wait: Duration) -> Self {
        Self { retry_after: Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)), ..self }
    }
}

fn status(number: u16) -> StatusCode {
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl From<SpawnError> for Problem {
    fn from(error: SpawnError) -> Self {
        Self::new(status(error.status()), error.code(), chain(&error)).hint(error.hint())
    }
}

impl From<ClaimError> for Problem {
    fn from(error: ClaimError) -> Self {
        Self::new(status(error.status()), error.code(), chain(&error)).hint(error.hint())
    }
}

impl From<SandboxError> for Problem {
    fn from(error: SandboxError) -> Self {
        let (status, code) = match &error {
            SandboxError::NotFound(_) => (StatusCode::NOT_FOUND, "sandbox-not-found"),
            SandboxError::Busy(_) => (StatusCode::CONFLICT, "sandbox-busy"),
            SandboxError::Log(..) => (StatusCode::INTERNAL_SERVER_ERROR, "log-unreadable"),
            SandboxError::Store(StoreError::NotFound(_)) => (StatusCode::NOT_FOUND, "sandbox-not-found"),
            SandboxError::Store(StoreError::WrongPhase(_)) => (StatusCode::CONFLICT, "wrong-phase"),
            SandboxError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
        };
        let problem = Self::new(status, code, chain(&error));
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.hint(STORE_HINT) } else { problem }
    }
}

impl From<PoolError> for Problem {
    fn from(error: PoolError) -> Self {
        let (status, code) = match error {
            PoolError::NotFound(_) => (StatusCode::NOT_FOUND, "pool-not-found"),
            PoolError::Exists(_) => (StatusCode::CONFLICT, "pool-exists"),
            PoolError::OfFile(_) => (StatusCode::CONFLICT, "pool-of-file"),
            PoolError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "pool-invalid"),
            PoolError::Policy(_) => (StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid"),
            PoolError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
            PoolError::Spawn(error) => return error.into(),
        };
        let problem = Self::new(status, code, chain(&error));
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.hint(STORE_HINT) } else { problem }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = status(self.status);
        let body = serde_json::to_vec(&self).unwrap_or_default(); // strings and a number: it does not fail
        let kind = [(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
        let mut response = (status, kind, body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::tests::spawn_errors;

    #[test]
    fn what_may_come_of_a_spawn_is_told_whole() {
        let errors: Vec<(u16, &str)> = spawn_errors().iter().map(|error| (error.status(), error.code())).collect();
        assert_eq!(errors, SPAWN);
    }

    #[test]
    fn a_problem_is_told_as_the_rfc_has_it() {
        let problem = Problem::new(StatusCode::NOT_FOUND, "pool-not-found", "there is no pool \"a\"").hint("make it");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "https://creto.dev/problems/pool-not-found", "title": "Not Found", "status": 404,
                "code": "pool-not-found", "detail": "there is no pool \"a\"", "hint": "make it"
            })
        );
        let later = problem.clone().again_after(Duration::from_millis(1200)).into_response();
        assert_eq!(later.headers()[RETRY_AFTER], "2");
        let response = problem.into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[CONTENT_TYPE]),
            (404, &HeaderValue::from_static("application/problem+json"))
        );
    }
}
