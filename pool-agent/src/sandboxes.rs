//! `SandboxManager`: the node's sandboxes, whoever they were made for.

use std::sync::Arc;
use std::time::Instant;

use tracing::field::Empty;
use tracing::{Instrument, Span};
use trust::id::{AgentId, SandboxId};

use crate::admission::admit;
use crate::api::types::{SandboxView, SpawnRequest};
use crate::ending::{Manner, end, end_soon, give_up};
use crate::error::SpawnError;
use crate::logs::Position;
use crate::making::{First, fresh_id, make_in_turn};
use crate::pool::member::{Change, Input};
use crate::ports::Ports;
use crate::recovery::has_ended;
use crate::sandbox::{Phase, Sandbox};
use crate::store::{Filter, StoreError};
use crate::usage::Usages;

/// Of a log so much is given at most, in bytes: its end.
const LOG: u64 = 4 << 20;

/// The node's sandboxes.
#[derive(Clone)]
pub struct SandboxManager {
    ports: Arc<Ports>,
    usages: Arc<Usages>,
}

/// Why a sandbox is not found, or not ended.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Neither its id nor its name.
    #[error("there is no sandbox {0}")]
    NotFound(String),
    /// It is being made, bound or taken down.
    #[error("sandbox {0} is in hand: it is being made, claimed or ended; ask again")]
    Busy(SandboxId),
    /// Its output.
    #[error("the output of sandbox {0}")]
    Log(SandboxId, #[source] std::io::Error),
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SandboxManager {
    /// Over these ports.
    pub fn new(ports: Arc<Ports>) -> Self {
        Self { usages: Usages::new(ports.clone()), ports }
    }

    /// Makes a sandbox that runs at once. Goes on to its end, or that of its undo, when nobody waits for it any more.
    pub async fn spawn(&self, request: SpawnRequest, agent: Option<AgentId>) -> Result<Sandbox, SpawnError> {
        let this = self.clone();
        let span = tracing::info_span!("spawn", sandbox = Empty, image = %request.spec.image);
        let spawned = tokio::spawn(async move { this.spawn_here(request, agent).await }.instrument(span));
        spawned.await.unwrap_or(Err(SpawnError::Interrupted))
    }

    async fn spawn_here(&self, request: SpawnRequest, agent: Option<AgentId>) -> Result<Sandbox, SpawnError> {
        let (ports, began) = (&self.ports, Instant::now());
        let backend = request.spec.backend;
        if let Some(policy) = &request.spec.network_policy {
            ports.policies.resolve(&policy.to_ref()).map_err(|e| SpawnError::PolicyInvalid(e.to_string()))?;
        }
        admit(ports, backend).await?;
        if let Some(name) = &request.name
            && self.find(&name.to_string()).await.is_ok()
        {
            return Err(SpawnError::NameTaken(name.to_string()));
        }
        let id = fresh_id("sandbox")?;
        Span::current().record("sandbox", tracing::field::display(&id));
        let hand = ports.hands.take(&id).ok_or_else(|| SpawnError::NameTaken(id.to_string()))?;
        let mut wished = Sandbox::wished(id.clone(), ports.node.clone(), None, request.spec, ports.now());
        (wished.name, wished.agent) = (request.name, agent);
        let wished = ports.store.insert(&wished).await.map_err(SpawnError::Store)?;
        match make_in_turn(ports, &wished, First::Workload).await {
            Ok(made) => {
                let expires_at = wished.spec.lifetime().map(|after| ports.now().plus(after));
                let change = Change { attestation: made.attestation, expires_at, ..Change::default() };
                ports.metrics.spawned(backend.name(), began.elapsed());
                let started = ports.store.advance(&id, Input::Started(made.fence), change, ports.now()).await;
                drop(hand);
                // Its command may have ended while it was in hand: whoever heard of that could do nothing then.
                if let Some(status) = ports.exits.of(&id) {
                    end_soon(ports, &id, Input::ended("exited", has_ended(status)), Manner::Forced);
                }
                started.map_err(SpawnError::Store)
            }
            Err(error) => {
                give_up(ports, &hand, error.code(), error.to_string()).await;
                Err(error)
            }
        }
    }

    /// A sandbox by its id, or by its name.
    pub async fn find(&self, id_or_name: &str) -> Result<Sandbox, SandboxError> {
        if let Ok(id) = id_or_name.parse::<SandboxId>()
            && let Some(found) = self.ports.store.sandbox(&id).await?
        {
            return Ok(found);
        }
        let all = self.ports.store.sandboxes(&Filter::default()).await?;
        let named = all.into_iter().find(|s| s.name.as_ref().is_some_and(|name| name.to_string() == id_or_name));
        named.ok_or_else(|| SandboxError::NotFound(id_or_name.to_owned()))
    }

    /// The same, with what it uses.
    pub async fn view(&self, id_or_name: &str) -> Result<SandboxView, SandboxError> {
        let sandbox = self.find(id_or_name).await?;
        let usage = self.usages.of(&sandbox).await;
        Ok(SandboxView { sandbox, usage })
    }

    /// This node's sandboxes that fit, oldest first, with what they use.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<SandboxView>, SandboxError> {
        let filter = Filter { node: Some(self.ports.node.clone()), ..filter.clone() };
        let all = self.ports.store.sandboxes(&filter).await?;
        let used = self.usages.of_all().await;
        let view = |sandbox: Sandbox| SandboxView { usage: used.get(&sandbox.id).copied(), sandbox };
        Ok(all.into_iter().map(view).collect())
    }

    /// Ends a sandbox. A graceful end takes up to the grace period.
    pub async fn terminate(&self, id_or_name: &str, manner: Manner) -> Result<Sandbox, SandboxError> {
        let sandbox = self.find(id_or_name).await?;
        let hand = self.ports.hands.take(&sandbox.id).ok_or_else(|| SandboxError::Busy(sandbox.id.clone()))?;
        let ports = self.ports.clone();
        let ends = async move { end(&ports, &hand, Input::ended("terminated", "somebody ended it"), manner).await };
        let ended = tokio::spawn(ends.in_current_span());
        Ok(ended.await.unwrap_or(Err(StoreError::NotFound(sandbox.id)))?)
    }

    /// Ends all sandboxes of this node that somebody has: members that wait are their pools'.
    pub async fn terminate_all(&self, manner: Manner) -> Result<Vec<SandboxId>, SandboxError> {
        let filter = Filter::of_node(&self.ports.node);
        let mut ends = tokio::task::JoinSet::new();
        for sandbox in self.ports.store.sandboxes(&filter).await? {
            if sandbox.pool.is_some() && sandbox.claim.is_none() && manner == Manner::Graceful {
                continue;
            }
            let this = self.clone();
            ends.spawn(async move { this.terminate(&sandbox.id.to_string(), manner).await });
        }
        let mut ended = Vec::new();
        while let Some(done) = ends.join_next().await {
            match done {
                Ok(Ok(sandbox)) => ended.push(sandbox.id),
                Ok(Err(error)) => tracing::warn!(%error, "it is not ended"),
                Err(error) => tracing::error!(%error, "it is not ended"),
            }
        }
        ended.sort();
        Ok(ended)
    }

    /// What a sandbox has written: the end of it, and the position behind that.
    pub async fn log(&self, id: &SandboxId) -> Result<(Vec<u8>, Position), SandboxError> {
        let (logs, whose) = (self.ports.logs.clone(), id.clone());
        let read = tokio::task::spawn_blocking(move || logs.end(&whose, LOG)).await;
        read.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(|e| SandboxError::Log(id.clone(), e))
    }

    /// How many of `all` on this node are in each phase, for the metrics.
    pub fn count(&self, all: &[Sandbox]) {
        let count = |phase: Phase| (phase.name(), all.iter().filter(|s| s.phase == phase).count());
        self.ports.metrics.count_sandboxes(&Phase::ALL.map(count));
    }
}
