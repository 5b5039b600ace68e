//! What is said of a sandbox, signed: its chain of statements, each issued, kept, and put where it is read.

use std::fs;
use std::time::SystemTime;

use trust::attestation::predicate::{self, Launch};
use trust::attestation::{self as statement, Observed};
use trust::audit::Event;
use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::WorkloadId;

use super::Bound;
use super::claim::Standing;
use crate::attest::{self, Facts};
use crate::error::TaskError;
use crate::run_dir::{self, Readers, RunDir};
use crate::statements::{self, Statements};

/// The current statement.
pub(super) struct Current {
    pub(super) envelope: String,
    pub(super) digest: Digest,
    pub(super) fence: Option<predicate::Fence>,
    pub(super) policy: Digest,
    /// Of the sandbox, when it was issued.
    pub(super) limits: predicate::Limits,
    pub(super) renew_at: Timestamp,
}

/// What a sandbox is bound to, for whoever asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Stand {
    /// The current statement in its envelope, JSON.
    pub statement: String,
    /// Of the statement.
    pub digest: Digest,
    /// What runs in the sandbox.
    pub workload: WorkloadId,
    /// Of the network policy that holds.
    pub policy: Digest,
    /// The fence, if there is one: how many policies it has held, and the digest of its rules.
    pub fence: Option<(u64, Digest)>,
}

impl Bound {
    /// The sandbox is made: says so, signed. Returns what the record has to say of it.
    pub fn attest(&self, facts: Facts, pid: i32) -> Result<Vec<Event>, TaskError> {
        let text = |digest: Digest| Some(digest.to_string().as_str().into());
        let (config_digest, policy_digest) = (text(facts.config), text(self.state().policy));
        let (image, image_digest) = (facts.image.name().map(Into::into), facts.image.digest().and_then(text));
        self.state().facts = Some((facts, pid));
        let issued = self.issue()?;
        let made = match &self.bond().launch {
            Launch::Restored { restored_from } => {
                let checkpoint = restored_from.to_string();
                Event::SandboxRestored { checkpoint: checkpoint.as_str().into(), manifest_digest: text(*restored_from) }
            }
            _ => Event::SandboxCreated { image, image_digest, config_digest, policy_digest },
        };
        Ok(vec![made, issued])
    }

    /// What is stated has changed, or is about to end: says it anew, signed.
    pub fn updated(&self) -> Result<(), TaskError> {
        let issued = self.issue()?;
        self.record(vec![issued]);
        Ok(())
    }

    /// A container of the pod has come, gone or been given other limits, which may be others of the sandbox.
    pub fn limits_may_have_changed(&self) {
        let stated = {
            let state = self.state();
            let pid = state.facts.as_ref().map(|(_, pid)| *pid);
            state.current.as_ref().zip(pid).map(|(current, pid)| (current.limits.clone(), pid))
        };
        let Some((stated, pid)) = stated else { return };
        if attest::limits(pid) != stated
            && let Err(error) = self.updated()
        {
            tracing::warn!(%error, "the sandbox has other limits than its statement says");
        }
    }

    /// Issues a statement that takes the place of the current one, and puts it where it is read.
    pub(super) fn issue(&self) -> Result<Event, TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("attesting the sandbox", e);
        let mut state = self.state();
        if let Standing::Spoilt(spoilt) = &state.claim {
            return Err(TaskError::NotClaimable(spoilt.to_string()));
        }
        let Some((mut facts, pid)) = state.facts.clone() else {
            return Err(doing(&"it has ended, or was not made yet"));
        };
        // Each time: a renewed statement is not about what once was.
        let (fence, policy, bond) = (self.standing(&state, pid), state.policy, state.bond.clone());
        facts.hardening.limits = attest::limits(pid);
        let limits = facts.hardening.limits.clone();
        let signer = self.ports.keyring.signer().map_err(|e| doing(&e))?;
        let now = self.ports.clock().timestamp();
        let observed = Observed {
            config: facts.config,
            policy,
            sandbox: self.sandbox.clone(),
            agent: (&bond.identity).into(),
            backend: facts.backend,
            node: self.ports.node.clone(),
            fence: fence.clone(),
            hardening: facts.hardening,
            image: facts.image,
            launch: bond.launch.clone(),
        };
        let previous = state.current.as_ref().map(|current| current.digest);
        let envelope =
            statement::issue(observed, previous, &signer, now, self.ports.validity).map_err(|e| doing(&e))?;
        let digest = envelope.statement_digest();
        let json = envelope.to_json().map_err(|e| doing(&e))?;
        let statements = match state.kept.take() {
            Some(held) => held,
            None => {
                let dir = self.ports.statements.join(&self.place.namespace).join(&self.place.group);
                Statements::hold(&dir).map_err(|e| doing(&e))?
            }
        };
        let kept = state.kept.insert(statements).keep(&json).map_err(|e| doing(&e))?;
        let put = |dir: &RunDir| dir.put(run_dir::ATTESTATION, json.as_bytes(), Readers::All);
        if let Err(error) = state.dirs.values().try_for_each(put) {
            let _ = fs::remove_file(kept); // the next one has the same predecessor, and a chain does not fork
            return Err(doing(&error));
        }
        tokio::task::spawn_blocking(move || {
            if let Err(error) = statements::sync(&kept) {
                tracing::error!(path = %kept.display(), %error, "a statement might not survive a power cut");
            }
        });
        let renew_at = now.plus(self.ports.validity * 2 / 3);
        state.current = Some(Current { envelope: json, digest, fence, policy, limits, renew_at });
        Ok(Event::AttestationIssued {
            statement: digest.to_string().as_str().into(),
            previous: previous.map(|digest| digest.to_string().as_str().into()),
            key: signer.id().to_string().as_str().into(),
        })
    }

    /// Removes what is kept too long of sandboxes that have ended, this one or others; nobody waits for it.
    pub(super) fn prune(&self) {
        let (all, keeping) = (self.ports.statements.clone(), self.keeping.clone());
        tokio::task::spawn_blocking(move || match statements::prune_if_due(&all, &keeping, SystemTime::now()) {
            Ok(0) => {}
            Ok(sandboxes) => tracing::info!(sandboxes, "old statements removed"),
            Err(error) => tracing::warn!(%error, "old statements were not removed"),
        });
    }

    /// What it is bound to now; nothing before its first statement, after its end, and where a claim has spoilt it.
    pub fn stand(&self) -> Option<Stand> {
        let state = self.state();
        if state.ended || state.claim.is_spoilt() {
            return None;
        }
        let current = state.current.as_ref()?;
        Some(Stand {
            statement: current.envelope.clone(),
            digest: current.digest,
            workload: state.credential.id.clone(),
            policy: current.policy,
            fence: state.fence.as_ref().map(|fence| (fence.generation, fence.ruleset)),
        })
    }
}
