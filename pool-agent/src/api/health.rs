//! `/health`, `/metrics`, `/v1/node` and `/v1/runtimes`: how the node is. Each component is really asked, all at once, with a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Api;
use super::auth::Operator;
use super::input::{At, Body};
use super::problem::Problem;
use super::route::{Access, Route, get, put};
use super::types::{Health, HealthStatus, Node, Runtime};
use crate::admission::drain;
use crate::config;
use crate::error::SpawnError;
use crate::ports::Ports;
use crate::spec::Backend;
use crate::store::Drain;

/// Whoever does not answer in time is not well.
const DEADLINE: Duration = Duration::from_secs(2);
const OK: &str = "ok";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn routes() -> Vec<Route> {
    vec![
        get("/health", health)
            .named("getHealth", "How the node is: each component is really asked.")
            .may(Access::Anyone)
            .answers::<Health>(StatusCode::OK, "All are well.")
            .answers::<Health>(StatusCode::SERVICE_UNAVAILABLE, "Some are not, and what is wrong with them."),
        get("/metrics", metrics)
            .named("getMetrics", "What is counted.")
            .may(Access::Anyone)
            .answers_bytes(OPENMETRICS, "OpenMetrics."),
        get("/v1/runtimes", runtimes)
            .named("listRuntimes", "What isolates sandboxes here, and whether it makes any.")
            .may(Access::Anyone)
            .answers::<BTreeMap<String, Runtime>>(StatusCode::OK, "By name.")
            .problems(&[(503, "store-unavailable")]),
        put("/v1/runtimes/{name}", set_runtime)
            .named("setRuntime", "Drains a runtime, or enables it.")
            .parameter::<Backend>("name", "Which.")
            .body::<Runtime>()
            .answers::<Runtime>(StatusCode::OK, "As it is now.")
            .problems(&[(404, "runtime-not-found"), (503, "store-unavailable")]),
        get("/v1/node", node)
            .named("getNode", "Which node this is, and whether it takes work.")
            .may(Access::Anyone)
            .answers::<Node>(StatusCode::OK, "As it is.")
            .problems(&[(503, "store-unavailable")]),
        put("/v1/node", set_node)
            .named("setNode", "Drains the node, or enables it.")
            .body::<Runtime>()
            .answers::<Node>(StatusCode::OK, "As it is now.")
            .problems(&[(503, "store-unavailable")]),
    ]
}

async fn health(State(api): State<Api>) -> (StatusCode, Json<Health>) {
    let ports = &api.ports;
    let drains = async { tokio::time::timeout(DEADLINE, ports.store.drained(&ports.node)).await };
    let (containerd, store, egress, drains) =
        tokio::join!(containerd(ports), store(ports), said(api.egress.fences()), drains);
    let audit = ports.audit.trouble().unwrap_or_else(|| OK.to_owned());
    let database = match ports.config.store {
        config::Store::Sqlite {} => "sqlite",
        config::Store::Etcd { .. } => "etcd",
    };
    let components =
        BTreeMap::from([("audit", audit), ("containerd", containerd), (database, store), ("egress", egress)]);
    let well = |name: &str| components.get(name).is_some_and(|said| said == OK);
    let status = match (well("containerd") && well(database), well("egress") && well("audit")) {
        (true, true) => HealthStatus::Healthy,
        (true, false) => HealthStatus::Degraded, // sandboxes without a network can be made still, and records wait
        (false, _) => HealthStatus::Unhealthy,
    };
    let code = match status {
        HealthStatus::Healthy => StatusCode::OK,
        HealthStatus::Degraded | HealthStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    let components = components.into_iter().map(|(name, said)| (name.to_owned(), said)).collect();
    let draining = matches!(drains, Ok(Ok(drains)) if is_whole(&drains));
    (code, Json(Health { status, components, draining }))
}

async fn said<T, E: std::error::Error>(asked: impl Future<Output = Result<T, E>>) -> String {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(_)) => OK.to_owned(),
        Ok(Err(error)) => trust::chain::chain(&error),
        Err(_) => format!("no answer within {DEADLINE:?}"),
    }
}

async fn containerd(ports: &Ports) -> String {
    said(ports.maker.containers.version()).await
}

async fn store(ports: &Ports) -> String {
    said(ports.store.health()).await
}

async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let egress = match tokio::time::timeout(DEADLINE, api.egress.metrics()).await {
        Ok(Ok(text)) => Some(text),
        Ok(Err(_)) | Err(_) => None, // said by egress_up
    };
    ([(CONTENT_TYPE, OPENMETRICS)], api.ports.metrics.text(egress.as_deref()))
}

async fn runtimes(State(api): State<Api>) -> Result<Json<BTreeMap<String, Runtime>>, Problem> {
    let drains = api.ports.store.drained(&api.ports.node).await.map_err(SpawnError::Store)?;
    let drained = |backend: Backend| crate::admission::drained(&drains, backend).is_some();
    Ok(Json(Backend::ALL.map(|backend| (backend.to_string(), Runtime { drained: drained(backend) })).into()))
}

async fn set_runtime(
    State(api): State<Api>,
    _: Operator,
    At(name): At<String>,
    Body(asked): Body<Runtime>,
) -> Result<Json<Runtime>, Problem> {
    let backend: Backend = name.parse().map_err(|e| Problem::new(StatusCode::NOT_FOUND, "runtime-not-found", e))?;
    set_drained(&api, Some(backend), asked.drained).await?;
    Ok(Json(asked))
}

async fn node(State(api): State<Api>) -> Result<Json<Node>, Problem> {
    let drains = api.ports.store.drained(&api.ports.node).await.map_err(SpawnError::Store)?;
    Ok(Json(Node { node: api.ports.node.clone(), drained: is_whole(&drains) }))
}

async fn set_node(
    State(api): State<Api>,
    _: Operator,
    Body(Runtime { drained }): Body<Runtime>,
) -> Result<Json<Node>, Problem> {
    set_drained(&api, None, drained).await?;
    Ok(Json(Node { node: api.ports.node.clone(), drained }))
}

fn is_whole(drains: &[Drain]) -> bool {
    drains.iter().any(|drain| drain.backend.is_none())
}

async fn set_drained(api: &Api, backend: Option<Backend>, drained: bool) -> Result<(), Problem> {
    let drain = drain(&api.ports.node, backend);
    api.ports.store.set_drained(&drain, drained).await.map_err(SpawnError::Store)?;
    tracing::info!(backend = backend.map(tracing::field::display), drained, "by the operator");
    api.pools.look();
    Ok(())
}
