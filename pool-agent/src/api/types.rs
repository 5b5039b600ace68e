//! The bodies of the API that are not records themselves (`sandbox::Sandbox`, `spec::SandboxSpec`, `pool::Pool`): what is asked,
//! and what is answered. Parsed here, so that what a handler gets is valid. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::id::{AgentId, PoolName, SandboxName};

use crate::pool::template::{Scaling, Template};
use crate::sandbox::{IdempotencyKey, Sandbox};
use crate::schema::{self, Span};
use crate::spec::{AbsolutePath, NetworkPolicy, SandboxSpec, SecretRef, User};

/// `POST /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpawnRequest {
    /// What it is to be.
    #[serde(deserialize_with = "crate::object::only")]
    pub spec: SandboxSpec,
    /// As people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SandboxName>,
    /// For whom it works. Over TCP it is whoever the token names, and need not be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
}

/// A sandbox, and what it uses now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxView {
    /// The record.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// What it uses; none while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a sandbox uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Of one processor, in percent, since it was looked at before; of its whole life the first time.
    pub cpu_percent: f64,
    /// In bytes.
    pub memory_bytes: u64,
}

/// `GET /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sandboxes {
    /// Oldest first.
    pub sandboxes: Vec<SandboxView>,
}

/// What a claim does where no member is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnEmpty {
    /// Makes a sandbox by the pool's template.
    #[default]
    Cold,
    /// Waits for a member, in order of arrival.
    Wait,
    /// Fails.
    Fail,
}

/// `POST /v1/warm-pools/{name}/claims`. All of it may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimRequest {
    /// For whom. Over TCP it is whoever the token names, and need not be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Asked again by the same key, the same sandbox is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<IdempotencyKey>,
    /// Where no member is ready.
    pub on_empty: OnEmpty,
    /// How long the claim may take in all; 30 s where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub timeout: Option<Duration>,
    /// What the sandbox may connect to; else the template's policy, else the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// What it may know.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::spec::secrets")]
    #[schemars(schema_with = "schema::secrets")]
    pub secrets: Vec<SecretRef>,
    /// Which members will do: `a=b,c!=d` over the pool's and the template's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<crate::labels::LabelSelector>,
    /// What is to run in it, in place of the template's command; its end is the sandbox's.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::spec::words")]
    #[schemars(schema_with = "schema::command")]
    pub command: Vec<String>,
    /// Added to the template's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "crate::spec::environment")]
    #[schemars(schema_with = "schema::environment")]
    pub env: BTreeMap<String, String>,
    /// Where the command runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<AbsolutePath>,
    /// As whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// It ends so long after the claim.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub ttl: Option<Duration>,
}

/// A claim's answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claimed {
    /// What was claimed: it is the caller's now.
    pub sandbox: Sandbox,
    /// Whether a member was ready.
    pub warm: bool,
    /// From the question to the answer, in microseconds, by step.
    pub took: Took,
}

/// How long a claim's steps took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Took {
    /// Until there was a sandbox to bind: waiting, and making one, among it.
    pub take: u64,
    /// Policy, identity, secrets, statement and record, at the sandbox's shim.
    pub bind: u64,
    /// Keeping that.
    pub keep: u64,
    /// Starting the claim's command; 0 without one.
    pub start: u64,
    /// In all.
    pub total: u64,
    /// What of `bind` each of its steps took.
    #[serde(default)]
    pub steps: Steps,
}

/// How long the shim's part of a claim took by step, in microseconds (docs/sandbox.proto, `Took`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// Asking who the agent is.
    pub identity: u64,
    /// Reading the policy.
    pub policy: u64,
    /// Asking for the secrets.
    pub secrets: u64,
    /// A new key and token.
    pub token: u64,
    /// The change of the fence, read back.
    pub fence: u64,
    /// Replacing what is in `/run/creto`.
    pub delivery: u64,
    /// The statement.
    pub attestation: u64,
    /// The record; the disk is not waited for.
    pub record: u64,
}

impl From<trust::sandbox_api::Took> for Steps {
    fn from(took: trust::sandbox_api::Took) -> Self {
        let trust::sandbox_api::Took { identity, policy, secrets, token, fence, delivery, attestation, record } = took;
        Self { identity, policy, secrets, token, fence, delivery, attestation, record }
    }
}

/// `POST /v1/warm-pools`: what a file of pools.d says, and its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolRequest {
    /// Its name.
    pub name: PoolName,
    /// What its members are made of.
    #[serde(deserialize_with = "crate::object::only")]
    pub template: Template,
    /// How many there should be.
    #[serde(deserialize_with = "crate::object::only")]
    pub scaling: Scaling,
}

/// `PATCH /v1/warm-pools/{name}`: what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PoolUpdate {
    /// The fewest members that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ready: Option<u32>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ready: Option<u32>,
    /// The oldest that a member may be.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub max_age: Option<Duration>,
    /// Whether the number follows the claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_scaling_enabled: Option<bool>,
    /// Ready members for each claim a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_scaling_headroom: Option<f64>,
    /// Another template: members of the old one are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<SandboxSpec>,
}

/// How a pool stands. `pool stats` prints it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStats {
    /// Which.
    pub pool: PoolName,
    /// Its bounds.
    pub scaling: Scaling,
    /// No claims any more.
    pub draining: bool,
    /// Members that a claim would get.
    pub ready: usize,
    /// Members that are claimed, or run.
    pub claimed: usize,
    /// Members that are being made.
    pub warming: usize,
    /// Claims in the last minute.
    pub claims_per_minute: f64,
    /// Of the last claims that found a member, in milliseconds; none where there was none.
    pub avg_claim_millis: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99_claim_millis: Option<f64>,
    /// Claims that found a member, of all; none where there was none.
    pub hit_ratio: Option<f64>,
    /// Of the oldest member that is ready.
    pub oldest_seconds: Option<u64>,
}

/// `GET /v1/warm-pools`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pools {
    /// By name.
    pub pools: Vec<PoolStats>,
}

/// `POST /v1/warm-pools/{name}/evictions`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Eviction {
    /// How many members, the oldest first.
    pub count: usize,
}

/// What was evicted, or ended.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// Their ids.
    pub sandboxes: Vec<trust::id::SandboxId>,
}

/// `GET /v1/node`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its name.
    pub node: trust::id::NodeId,
    /// Whether it takes no more work.
    pub drained: bool,
}

/// `PUT /v1/runtimes/{name}`, `PUT /v1/node`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Whether it makes no sandboxes any more.
    pub drained: bool,
}

/// `GET /health`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `healthy`; `degraded` where what is there goes on and something new may fail; `unhealthy` where nothing can be made.
    pub status: HealthStatus,
    /// `ok`, or what is wrong, of each.
    pub components: BTreeMap<String, String>,
    /// An operator has drained the node: it takes no more work, however well it is.
    #[serde(default)]
    pub draining: bool,
}

/// All in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "docstring above")]
pub enum HealthStatus {
    Healthy,
    Degraded,
    Unhealthy,
}
