//! `POST /v1/warm-pools/{name}/claims`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use tracing::Instrument;
use trust::id::PoolName;
use trust::sandbox_api::Proven;

use super::Api;
use super::auth::Via;
use super::input::{At, Body};
use super::pools::named;
use super::problem::{Problem, SPAWN};
use super::route::{Access, Route, post};
use super::types::{ClaimRequest, Claimed};
use crate::error::ClaimError;

pub fn routes() -> Vec<Route> {
    vec![
        post("/v1/warm-pools/{name}/claims", claim)
            .named("claim", "Takes a member of a pool for an agent, under its identity, policy and secrets.")
            .may(Access::Agent)
            .parameter::<PoolName>("name", "The pool's name.")
            .body::<ClaimRequest>()
            .answers::<Claimed>(StatusCode::OK, "The caller's own.")
            .problems(&SPAWN)
            .problems(&[
                (400, "invalid-name"),
                (404, "pool-not-found"),
                (422, "idempotency-key-reused"),
                (503, "pool-empty"),
            ])
            .problems(&[(503, "pool-draining"), (503, "bind-failed"), (504, "claim-timeout")]),
    ]
}

async fn claim(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(name): At<String>,
    headers: HeaderMap,
    Body(request): Body<ClaimRequest>,
) -> Result<Json<Claimed>, Problem> {
    let name = named(&name)?;
    let pool = api.pools.get(&name).await?;
    let backend = pool.template.spec.backend;
    let caller = api.auth.who(via, &headers, backend).await?.caller(request.agent.clone())?;
    if let (Proven::Operator, Some(agent)) = (caller.proven, &caller.agent) {
        api.auth.known(agent, backend).await?;
    }
    // In a task of its own: a caller that goes away must not drop the undo.
    let pools = api.pools.clone();
    let claim = async move { pools.claim(&pool, &request, &caller).await };
    let claimed = tokio::spawn(claim.in_current_span()).await;
    claimed.unwrap_or_else(|e| Err(ClaimError::BindFailed(e.to_string()))).map(Json).map_err(Problem::from)
}
