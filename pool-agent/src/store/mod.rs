//! What the node agent keeps: pools, sandboxes, what failed, what is drained, how many claims there were. One trait, honest for an
//! embedded database ([`sqlite`], the default) and for one that many nodes share ([`etcd`]); `contract` is one suite of promises, run on both.
//!
//! Each method is one transaction: done whole or not at all, also when the process is killed in it or the future is dropped (then
//! it may be done, and nobody has heard). Records carry their node; a node takes its own members only. Not here: what a phase
//! allows ([`crate::pool::member`]), when to make members ([`crate::pool::reconcile`]).

#[cfg(test)]
mod contract;
pub mod etcd;
#[cfg(test)]
pub mod memory;
pub mod sqlite;
mod take;
pub mod told;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::clock::Timestamp;
use trust::id::{AgentId, ClaimId, NodeId, PoolName, SandboxId};

use crate::labels::LabelSelector;
use crate::pool::member::{Change, Input, WrongPhase};
use crate::pool::target::Minute;
use crate::pool::template::Pool;
use crate::sandbox::{IdempotencyKey, Phase, Sandbox};
use crate::spec::Backend;

/// Of each pool so many failures are kept, the newest.
pub const FAILURES_KEPT: usize = 1000;
/// Counts of claims are kept so many minutes.
pub const MINUTES_KEPT: u64 = 60;

/// Where records are kept.
#[async_trait]
pub trait Store: Send + Sync {
    /// Keeps a pool whose revision is `pool.revision` there: 0 for one that must not be there yet. Gives it with its new revision.
    async fn put_pool(&self, pool: &Pool) -> Result<Pool, StoreError>;

    /// A pool by its name.
    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError>;

    /// All pools, by name.
    async fn pools(&self) -> Result<Vec<Pool>, StoreError>;

    /// A pool is no more, nor are its failures and counts; its members are not touched. Of which revision, or of any. False if there was none.
    async fn delete_pool(&self, name: &PoolName, revision: Option<u64>) -> Result<bool, StoreError>;

    /// Keeps a new sandbox; of one that is spawned for a claim its idempotency key, too. Gives it with its revision.
    async fn insert(&self, sandbox: &Sandbox) -> Result<Sandbox, StoreError>;

    /// A sandbox by its id.
    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError>;

    /// All sandboxes that fit, oldest first.
    async fn sandboxes(&self, filter: &Filter) -> Result<Vec<Sandbox>, StoreError>;

    /// Something happens to a sandbox: read, [`step`](crate::pool::member::step), write. Gives the new record.
    async fn advance(
        &self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError>;

    /// The record of a sandbox is no more, and its idempotency key free. Only of one that has ended: Terminating or Failed. False if there was none.
    async fn remove(&self, id: &SandboxId) -> Result<bool, StoreError>;

    /// The oldest member that is Ready, fits and was made by the pool's current template on the caller's node becomes the claim's. One
    /// transaction: of any number of takers at most one has it, and none has one of a pool that is draining or changed meanwhile.
    async fn take(&self, request: &TakeRequest) -> Result<Taken, StoreError>;

    /// Keeps a failure of a pool; the oldest beyond [`FAILURES_KEPT`] are forgotten.
    async fn note_failure(&self, pool: &PoolName, failure: &Failure) -> Result<(), StoreError>;

    /// The newest failures of a pool, newest first: in one phase or in all, at most so many.
    async fn failures(&self, pool: &PoolName, phase: Option<Phase>, most: usize) -> Result<Vec<Failure>, StoreError>;

    /// A node takes no more work, of one backend or of any; or takes it again.
    async fn set_drained(&self, drain: &Drain, drained: bool) -> Result<(), StoreError>;

    /// What is drained of a node.
    async fn drained(&self, node: &NodeId) -> Result<Vec<Drain>, StoreError>;

    /// Counts claims of a pool on a node, in the minute of `at`; counts that are older than [`MINUTES_KEPT`] are forgotten.
    async fn count_claims(&self, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Result<(), StoreError>;

    /// Claims of a pool on a node by minute, from this one on, oldest first.
    async fn claims(&self, pool: &PoolName, node: &NodeId, from_minute: u64) -> Result<Vec<Minute>, StoreError>;

    /// Asks it for something, as `/health` does.
    async fn health(&self) -> Result<(), StoreError>;
}

/// Which sandboxes; what is `None` fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Members of this pool.
    pub pool: Option<PoolName>,
    /// In this phase.
    pub phase: Option<Phase>,
    /// On this node.
    pub node: Option<NodeId>,
    /// With labels that it chooses.
    pub selector: LabelSelector,
}

impl Filter {
    /// All on a node.
    pub fn of_node(node: &NodeId) -> Self {
        Self { node: Some(node.clone()), ..Self::default() }
    }

