//! `/v1/warm-pools`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use trust::id::PoolName;

use super::Api;
use super::auth::Operator;
use super::input::{Asked, At, Body};
use super::problem::{Problem, SPAWN};
use super::route::{self, Access, Route, patch, post};
use super::types::{Ended, Eviction, PoolRequest, PoolStats, PoolUpdate, Pools};
use crate::pool::template::{Origin, Pool};
use crate::sandbox::{Phase, Sandbox};
use crate::store::Failure;

/// Failures that are told where nobody says how many.
const FAILURES: usize = 50;

pub fn routes() -> Vec<Route> {
    let found = [(400, "invalid-name"), (404, "pool-not-found"), (503, "store-unavailable")];
    let of = |route: Route| route.parameter::<PoolName>("name", "The pool's name.").problems(&found);
    vec![
        route::get("/v1/warm-pools", list)
            .named("listPools", "The pools, and how they stand.")
            .may(Access::Anyone)
            .answers::<Pools>(StatusCode::OK, "By name.")
            .problems(&[(503, "store-unavailable")]),
        post("/v1/warm-pools", create)
            .named("createPool", "Makes a pool.")
            .body::<PoolRequest>()
            .answers::<Pool>(StatusCode::CREATED, "The pool.")
            .problems(&[
                (409, "pool-exists"),
                (422, "pool-invalid"),
                (422, "policy-invalid"),
                (503, "store-unavailable"),
            ]),
        of(route::get("/v1/warm-pools/{name}", get))
            .named("getPool", "A pool, as it was asked for.")
            .may(Access::Anyone)
            .answers::<Pool>(StatusCode::OK, "The pool."),
        of(patch("/v1/warm-pools/{name}", update))
            .named("updatePool", "Changes a pool; what is left out stays.")
            .body::<PoolUpdate>()
            .answers::<Pool>(StatusCode::OK, "The pool.")
            .problems(&[(409, "pool-of-file"), (422, "pool-invalid"), (422, "policy-invalid")]),
        of(route::delete("/v1/warm-pools/{name}", delete))
            .named("deletePool", "Takes a pool away, with the members that wait in it.")
            .answers_nothing(StatusCode::NO_CONTENT, "It is gone.")
            .problems(&[(409, "pool-of-file")]),
        of(route::get("/v1/warm-pools/{name}/stats", stats))
            .named("getPoolStats", "How a pool stands.")
            .may(Access::Anyone)
            .answers::<PoolStats>(StatusCode::OK, "Now."),
        of(route::get("/v1/warm-pools/{name}/logs", logs))
            .named("getPoolLogs", "What failed in a pool.")
            .may(Access::Anyone)
            .query::<Which>()
            .answers::<Vec<Failure>>(StatusCode::OK, "The newest first."),
        of(post("/v1/warm-pools/{name}/drain", drain))
            .named("drainPool", "No more claims; what waits is taken down.")
            .answers::<PoolStats>(StatusCode::OK, "How it stands."),
        of(post("/v1/warm-pools/{name}/enable", enable))
            .named("enablePool", "Ends the drain of a pool.")
            .answers::<PoolStats>(StatusCode::OK, "How it stands."),
        of(post("/v1/warm-pools/{name}/evictions", evict))
            .named("evictMembers", "Takes down members that wait, the oldest first.")
            .body::<Eviction>()
            .answers::<Ended>(StatusCode::OK, "These.")
            .problems(&SPAWN),
        of(post("/v1/warm-pools/{name}/members", spawn))
            .named("spawnMember", "Makes one more member now.")
            .answers::<Sandbox>(StatusCode::CREATED, "It waits for a claim.")
            .problems(&SPAWN)
            .problems(&[(500, "bug")]),
    ]
}

/// A pool's name, as it stands in a path.
pub fn named(name: &str) -> Result<PoolName, Problem> {
    name.parse().map_err(|e: trust::id::BadId| Problem::new(StatusCode::BAD_REQUEST, "invalid-name", e))
}

async fn list(State(api): State<Api>) -> Result<Json<Pools>, Problem> {
    Ok(Json(Pools { pools: api.pools.all_stats().await? }))
}

async fn create(
    State(api): State<Api>,
    _: Operator,
    Body(asked): Body<PoolRequest>,
) -> Result<(StatusCode, Json<Pool>), Problem> {
    let PoolRequest { name, template, scaling } = asked;
    let created_at = api.ports.now();
    let pool = Pool { name, template, scaling, draining: false, origin: Origin::Api, created_at, revision: 0 };
    Ok((StatusCode::CREATED, Json(api.pools.create(&pool).await?)))
}

async fn get(State(api): State<Api>, At(name): At<String>) -> Result<Json<Pool>, Problem> {
    Ok(Json(api.pools.get(&named(&name)?).await?))
}

async fn stats(State(api): State<Api>, At(name): At<String>) -> Result<Json<PoolStats>, Problem> {
    Ok(Json(api.pools.stats(&named(&name)?).await?))
}

async fn update(
    State(api): State<Api>,
    _: Operator,
    At(name): At<String>,
    Body(update): Body<PoolUpdate>,
) -> Result<Json<Pool>, Problem> {
    Ok(Json(api.pools.update(&named(&name)?, &update).await?))
}

async fn delete(State(api): State<Api>, _: Operator, At(name): At<String>) -> Result<StatusCode, Problem> {
    api.pools.delete(&named(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn drain(State(api): State<Api>, _: Operator, At(name): At<String>) -> Result<Json<PoolStats>, Problem> {
    set_draining(&api, &name, true).await
}

async fn enable(State(api): State<Api>, _: Operator, At(name): At<String>) -> Result<Json<PoolStats>, Problem> {
    set_draining(&api, &name, false).await
}

async fn set_draining(api: &Api, name: &str, draining: bool) -> Result<Json<PoolStats>, Problem> {
    let name = named(name)?;
    api.pools.drain(&name, draining).await?;
    Ok(Json(api.pools.stats(&name).await?))
}

async fn evict(
    State(api): State<Api>,
    _: Operator,
    At(name): At<String>,
    Body(Eviction { count }): Body<Eviction>,
) -> Result<Json<Ended>, Problem> {
    Ok(Json(Ended { sandboxes: api.pools.evict(&named(&name)?, count).await? }))
}

async fn spawn(
    State(api): State<Api>,
    _: Operator,
    At(name): At<String>,
) -> Result<(StatusCode, Json<Sandbox>), Problem> {
    let (pools, name) = (api.pools.clone(), named(&name)?);
    let made = tokio::spawn(async move { pools.spawn(&name).await }).await;
    let made = made.map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", e))?;
    Ok((StatusCode::CREATED, Json(made?)))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// In this phase.
    phase: Option<Phase>,
    /// No more than so many; 50 where nothing is said.
    limit: Option<usize>,
}

async fn logs(
    State(api): State<Api>,
    At(name): At<String>,
    Asked(Which { phase, limit }): Asked<Which>,
) -> Result<Json<Vec<Failure>>, Problem> {
    Ok(Json(api.pools.failures(&named(&name)?, phase, limit.unwrap_or(FAILURES)).await?))
}
