//! What the agent answers over HTTP/1.1: on its socket to root, who may do all; over TCP to agents, by their tokens. One file per
//! resource; [`problem`] tells errors, [`auth`] who asks, [`input`] reads bodies and queries, [`types`] are the bodies.

pub mod auth;
mod claims;
mod events;
mod exec;
mod files;
mod health;
mod input;
pub mod limits;
mod logs;
mod pools;
pub mod problem;
mod sandboxes;
pub mod serve;
mod stall;
pub mod tls;
mod trace;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use tokio::sync::Semaphore;

use crate::egress_controller::EgressController;
use crate::pools::WarmPoolManager;
use crate::ports::Ports;
use crate::runtime::Runtime;
use crate::sandboxes::SandboxManager;
use auth::Auth;
use problem::Problem;

pub use serve::{Listeners, listen, serve};

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    ports: Arc<Ports>,
    pools: WarmPoolManager,
    sandboxes: SandboxManager,
    egress: EgressController,
    auth: Arc<Auth>,
    /// Who listens to events over TCP.
    listeners: Arc<Semaphore>,
}

impl Api {
    /// Over a node.
    pub fn new(runtime: &Runtime) -> Self {
        let ports = runtime.ports().clone();
        let auth = Arc::new(Auth::new(&ports));
        let listeners = Arc::new(Semaphore::new(ports.config.api.concurrent.div_ceil(4)));
        let Runtime { pools, sandboxes, egress, .. } = runtime.clone();
        Self { ports, pools, sandboxes, egress, auth, listeners }
    }

    /// All routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/health", get(health::health))
            .route("/metrics", get(health::metrics))
            .route("/v1/sandboxes", get(sandboxes::list).post(sandboxes::spawn).delete(sandboxes::terminate_all))
            .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::terminate))
            .route("/v1/sandboxes/{id}/logs", get(logs::logs))
            .route("/v1/sandboxes/{id}/files", get(files::get).put(files::put))
            .route("/v1/sandboxes/{id}/exec", get(exec::exec))
            .route("/v1/sandboxes/{id}/attach", get(exec::attach))
            .route("/v1/warm-pools", get(pools::list).post(pools::create))
            .route("/v1/warm-pools/{name}", get(pools::get).patch(pools::update).delete(pools::delete))
            .route("/v1/warm-pools/{name}/stats", get(pools::stats))
            .route("/v1/warm-pools/{name}/claims", post(claims::claim))
            .route("/v1/warm-pools/{name}/drain", post(pools::drain))
            .route("/v1/warm-pools/{name}/enable", post(pools::enable))
            .route("/v1/warm-pools/{name}/evictions", post(pools::evict))
            .route("/v1/warm-pools/{name}/members", post(pools::spawn))
            .route("/v1/warm-pools/{name}/logs", get(pools::logs))
            .route("/v1/events", get(events::events))
            .route("/v1/node", get(health::node).put(health::set_node))
            .route("/v1/runtimes", get(health::runtimes))
            .route("/v1/runtimes/{name}", put(health::set_runtime))
            .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "no-such-path", "there is nothing at this path") })
            .method_not_allowed_fallback(|| async {
                Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method-not-allowed",
                    "this path does not take this method",
                )
            })
            .with_state(self)
    }
}
