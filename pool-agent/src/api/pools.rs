//! `/v1/warm-pools`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use trust::id::PoolName;

use super::Api;
use super::auth::Operator;
use super::input::{Asked, Body};
use super::problem::Problem;
use super::types::{Ended, Eviction, PoolRequest, PoolStats, PoolUpdate, Pools};
use crate::pool::template::{Origin, Pool};
use crate::sandbox::{Phase, Sandbox};
use crate::store::Failure;

/// Failures that are told where nobody says how many.
const FAILURES: usize = 50;

/// A pool's name, as it stands in a path.
pub fn named(name: &str) -> Result<PoolName, Problem> {
    name.parse().map_err(|e: trust::id::BadId| Problem::new(StatusCode::BAD_REQUEST, "invalid-name", e))
}

pub async fn list(State(api): State<Api>) -> Result<Json<Pools>, Problem> {
    Ok(Json(Pools { pools: api.pools.all_stats().await? }))
}

pub async fn create(
    State(api): State<Api>,
    _: Operator,
    Body(asked): Body<PoolRequest>,
) -> Result<(StatusCode, Json<Pool>), Problem> {
    let PoolRequest { name, template, scaling } = asked;
    let created_at = api.ports.now();
    let pool = Pool { name, template, scaling, draining: false, origin: Origin::Api, created_at, revision: 0 };
    Ok((StatusCode::CREATED, Json(api.pools.create(&pool).await?)))
}

pub async fn get(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Pool>, Problem> {
    Ok(Json(api.pools.get(&named(&name)?).await?))
}

pub async fn stats(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<PoolStats>, Problem> {
    Ok(Json(api.pools.stats(&named(&name)?).await?))
}

pub async fn update(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    Body(update): Body<PoolUpdate>,
) -> Result<Json<Pool>, Problem> {
    Ok(Json(api.pools.update(&named(&name)?, &update).await?))
}

pub async fn delete(State(api): State<Api>, _: Operator, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    api.pools.delete(&named(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn drain(State(api): State<Api>, _: Operator, Path(name): Path<String>) -> Result<Json<PoolStats>, Problem> {
    set_draining(&api, &name, true).await
}

pub async fn enable(State(api): State<Api>, _: Operator, Path(name): Path<String>) -> Result<Json<PoolStats>, Problem> {
    set_draining(&api, &name, false).await
}

async fn set_draining(api: &Api, name: &str, draining: bool) -> Result<Json<PoolStats>, Problem> {
    let name = named(name)?;
    api.pools.drain(&name, draining).await?;
    Ok(Json(api.pools.stats(&name).await?))
}

pub async fn evict(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    Body(Eviction { count }): Body<Eviction>,
) -> Result<Json<Ended>, Problem> {
    Ok(Json(Ended { sandboxes: api.pools.evict(&named(&name)?, count).await? }))
}

pub async fn spawn(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Sandbox>), Problem> {
    let (pools, name) = (api.pools.clone(), named(&name)?);
    let made = tokio::spawn(async move { pools.spawn(&name).await }).await;
    let made = made.map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", e))?;
    Ok((StatusCode::CREATED, Json(made?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    phase: Option<Phase>,
    limit: Option<usize>,
}

pub async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Asked(Which { phase, limit }): Asked<Which>,
) -> Result<Json<Vec<Failure>>, Problem> {
    Ok(Json(api.pools.failures(&named(&name)?, phase, limit.unwrap_or(FAILURES)).await?))
}
