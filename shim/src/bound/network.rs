//! Where a sandbox may connect to: its policy, the fence that holds it to that, and a new statement whenever either changes.

use std::sync::Arc;

use egress::policy::{DEFAULT_POLICY, Policies};
use egress::protocol::{Fence, PolicyRef};
use serde_json::json;
use trust::attestation::predicate;
use trust::audit::Event;
use trust::digest::Digest;
use trust::identity::Identity;

use super::{Bound, State};
use crate::attest::{self, Network};
use crate::error::TaskError;
use crate::{fence, paths};

impl Bound {
    /// The workload may run from here on, behind its fence: no fence, no first instruction. A new statement before, if the one
    /// that was made in Create says something else.
    pub async fn starts(self: &Arc<Self>, pid: i32) -> Result<(), TaskError> {
        match attest::network(pid) {
            // ctr --cni and nerdctl wire the network between Create and Start.
            Network::Host if self.shares_network() => self.restate()?,
            Network::Wired | Network::Host => {
                let agent = self.agent().map(ToString::to_string);
                let attestation = self.state().current.as_ref().map(|current| current.digest);
                match fence::attach(&self.place, pid, agent, self.policy.clone(), attestation).await? {
                    Some(fence) => {
                        self.fenced(fence)?;
                        fence::watch(self, self.place.clone());
                    }
                    None => {
                        self.state().idle = true;
                        self.restate()?;
                    }
                }
            }
            Network::Sealed(_) => self.restate()?,
            Network::Gone => return Err(TaskError::NotFound(format!("the process of {}", self.place.group))),
        }
        self.record(vec![Event::SandboxStarted { pid: u32::try_from(pid).ok() }]);
        Ok(())
    }

    /// This fence stands around the sandbox now.
    pub fn fenced(&self, fence: Fence) -> Result<(), TaskError> {
        {
            let mut state = self.state();
            state.policy = fence.policy;
            state.fence = Some(fence);
        }
        self.restate()
    }

    /// Nothing of the sandbox's fence is left, if there was one.
    pub async fn unfence(&self) {
        if self.state().fence.take().is_some() {
            let place = self.place.clone();
            let _ = tokio::task::spawn_blocking(move || fence::detach(&place)).await; // it panics never
        }
    }

    /// A new statement, if the current one says something else than what is.
    fn restate(&self) -> Result<(), TaskError> {
        let changed = {
            let state = self.state();
            let Some((_, pid)) = state.facts.as_ref() else { return Ok(()) }; // it has ended
            let now = (state.standing(*pid), state.policy);
            state.current.as_ref().is_none_or(|current| (current.fence.clone(), current.policy) != now)
        };
        if changed { self.updated() } else { Ok(()) }
    }
}

impl State {
    /// What holds the sandbox's packets.
    pub(super) fn standing(&self, pid: i32) -> Option<predicate::Fence> {
        match attest::network(pid) {
            Network::Sealed(sealed) => Some(sealed),
            Network::Host => None,
            Network::Wired if self.idle => Some(attest::sealed(pid)),
            Network::Wired | Network::Gone => self
                .fence
                .as_ref()
                .map(|fence| predicate::Fence { mechanism: "nftables".into(), digest: fence.ruleset }),
        }
    }
}

/// The policy that holds where no request names one: the agent's own of the node's policies, else the node's default for
/// agents; of nobody, nothing passes.
pub(super) fn default_policy(identity: &Identity) -> PolicyRef {
    match (identity.default_policy(), identity.agent()) {
        (Some(name), _) => PolicyRef::Named(name.to_string()),
        (None, Some(_)) => PolicyRef::Named(DEFAULT_POLICY.to_owned()),
        (None, None) => PolicyRef::Inline(json!({"rules": []})),
    }
}

/// No sandbox is made with a policy that nobody could enforce.
pub(super) fn digest_of(policy: &PolicyRef) -> Result<Digest, TaskError> {
    let policy = Policies::new(paths::policies()).resolve(policy);
    policy.map(|policy| policy.digest()).map_err(|e| TaskError::Invalid(format!("network policy: {e}")))
}
