//! Where a sandbox may connect to: its policy, the fence that holds it to that, and a new statement whenever either changes.

use std::path::Path;
use std::sync::Arc;

use egress::policy::{DEFAULT_POLICY, Policies};
use egress::protocol::{Fence, PolicyRef};
use serde_json::json;
use trust::attestation::predicate;
use trust::audit::Event;
use trust::digest::Digest;
use trust::identity::Identity;
use trust::refusal::Cause;

use super::claim::Standing;
use super::statement::Stand;
use super::{Bound, State};
use crate::attest::{self, Network};
use crate::error::TaskError;
use crate::fence::{self, Asked, FenceError};

impl Bound {
    /// The workload may run from here on, behind its fence: no fence, no first instruction. A new statement before, if the one
    /// that was made in Create says something else.
    pub async fn starts(self: &Arc<Self>, pid: i32) -> Result<(), TaskError> {
        match self.ports.fences.network(pid) {
            // ctr --cni and nerdctl wire the network between Create and Start.
            Network::Host if self.shares_network() => self.restate()?,
            Network::Wired | Network::Host => {
                let (agent, policy) = (self.bond().identity.agent().cloned(), self.network_policy());
                let asked = Asked { agent, policy, attestation: self.current() };
                match self.ports.fences.attach(&self.place, pid, asked).await? {
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
            Network::Gone => return Err(self.gone()),
        }
        self.record(vec![Event::SandboxStarted { pid: u32::try_from(pid).ok() }]);
        Ok(())
    }

    /// Another network policy for a sandbox that runs, and a new statement.
    pub async fn update_policy(&self, policy: PolicyRef) -> Result<Stand, TaskError> {
        let _alone = self.changing.lock().await;
        match &self.state().claim {
            Standing::Waits => {
                let why = "the sandbox waits to be claimed: its policy comes with the claim";
                return Err(TaskError::NotClaimable(why.into()));
            }
            Standing::Spoilt(spoilt) => return Err(TaskError::NotClaimable(spoilt.to_string())),
            Standing::Never | Standing::Taken { .. } => {}
        }
        let digest = digest_of(&self.ports.policies, &policy)?;
        let pid = self.pid().ok_or_else(|| self.gone())?;
        let fence = match self.ports.fences.network(pid) {
            Network::Gone => return Err(self.gone()),
            Network::Host => return Err(unheld()),
            Network::Wired if !self.state().idle => {
                Some(self.ports.fences.update(&self.place, policy.clone()).await.map_err(refusal)?)
            }
            Network::Wired | Network::Sealed(_) => None,
        };
        {
            let mut state = self.state();
            state.asked_policy = policy;
            state.policy = fence.as_ref().map_or(digest, |fence| fence.policy);
            state.fence = fence.or(state.fence.take());
        }
        self.restate()?;
        self.stand().ok_or_else(|| self.gone())
    }

    /// There is nothing any more that could be changed.
    pub(super) fn gone(&self) -> TaskError {
        TaskError::NotFound(format!("the process of {}", self.place.group))
    }

    /// The current statement.
    pub(super) fn current(&self) -> Option<Digest> {
        self.state().current.as_ref().map(|current| current.digest)
    }

    /// creto-egress tells of the fence that stands now. While the sandbox is bound anew that waits; by then it may be old news.
    pub async fn heard_of(&self, fence: Fence) -> Result<(), TaskError> {
        let _alone = self.changing.lock().await;
        let newest = self.state().fence.as_ref().map_or(0, |fence| fence.generation);
        if fence.generation < newest || !self.lives() {
            return Ok(());
        }
        self.fenced(fence)
    }

    /// This fence stands around the sandbox now.
    fn fenced(&self, fence: Fence) -> Result<(), TaskError> {
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
            let now = (self.standing(&state, *pid), state.policy);
            state.current.as_ref().is_none_or(|current| (current.fence.clone(), current.policy) != now)
        };
        if changed { self.updated() } else { Ok(()) }
    }

    /// What holds the sandbox's packets.
    pub(super) fn standing(&self, state: &State, pid: i32) -> Option<predicate::Fence> {
        match self.ports.fences.network(pid) {
            Network::Sealed(sealed) => Some(sealed),
            Network::Host => None,
            Network::Wired if state.idle => Some(attest::sealed(pid)),
            Network::Wired | Network::Gone => state
                .fence
                .as_ref()
                .map(|fence| predicate::Fence { mechanism: "nftables".into(), digest: fence.ruleset }),
        }
    }
}

/// Why a fence that stands was not changed, or may not have been.
pub(super) fn refusal(error: FenceError) -> TaskError {
    match error {
        FenceError::Refused(ref refusal) => {
            let cause = fence::cause(refusal.code);
            let error = match cause {
                Cause::PolicyInvalid => TaskError::Invalid(format!("network policy: {refusal}")),
                Cause::FenceLost => TaskError::NotClaimable(error.to_string()), // no other answer comes, however often it is asked
                _ => TaskError::Unavailable(error.to_string()),
            };
            error.because(cause)
        }
        FenceError::Down(_) => TaskError::Unavailable(error.to_string()).because(Cause::EgressUnavailable),
        FenceError::Unsure(why) => TaskError::host("changing the sandbox's fence", why),
    }
}

/// In the host's network.
pub(super) fn unheld() -> TaskError {
    TaskError::NotClaimable("the sandbox is in the host's network, where no policy can be held".into())
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
pub(super) fn digest_of(policies: &Path, policy: &PolicyRef) -> Result<Digest, TaskError> {
    let policy = Policies::new(policies).resolve(policy);
    let invalid = |e| TaskError::Invalid(format!("network policy: {e}")).because(Cause::PolicyInvalid);
    policy.map(|policy| policy.digest()).map_err(invalid)
}