    /// Members of a pool on a node.
    pub fn members(pool: &PoolName, node: &NodeId) -> Self {
        Self { pool: Some(pool.clone()), node: Some(node.clone()), ..Self::default() }
    }

    /// Whether a sandbox fits.
    pub fn fits(&self, sandbox: &Sandbox) -> bool {
        self.pool.as_ref().is_none_or(|pool| sandbox.is_member_of(pool))
            && self.phase.is_none_or(|phase| sandbox.phase == phase)
            && self.node.as_ref().is_none_or(|node| sandbox.node == *node)
            && self.selector.matches(&sandbox.spec.labels)
    }
}

/// Who wants a member, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeRequest {
    /// Of this pool.
    pub pool: PoolName,
    /// On this node: the caller's.
    pub node: NodeId,
    /// This claim.
    pub claim: ClaimId,
    /// By which it may be repeated. It is the agent's own: another's equal key is another key.
    pub idempotency_key: Option<IdempotencyKey>,
    /// For whom.
    pub agent: Option<AgentId>,
    /// With labels that it chooses.
    pub selector: LabelSelector,
    /// Of this backend, where the caller insists.
    pub backend: Option<Backend>,
    /// Now.
    pub now: Timestamp,
}

/// What a claim found.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// This member is the claim's, now Claimed.
    Taken(Box<Sandbox>),
    /// This one was taken before by the same agent with the same key, from the same pool; it may have gone on since.
    AlreadyTaken(Box<Sandbox>),
    /// None fits; so many are ready that do not.
    Empty {
        /// Of the current template, on this node.
        ready: usize,
    },
    /// The pool, its backend or the node drains.
    Draining,
    /// There is no such pool.
    NoSuchPool,
}

/// Something failed that belongs to a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// On which node.
    pub node: NodeId,
    /// To which sandbox.
    pub sandbox: SandboxId,
    /// In which phase it was.
    pub phase: Phase,
    /// For programs, such as `image-not-found`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What is drained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// A node …
    pub node: NodeId,
    /// … with regard to one backend, or as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// Why something is not kept, or not known.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer, is full or is locked: try again later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// It holds something that this version does not write.
    #[error("the database is damaged, or of another version: {0}")]
    Damaged(String),
    /// It cannot be opened.
    #[error("the database {place} cannot be opened: {why}")]
    Open {
        /// The file, or the endpoints.
        place: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Somebody changed it meanwhile: read it again.
    #[error("{0} has been changed meanwhile: read it again")]
    Conflict(String),
    /// A sandbox with this id is there already.
    #[error("sandbox {0} is there already")]
    Exists(SandboxId),
    /// The claim that it was to be made for has this one already.
    #[error("the claim was made before, and has sandbox {0}")]
    AlreadyClaimed(SandboxId),
    /// There is no sandbox with this id.
    #[error("there is no sandbox {0}")]
    NotFound(SandboxId),
    /// It cannot happen to it now.
    #[error(transparent)]
    WrongPhase(#[from] WrongPhase),
}

/// A record as it is kept.
fn to_text<T: Serialize>(record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|e| StoreError::Damaged(format!("a record cannot be written: {e}")))
}

/// A record that was kept, with the revision that the database has of it.
fn from_text<T: serde::de::DeserializeOwned>(what: impl std::fmt::Display, text: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(text).map_err(|e| StoreError::Damaged(format!("{what}: {e}")))
}
