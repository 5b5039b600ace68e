//! What a pod's sandbox is bound to as long as it lives: who it works for, its token and key, the chain of statements about
//! it, and the record of what becomes of it. One owner: all of it is told and renewed from here. A claim binds anew a sandbox
//! that waited for it (`claim`); everything that it changes is in one state, behind one lock.

pub mod claim;
mod network;
mod renewal;
pub mod statement;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress::protocol::{Fence, PolicyRef};
use serde_json::{Value, json};
use trust::attestation::predicate::{Launch, Sandbox};
use trust::audit::{About, Audit, Event};
use trust::digest::Digest;
use trust::id::BackendName;
use trust::identity::workload::{self, Credential};
use trust::identity::{Claim, Identity};
use trust::refusal::Cause;

use crate::attest::Facts;
use crate::backend::Place;
use crate::error::TaskError;
use crate::paths;
use crate::ports::Ports;
use crate::request::SandboxRequest;
use crate::run_dir::{self, Readers, RunDir};
use crate::secrets::{Audience, SecretRef, Secrets};
use crate::settings::{AttestationSettings, SecretsSettings, Settings};
use crate::statements::Statements;
use claim::Standing;
use statement::Current;

/// The bonds of one sandbox.
pub struct Bound {
    ports: Ports,
    place: Place,
    sandbox: Sandbox,
    backend: BackendName,
    /// Where secrets are looked up.
    secrets: SecretsSettings,
    /// How long statements are kept.
    keeping: AttestationSettings,
    /// Held by whoever changes what it is bound to, or hears that its fence has changed: one after the other.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// For whom a sandbox works, and what it has for that. A claim puts another one in its place, as a whole.
pub struct Bond {
    /// For whom.
    pub identity: Identity,
    /// What its containers may know.
    pub asked_secrets: Vec<SecretRef>,
    secrets: Secrets,
    launch: Launch,
    about: About,
}

/// What changes.
struct State {
    bond: Arc<Bond>,
    credential: Credential,
    /// `/run/creto` of each container.
    dirs: BTreeMap<String, RunDir>,
    /// Of the sandbox and its process on the host, as long as there is one.
    facts: Option<(Facts, i32)>,
    /// Why the token was not renewed the last time that it was due.
    refused: Option<String>,
    /// Where its statements are kept; since the first one.
    kept: Option<Statements>,
    /// It has ended: nothing more is said of it.
    ended: bool,
    /// Which network policy was asked for.
    asked_policy: PolicyRef,
    /// Of the one that holds.
    policy: Digest,
    /// What creto-egress has put around it.
    fence: Option<Fence>,
    /// creto-egress finds that none of its interfaces can send a packet: the kernel's own, of tunnels that nobody has set up.
    idle: bool,
    /// The current statement, if there is one.
    current: Option<Current>,
    /// What becomes of it as one that waits to be claimed.
    claim: Standing,
}

impl State {
    fn new(bond: Bond, credential: Credential, asked_policy: PolicyRef, policy: Digest, claim: Standing) -> Self {
        let (dirs, facts, refused, kept, fence, current) = Default::default();
        let (bond, ended, idle) = (Arc::new(bond), false, false);
        Self { bond, credential, dirs, facts, refused, kept, ended, asked_policy, policy, fence, idle, current, claim }
    }
}

impl Bound {
    /// No identity, no sandbox: checks the claim of whoever asks for it, and makes the sandbox's own key and token.
    pub async fn bind(
        place: &Place,
        settings: &Settings,
        asked: &SandboxRequest,
        backend: &str,
        launch: Launch,
    ) -> Result<Self, TaskError> {
        let ports = Ports::open(settings)?;
        let name = |e: &dyn std::fmt::Display| TaskError::Invalid(format!("the sandbox cannot be named: {e}"));
        let sandbox = Sandbox {
            id: place.group.parse().map_err(|e| name(&e))?,
            namespace: place.namespace.parse().map_err(|e| name(&e))?,
        };
        let text = |text: &str| Some(text.into());
        let (namespace, id) = (text(&place.namespace), text(&place.group));
        let mut about = About { namespace, sandbox: id, agent: None, backend: text(backend) };
        let token = asked.token()?;
        let backend: BackendName = backend.parse().map_err(|e| name(&e))?;
        let token = token.as_deref().map(String::as_str);
        let claim = Claim { agent: asked.agent.as_ref(), token, backend: &backend };
        let identity = ports.binder.bind(claim).await.map_err(|error| {
            let claimed = asked.agent.as_ref().map(|agent| agent.to_string().as_str().into());
            let reason = error.to_string().as_str().into();
            ports.record.record(&about, Event::IdentityRejected { claimed, reason });
            TaskError::Rejected(error.to_string()).because(Cause::IdentityRejected)
        })?;
        about.agent = identity.agent().map(|agent| agent.to_string().as_str().into());
        let policy = asked.network_policy.clone().unwrap_or_else(|| network::default_policy(&identity));
        let policy_digest = network::digest_of(&ports.policies, &policy)?;
        let audience = Audience { identity: &identity, sandbox: &sandbox };
        let secrets = Secrets::resolve(&asked.secrets, &settings.secrets, audience).await.inspect_err(|error| {
            let error = error.to_string().as_str().into(); // whoever tries out names is seen
            ports.record.record(&about, Event::SandboxCreateFailed { step: "secrets".into(), error });
        })?;
        let credential = credential(&ports, &identity, &sandbox)?;
        let bond = Bond { identity, asked_secrets: asked.secrets.clone(), secrets, launch, about };
        let claim = if asked.claimable { Standing::Waits } else { Standing::Never };
        let state = Mutex::new(State::new(bond, credential, policy, policy_digest, claim));
        let (place, keeping, secrets) = (place.clone(), settings.attestation.clone(), settings.secrets.clone());
        Ok(Self { ports, place, sandbox, backend, secrets, keeping, changing: Default::default(), state })
    }

