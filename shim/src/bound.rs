//! What a pod's sandbox is bound to as long as it lives: who it works for, its token and key, the chain of statements about
//! it, and the record of what becomes of it. One owner: all of it is told and renewed from here.

mod network;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use egress::protocol::{Fence, PolicyRef};
use serde_json::{Value, json};
use trust::attestation::predicate::{self, Launch, Sandbox};
use trust::attestation::{self as statement, Observed};
use trust::audit::{About, Audit, Event};
use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::AgentId;
use trust::identity::workload::{self, Credential};
use trust::identity::{Claim, Identity};

use crate::attest::{self, Facts};
use crate::backend::Place;
use crate::error::TaskError;
use crate::paths;
use crate::ports::Ports;
use crate::request::SandboxRequest;
use crate::run_dir::{self, Readers, RunDir};
use crate::secrets::{Audience, SecretRef, Secrets};
use crate::settings::{AttestationSettings, Settings};
use crate::statements::{self, Statements};

/// After a renewal that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// What is due is looked at so often: the clock may be set, and stands still for timers while the machine sleeps.
const LOOK: Duration = Duration::from_secs(60);

/// The bonds of one sandbox.
pub struct Bound {
    ports: Ports,
    place: Place,
    sandbox: Sandbox,
    backend: String,
    about: About,
    identity: Identity,
    asked_secrets: Vec<SecretRef>,
    secrets: Secrets,
    launch: Launch,
    policy: PolicyRef,
    /// How long statements are kept.
    keeping: AttestationSettings,
    state: Mutex<State>,
}

/// What changes.
struct State {
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
    /// Of the network policy that holds.
    policy: Digest,
    /// What creto-egress has put around it.
    fence: Option<Fence>,
    /// creto-egress finds that none of its interfaces can send a packet: the kernel's own, of tunnels that nobody has set up.
    idle: bool,
    /// The current statement, if there is one.
    current: Option<Current>,
}

impl State {
    fn new(credential: Credential, policy: Digest) -> Self {
        let (dirs, facts, refused, kept, fence, current) = Default::default();
        Self { credential, dirs, facts, refused, kept, ended: false, policy, fence, idle: false, current }
    }
}

