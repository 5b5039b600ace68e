//! What the agent answers over HTTP/1.1: on its socket to root, who may do all; over TCP to agents, by their tokens. One file per
//! resource, with its routes and what is said of them ([`route`]), of which [`openapi`] makes the document; [`problem`] tells errors,
//! [`auth`] who asks, [`input`] reads bodies and queries, [`types`] are the bodies.

pub mod attestations;
pub mod audit;
pub mod auth;
mod claims;
mod events;
mod exec;
mod files;
mod health;
mod input;
pub mod keys;
pub mod limits;
mod logs;
mod openapi;
mod places;
pub mod policies;
mod pools;
pub mod problem;
mod route;
mod sandboxes;
pub mod serve;
mod stall;
pub mod tls;
mod trace;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use tokio::sync::Semaphore;

use crate::egress_controller::EgressController;
use crate::pools::WarmPoolManager;
use crate::ports::Ports;
use crate::runtime::Runtime;
use crate::sandboxes::SandboxManager;
use auth::Auth;
use problem::Problem;
use route::Route;

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

    /// Answers all routes.
    pub fn router(self) -> Router {
        let all = routes().into_iter();
        all.fold(Router::new(), |router, Route { path, handler, .. }| router.route(path, handler))
            .route_layer(from_fn(trace::routed))
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

/// All routes, with what is said of them: whoever adds a resource adds its routes here.
fn routes() -> Vec<Route> {
    let all = [
        openapi::routes(),
        health::routes(),
        sandboxes::routes(),
        logs::routes(),
        events::routes(),
        files::routes(),
        exec::routes(),
        pools::routes(),
        claims::routes(),
        keys::routes(),
        attestations::routes(),
        policies::routes(),
        audit::routes(),
    ];
    all.into_iter().flatten().collect()
}

/// Work that waits for files or a database, on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", e))
}
