//! `/v1/sandboxes`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Api;
use super::auth::{Operator, Via};
use super::exec::allowed;
use super::input::{Asked, At, Body};
use super::problem::{Problem, SPAWN};
use super::route::{Access, Route, delete, get, post};
use super::types::{Ended, SandboxView, Sandboxes, SpawnRequest};
use crate::ending::Manner;
use crate::labels::LabelSelector;
use crate::sandbox::{Phase, Sandbox};
use crate::store::Filter;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// In this phase, in any case.
    #[schemars(with = "Option<Phase>")]
    status: Option<String>,
    /// With these labels.
    #[schemars(with = "Option<LabelSelector>")]
    selector: Option<String>,
    /// No more than so many, the oldest.
    limit: Option<usize>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct How {
    /// Without asking it first.
    #[serde(default)]
    force: bool,
}

/// Of an id in a path.
pub const ID: &str = "Its id, or its name.";
/// What may come of it where a sandbox is looked up.
pub const LOOKED_UP: [(u16, &str); 2] = [(404, "sandbox-not-found"), (503, "store-unavailable")];

pub fn routes() -> Vec<Route> {
    let ended = [(404, "sandbox-not-found"), (409, "sandbox-busy"), (409, "wrong-phase"), (503, "store-unavailable")];
    vec![
        get("/v1/sandboxes", list)
            .named("listSandboxes", "The node's sandboxes, with what they use.")
            .may(Access::Anyone)
            .query::<Which>()
            .answers::<Sandboxes>(StatusCode::OK, "Oldest first.")
            .problems(&[(503, "store-unavailable")]),
        post("/v1/sandboxes", spawn)
            .named("spawnSandbox", "Makes a sandbox, and answers when it runs.")
            .may(Access::Agent)
            .body::<SpawnRequest>()
            .answers::<Sandbox>(StatusCode::CREATED, "It runs.")
            .problems(&SPAWN),
        delete("/v1/sandboxes", terminate_all)
            .named(
                "terminateSandboxes",
                "Ends all sandboxes that somebody has; with force those that wait in pools, too.",
            )
            .query::<How>()
            .answers::<Ended>(StatusCode::OK, "These have ended.")
            .problems(&[(503, "store-unavailable")]),
        get("/v1/sandboxes/{id}", get_one)
            .named("getSandbox", "A sandbox, with what it uses.")
            .may(Access::Anyone)
            .parameter::<String>("id", ID)
            .answers::<SandboxView>(StatusCode::OK, "The sandbox.")
            .problems(&LOOKED_UP),
        delete("/v1/sandboxes/{id}", terminate)
            .named("terminateSandbox", "Ends a sandbox. A graceful end takes up to the grace period.")
            .may(Access::Agent)
            .parameter::<String>("id", ID)
            .query::<How>()
            .answers::<Sandbox>(StatusCode::OK, "As it was when it ended.")
            .problems(&ended),
    ]
}

impl How {
    fn manner(&self) -> Manner {
        if self.force { Manner::Forced } else { Manner::Graceful }
    }
}

async fn list(
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

async fn spawn(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
    Body(request): Body<SpawnRequest>,
) -> Result<(StatusCode, Json<Sandbox>), Problem> {
    let who = api.auth.who(via, &headers, request.spec.backend).await?;
    let caller = who.caller(request.agent.clone())?;
    Ok((StatusCode::CREATED, Json(api.sandboxes.spawn(request, caller.agent).await?)))
}

async fn get_one(State(api): State<Api>, At(id): At<String>) -> Result<Json<SandboxView>, Problem> {
    Ok(Json(api.sandboxes.view(&id).await?))
}

async fn terminate(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    At(id): At<String>,
    headers: HeaderMap,
    Asked(how): Asked<How>,
) -> Result<Json<Sandbox>, Problem> {
    allowed(&api, via, &headers, &id).await?;
    Ok(Json(api.sandboxes.terminate(&id, how.manner()).await?))
}

async fn terminate_all(State(api): State<Api>, _: Operator, Asked(how): Asked<How>) -> Result<Json<Ended>, Problem> {
    Ok(Json(Ended { sandboxes: api.sandboxes.terminate_all(how.manner()).await? }))
}