struct Current {
    envelope: String,
    digest: Digest,
    fence: Option<predicate::Fence>,
    policy: Digest,
    renew_at: Timestamp,
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
        let by = backend.parse().map_err(|e| name(&e))?;
        let claim = Claim { agent: asked.agent.as_ref(), token: token.as_deref().map(String::as_str), backend: &by };
        let identity = ports.binder.bind(claim).await.map_err(|error| {
            let claimed = asked.agent.as_ref().map(|agent| agent.to_string().as_str().into());
            let reason = error.to_string().as_str().into();
            ports.record.record(&about, Event::IdentityRejected { claimed, reason });
            TaskError::Rejected(error.to_string())
        })?;
        about.agent = identity.agent().map(|agent| agent.to_string().as_str().into());
        let policy = asked.network_policy.clone().unwrap_or_else(|| network::default_policy(&identity));
        let policy_digest = network::digest_of(&policy)?;
        let audience = Audience { identity: &identity, sandbox: &sandbox };
        let secrets = Secrets::resolve(&asked.secrets, &settings.secrets, audience).await.inspect_err(|error| {
            let error = error.to_string().as_str().into(); // whoever tries out names is seen
            ports.record.record(&about, Event::SandboxCreateFailed { step: "secrets".into(), error });
        })?;
        let signer = ports.keyring.signer().map_err(|e| TaskError::host("the node's signing key", e))?;
        let now = ports.clock().timestamp();
        let credential = workload::issue(&signer, &ports.issuer, &identity, &sandbox.id, now, ports.token_lifetime);
        let credential = credential.map_err(|e| TaskError::host("the sandbox's token", e))?;
        let state = Mutex::new(State::new(credential, policy_digest));
        let (place, backend) = (place.clone(), backend.to_owned());
        let (asked_secrets, keeping) = (asked.secrets.clone(), settings.attestation.clone());
        Ok(Self {
            ports,
            place,
            sandbox,
            backend,
            about,
            identity,
            asked_secrets,
            secrets,
            launch,
            policy,
            keeping,
            state,
        })
    }

    /// What makes it.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// For whom the sandbox works.
    pub fn agent(&self) -> Option<&AgentId> {
        self.identity.agent()
    }

    /// The host's network has no fence around it: whoever has a policy is not let into it.
    pub fn may_share_network(&self) -> Result<(), TaskError> {
        match &self.policy {
            PolicyRef::Inline(policy) if *policy == json!({"rules": []}) => Ok(()),
            _ => Err(TaskError::Invalid(
                "linux.namespaces: network is missing, which is the host's, where a network policy cannot be held; add {\"type\":\"network\"}, or omit the policy".into(),
            )),
        }
    }

    /// The spec that was run asked for the host's network, and was let have it.
    fn shares_network(&self) -> bool {
        self.state().facts.as_ref().is_some_and(|(facts, _)| facts.hardening.host_network)
    }

    /// What its containers may know.
    pub fn secrets(&self) -> &[SecretRef] {
        &self.asked_secrets
    }

    /// Where they may connect to.
    pub fn network_policy(&self) -> &PolicyRef {
        &self.policy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a container its `/run/creto`: makes it, and mounts it in the spec.
    pub fn enter(&self, id: &str, spec: &mut Value) -> Result<(), TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("making /run/creto", e);
        let dir = RunDir::make(&self.run_dir(id), spec).map_err(|e| doing(&e))?;
        let mut state = self.state();
        let jwks = self.ports.keyring.jwks().map_err(|e| doing(&e))?;
        let put = |name: &str, bytes: &[u8], readers| dir.put(name, bytes, readers).map_err(|e| doing(&e));
        put("jwks.json", jwks.as_bytes(), Readers::All)?;
        put("identity.jwt", state.credential.token.as_bytes(), Readers::Workload)?;
        put(run_dir::KEY, state.credential.private_key.as_bytes(), Readers::Workload)?;
        if let Some(current) = &state.current {
            put("attestation.dsse.json", current.envelope.as_bytes(), Readers::All)?;
        }
        let delivered = self.secrets.deliver(&dir).map_err(|e| doing(&e))?;
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

    /// Removes what is kept too long of sandboxes that have ended, this one or others; nobody waits for it.
    fn prune(&self) {
        let keeping = self.keeping.clone();
        tokio::task::spawn_blocking(move || {
            match statements::prune_if_due(&paths::all_statements(), &keeping, SystemTime::now()) {
                Ok(0) => {}
                Ok(sandboxes) => tracing::info!(sandboxes, "old statements removed"),
                Err(error) => tracing::warn!(%error, "old statements were not removed"),
            }
        });
    }

    fn run_dir(&self, id: &str) -> PathBuf {
        paths::run_dir(&self.place.dir).join(id)
    }

    /// The sandbox is made: says so, signed. Returns what the record has to say of it.
    pub fn attest(&self, facts: Facts, pid: i32) -> Result<Vec<Event>, TaskError> {
        let text = |digest: Digest| Some(digest.to_string().as_str().into());
        let (config_digest, policy_digest) = (text(facts.config), text(self.state().policy));
        let (image, image_digest) = (facts.image.name().map(Into::into), facts.image.digest().and_then(text));
        self.state().facts = Some((facts, pid));
        let issued = self.issue()?;
        let made = match &self.launch {
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

    /// Issues a statement that takes the place of the current one, and puts it where it is read.
    fn issue(&self) -> Result<Event, TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("attesting the sandbox", e);
        let mut state = self.state();
        let Some((mut facts, pid)) = state.facts.clone() else {
            return Err(doing(&"it has ended, or was not made yet"));
        };
        // Each time: a renewed statement is not about what once was.
        let (fence, policy) = (state.standing(pid), state.policy);
        facts.hardening.limits = attest::limits(pid);
        let signer = self.ports.keyring.signer().map_err(|e| doing(&e))?;
        let now = self.ports.clock().timestamp();
        let observed = Observed {
            config: facts.config,
            policy,
            sandbox: self.sandbox.clone(),
            agent: (&self.identity).into(),
            backend: facts.backend,
            node: self.ports.node.clone(),
            fence: fence.clone(),
            hardening: facts.hardening,
            image: facts.image,
            launch: self.launch.clone(),
        };
        let previous = state.current.as_ref().map(|current| current.digest);
        let envelope =
            statement::issue(observed, previous, &signer, now, self.ports.validity).map_err(|e| doing(&e))?;
        let digest = envelope.statement_digest();
        let json = envelope.to_json().map_err(|e| doing(&e))?;
        let statements = match state.kept.take() {
            Some(held) => held,
            None => {
                Statements::hold(&paths::statements(&self.place.namespace, &self.place.group)).map_err(|e| doing(&e))?
            }
        };
        let kept = state.kept.insert(statements).keep(&json).map_err(|e| doing(&e))?;
        let put = |dir: &RunDir| dir.put("attestation.dsse.json", json.as_bytes(), Readers::All);
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
        state.current = Some(Current { envelope: json, digest, fence, policy, renew_at });
        Ok(Event::AttestationIssued {
            statement: digest.to_string().as_str().into(),
            previous: previous.map(|digest| digest.to_string().as_str().into()),
            key: signer.id().to_string().as_str().into(),
        })
    }

    /// A token for the same key, in place of the one that is about to end; none where the agent was shut out since. Its
    /// sandbox goes on all the same: to end it is for whoever began it.
    async fn renew_token(&self) -> Result<(), TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("renewing the sandbox's token", e);
        let still = self.ports.binder.still(&self.identity).await;
        let mut state = self.state();
        if let Err(why) = still {
            let why = why.to_string();
            if state.refused.as_ref() != Some(&why) {
                self.record(vec![Event::TokenRenewalRefused { reason: why.as_str().into() }]);
                state.refused = Some(why.clone());
            }
            return Err(TaskError::Rejected(format!("the sandbox's token is not renewed: {why}")));
        }
        state.refused = None;
        let signer = self.ports.keyring.signer().map_err(|e| doing(&e))?;
        let now = self.ports.clock().timestamp();
        let (issuer, lifetime) = (&self.ports.issuer, self.ports.token_lifetime);
        workload::renew(&mut state.credential, &signer, issuer, &self.identity, now, lifetime)
            .map_err(|e| doing(&e))?;
        for dir in state.dirs.values() {
            dir.put("identity.jwt", state.credential.token.as_bytes(), Readers::Workload).map_err(|e| doing(&e))?;
        }
        Ok(())
    }

    /// Renews what ends before the sandbox does, for as long as somebody holds it.
    pub fn keep_fresh(self: &Arc<Self>) {
        let bound = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut next = Duration::ZERO;
            loop {
                tokio::time::sleep(next).await;
                let Some(bound) = bound.upgrade().filter(|bound| !bound.state().ended) else { return };
                next = match bound.refresh().await {
                    Ok(()) => bound.until_next(),
                    Err(error) => {
                        tracing::error!(sandbox = bound.place.group, %error, "will try again");
                        AGAIN
                    }
                };
            }
        });
    }

    async fn refresh(&self) -> Result<(), TaskError> {
        let now = self.ports.clock().timestamp();
        let (token, statement) = {
            let state = self.state();
            let current = state.current.as_ref();
            (state.credential.renew_at <= now, current.is_some_and(|current| current.renew_at <= now))
        };
        let renewed = if token { self.renew_token().await } else { Ok(()) };
        if statement {
            self.updated()?; // whatever becomes of the token
        }
        renewed
    }

    fn until_next(&self) -> Duration {
        let (now, state) = (self.ports.clock().timestamp(), self.state());
        let statement = state.current.as_ref().map_or(state.credential.renew_at, |current| current.renew_at);
        state.credential.renew_at.min(statement).since(now).clamp(Duration::from_secs(1), LOOK)
    }

    /// Adds to the record; never fails, never waits.
    pub fn record(&self, events: Vec<Event>) {
        self.ports.record.record_all(&self.about, events);
    }
}

#[cfg(test)]
mod tests;