    /// What makes it.
    pub fn backend(&self) -> String {
        self.backend.to_string()
    }

    /// For whom the sandbox works, and what it has for that.
    pub fn bond(&self) -> Arc<Bond> {
        self.state().bond.clone()
    }

    /// Where it may connect to.
    pub fn network_policy(&self) -> PolicyRef {
        self.state().asked_policy.clone()
    }

    /// Its process on the host, as long as there is one.
    pub fn pid(&self) -> Option<i32> {
        self.state().facts.as_ref().map(|(_, pid)| *pid)
    }

    /// It has not ended, and no claim has spoilt it.
    fn lives(&self) -> bool {
        let state = self.state();
        !state.ended && !state.claim.is_spoilt()
    }

    /// The host's network has no fence around it: whoever has a policy is not let into it.
    pub fn may_share_network(&self) -> Result<(), TaskError> {
        let waits = matches!(self.state().claim, Standing::Waits);
        match self.network_policy() {
            PolicyRef::Inline(policy) if policy == json!({"rules": []}) && !waits => Ok(()),
            _ => Err(TaskError::Invalid(
                "linux.namespaces: network is missing, which is the host's, where a network policy cannot be held; add {\"type\":\"network\"}, or omit the policy".into(),
            )),
        }
    }

    /// The spec that was run asked for the host's network, and was let have it.
    fn shares_network(&self) -> bool {
        self.state().facts.as_ref().is_some_and(|(facts, _)| facts.hardening.host_network)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a container its `/run/creto`: makes it, and mounts it in the spec.
    pub fn enter(&self, id: &str, spec: &mut Value) -> Result<(), TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("making /run/creto", e);
        let dir = RunDir::make(&self.run_dir(id), spec).map_err(|e| doing(&e))?;
        let mut state = self.state();
        if let Standing::Spoilt(spoilt) = &state.claim {
            return Err(TaskError::NotClaimable(spoilt.to_string()));
        }
        let jwks = self.ports.keyring.jwks().map_err(|e| doing(&e))?;
        let put = |name: &str, bytes: &[u8], readers| dir.put(name, bytes, readers).map_err(|e| doing(&e));
        put("jwks.json", jwks.as_bytes(), Readers::All)?;
        put(run_dir::TOKEN, state.credential.token.as_bytes(), Readers::Workload)?;
        put(run_dir::KEY, state.credential.private_key.as_bytes(), Readers::Workload)?;
        if let Some(current) = &state.current {
            put(run_dir::ATTESTATION, current.envelope.as_bytes(), Readers::All)?;
        }
        let delivered = state.bond.secrets.deliver(&dir).map_err(|e| doing(&e))?;
        dir.mount(spec);
        state.dirs.insert(id.to_owned(), dir);
        drop(state);
        if !delivered.is_empty() {
            self.record(vec![Event::SecretsDelivered { names: delivered }]);
        }
        Ok(())
    }

    /// A container has ended: its secrets go at once, and the rest of its `/run/creto`. With the one that the sandbox was
    /// made for, all statements end.
    pub fn leave(&self, id: &str) {
        let mut state = self.state();
        if id == self.place.group {
            state.ended = true;
            state.facts = None;
            state.kept = None;
            self.prune();
        }
        match state.dirs.remove(id) {
            Some(dir) => dir.wipe(),
            None => run_dir::wipe(&self.run_dir(id)),
        }
    }

    fn run_dir(&self, id: &str) -> PathBuf {
        paths::run_dir(&self.place.dir).join(id)
    }

    /// Adds to the record; never fails, never waits.
    pub fn record(&self, events: Vec<Event>) {
        self.ports.record.record_all(&self.bond().about, events);
    }
}

/// The sandbox's own key, fresh, and a token for it.
fn credential(ports: &Ports, identity: &Identity, sandbox: &Sandbox) -> Result<Credential, TaskError> {
    let signer = ports.keyring.signer().map_err(|e| TaskError::host("the node's signing key", e))?;
    let now = ports.clock().timestamp();
    let credential = workload::issue(&signer, &ports.issuer, identity, &sandbox.id, now, ports.token_lifetime);
    credential.map_err(|e| TaskError::host("the sandbox's token", e))
}

#[cfg(test)]
mod tests;
