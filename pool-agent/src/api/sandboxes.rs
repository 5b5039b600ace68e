//! `/v1/sandboxes`.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Deserialize;

use super::Api;
use super::auth::{Operator, Via};
use super::exec::allowed;
use super::input::{Asked, Body};
use super::problem::Problem;
use super::types::{Ended, SandboxView, Sandboxes, SpawnRequest};
use crate::ending::Manner;
use crate::labels::LabelSelector;
use crate::sandbox::{Phase, Sandbox};
use crate::store::Filter;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    status: Option<String>,
    selector: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    #[serde(default)]
    force: bool,
}

impl How {
    fn manner(&self) -> Manner {
        if self.force { Manner::Forced } else { Manner::Graceful }
    }
}

pub async fn list(
    State(api): State<Api>,
    Asked(Which { status, selector, limit }): Asked<Which>,
) -> Result<Json<Sandboxes>, Problem> {
    let bad = |e: &dyn std::fmt::Display| Problem::new(StatusCode::BAD_REQUEST, "invalid-query", e);
    let phase = status.map(|status| status.parse::<Phase>()).transpose().map_err(|e| bad(&e))?;
    let selector = selector.map(|text| text.parse::<LabelSelector>()).transpose().map_err(|e| bad(&e))?;
    let filter = Filter { phase, selector: selector.unwrap_or_default(), ..Filter::default() };
    let mut sandboxes = api.sandboxes.list(&filter).await?;
    sandboxes.truncate(limit.unwrap_or(usize::MAX));
    Ok(Json(Sandboxes { sandboxes }))
}

pub async fn spawn(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
    Body(request): Body<SpawnRequest>,
) -> Result<(StatusCode, Json<Sandbox>), Problem> {
    let who = api.auth.who(via, &headers, request.spec.backend).await?;
    let caller = who.caller(request.agent.clone())?;
    Ok((StatusCode::CREATED, Json(api.sandboxes.spawn(request, caller.agent).await?)))
}

pub async fn get(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<SandboxView>, Problem> {
    Ok(Json(api.sandboxes.view(&id).await?))
}

pub async fn terminate(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Asked(how): Asked<How>,
) -> Result<Json<Sandbox>, Problem> {
    allowed(&api, via, &headers, &id).await?;
    Ok(Json(api.sandboxes.terminate(&id, how.manner()).await?))
}

pub async fn terminate_all(
    State(api): State<Api>,
    _: Operator,
    Asked(how): Asked<How>,
) -> Result<Json<Ended>, Problem> {
    Ok(Json(Ended { sandboxes: api.sandboxes.terminate_all(how.manner()).await? }))
}
