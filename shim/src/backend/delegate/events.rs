//! What a downstream shim tells of itself. containerd hears of starts, execs and ends from our own table, in order and
//! once each, whether the downstream is silent, early or says things twice; from here comes only what no call tells.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};

const OUT_OF_MEMORY: &str = "/tasks/oom";

/// The end of the line for a downstream shim's events.
#[derive(Clone, Default)]
pub struct Heard {
    /// Out-of-memory kills so far.
    pub oom_kills: Arc<AtomicU64>,
}

#[async_trait]
impl Events for Heard {
    async fn forward(&self, _: &TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
        let topic = &req.envelope.topic;
        tracing::debug!(topic, "the downstream shim says");
        if topic == OUT_OF_MEMORY {
            self.oom_kills.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Empty::new())
    }
}

/// A server that listens until it is dropped. The lock is never taken: it makes the server one that may be shared.
pub struct Listening(#[expect(dead_code, reason = "held, for it ends when it is dropped")] Mutex<Server>);

/// Listens.
pub async fn listen(socket: &Path, heard: Heard) -> ttrpc::Result<Listening> {
    let _ = std::fs::remove_file(socket); // of a sandbox that could not be made
    let mut server =
        Server::new().bind(&format!("unix://{}", socket.display()))?.register_service(create_events(Arc::new(heard)));
    server.start().await?;
    Ok(Listening(Mutex::new(server)))
}
