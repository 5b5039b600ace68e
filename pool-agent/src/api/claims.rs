//! `POST /v1/warm-pools/{name}/claims`.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use tracing::Instrument;
use trust::sandbox_api::Proven;

use super::Api;
use super::auth::Via;
use super::input::Body;
use super::pools::named;
use super::problem::Problem;
use super::types::{ClaimRequest, Claimed};
use crate::error::ClaimError;

pub async fn claim(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    Path(name): Path<String>,
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
