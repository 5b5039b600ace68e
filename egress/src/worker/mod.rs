//! The half without privileges: answers the sandboxes' DNS questions and carries their connections. What it reads was written
//! by sandboxes and strangers. It knows a sandbox by its address, which the fence has made sure of.

pub mod authz;
mod confine;
pub mod control;
pub mod dns;
pub mod gate;
mod metrics;
mod run;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use run::{WorkerFailed, run};

use crate::policy::{CompiledPolicy, Decision, Flow, Fqdn, Protocol};
use crate::protocol::SandboxKey;

/// A sandbox, as the worker knows it.
#[derive(Debug)]
pub struct Binding {
    /// Which.
    pub sandbox: SandboxKey,
    /// For whom it works (a SPIFFE ID).
    pub agent: Option<String>,
    /// Changes with every policy; `None` once it is detached. Whoever carries a flow for it watches this, and cuts the flow
    /// when it is not allowed any more.
    pub effective: watch::Receiver<Option<Arc<Effective>>>,
}

/// What holds for a sandbox now.
#[derive(Debug)]
pub struct Effective {
    /// What it may do.
    pub policy: CompiledPolicy,
    /// Counts its policies.
    pub generation: u64,
}

impl Effective {
    /// Decides, and counts how long that took.
    pub fn check(&self, flow: &Flow<'_>) -> Decision<'_> {
        let began = Instant::now();
        let decision = self.policy.check(flow);
        metrics::CHECK_LATENCY.observe(began.elapsed().as_secs_f64());
        decision
    }
}

/// The sandboxes by their addresses.
#[derive(Debug, Default)]
pub struct Bindings {
    by_address: RwLock<HashMap<IpAddr, Arc<Binding>>>,
}

impl Bindings {
    /// The sandbox that sends from an address.
    pub fn of(&self, address: IpAddr) -> Option<Arc<Binding>> {
        self.by_address.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// Makes a sandbox known by its addresses, in place of what was known by them.
    pub fn put(&self, addresses: &[IpAddr], binding: &Arc<Binding>) {
        let mut all = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        all.extend(addresses.iter().map(|address| (*address, binding.clone())));
    }

    /// Forgets a sandbox.
    pub fn remove(&self, sandbox: &SandboxKey) {
        let mut all = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, binding| binding.sandbox != *sandbox);
    }
}

/// What a flow, or a question for a name, came to. Told to whoever keeps the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Whose it was.
    pub sandbox: SandboxKey,
    /// To where: a name, or an address.
    pub destination: String,
    /// To which port; 0 where only the name was asked for.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
    /// What it came to.
    pub outcome: Outcome,
    /// The rule that decided.
    pub rule: Option<String>,
    /// The generation of the policy that did.
    pub generation: u64,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was let through.
    Allowed,
    /// It was refused, and why.
    Denied(String),
    /// The decision point was asked.
    AuthzRequired,
}

/// Where attempts are told. Never blocks; what finds no room is counted.
pub trait Attempts: Send + Sync {
    /// Tells one.
    fn tell(&self, attempt: Attempt);
}

/// May a connection be made that a rule wants a decision on?
#[allow(async_fn_in_trait)] // one implementation at a time, never boxed
pub trait Authorizer: Send + Sync {
    /// Asks the decision point. Whatever goes wrong is an error, and an error is a refusal.
    fn authorize(
        &self,
        binding: &Binding,
        destination: Authorizable<'_>,
        port: u16,
    ) -> impl Future<Output = Result<(), Unauthorized>> + Send;
}

/// What a decision is wanted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Authorizable<'a> {
    /// A host by name.
    Name(&'a Fqdn),
    /// An address.
    Address(IpAddr),
}

/// A refusal, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// The decision point said no.
    #[error("the decision point refused it")]
    Refused,
    /// It gave no decision.
    #[error("the decision point gave no decision: {0}")]
    Undecided(String),
}
