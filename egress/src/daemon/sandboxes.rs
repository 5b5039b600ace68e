//! All sandboxes of the node with a fence around them: how one is put up, changed and taken down, in order. Read this first.
//!
//! What is to be enforced is kept on disk before it stands in the kernel, so that a daemon that is killed at any step finds it
//! again; and it stands in the kernel, read back, before whoever asked hears of it. Anything that fails undoes what came before.

mod answers;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::{Mutex, watch};
use trust::audit::Event;
use trust::chain::chain;
use trust::digest::Digest;

use super::fence::{Fences, Put};
use super::metrics::Metrics;
use super::netns::{self, Network, Port};
use super::recorder::Recorder;
use super::ruleset::Slot;
use super::state::{Kept, State};
use super::worker::{Worker, WorkerError};
use crate::policy::{CompiledPolicy, Document, Policies, Policy, Rule};
use crate::protocol::{
    Attach, Code, Fence, OwnRule, OwnRuleId, PolicyRef, Rebind, Refusal, Reloaded, SandboxKey, Update,
};
use crate::worker::authz;
use crate::worker::control::Bind;

/// The node's fenced sandboxes, and all that fences are made with.
pub struct Sandboxes {
    /// Those that have names.
    policies: Policies,
    /// What outlives the daemon.
    state: State,
    /// What holds the packets.
    fences: Fences,
    /// What answers names and carries connections.
    worker: Worker,
    /// Where it is recorded.
    recorder: Arc<Recorder>,
    /// Where it is counted.
    metrics: Arc<Metrics>,
    /// Who decides where a rule says RequireAuthz.
    authz: authz::settings::Settings,
    standing: Mutex<Standings>,
}

type Standings = BTreeMap<SandboxKey, Standing>;

/// A fence that stands.
struct Standing {
    kept: Kept,
    policy: CompiledPolicy,
    /// Told to whoever watches.
    changes: watch::Sender<Fence>,
}

fn refused(code: Code) -> impl Fn(&dyn std::fmt::Display) -> Refusal {
    move |why| Refusal { code, message: why.to_string() }
}

fn silent(error: WorkerError) -> Refusal {
    refused(Code::Worker)(&error)
}

impl Sandboxes {
    /// Around nobody yet.
    pub fn new(
        policies: Policies,
        state: State,
        fences: Fences,
        worker: Worker,
        recorder: Arc<Recorder>,
        metrics: Arc<Metrics>,
        authz: authz::settings::Settings,
    ) -> Self {
        Self { policies, state, fences, worker, recorder, metrics, authz, standing: Mutex::default() }
    }

    /// Puts up a fence, or puts the sandbox's anew.
    pub async fn attach(&self, attach: Attach) -> Result<Fence, Refusal> {
        let began = Instant::now();
        let mut standing = self.standing.lock().await;
        let policy = self.resolve(&attach.policy, &[])?;
        let ports = look(&attach)?;
        let interfaces: Vec<_> = ports.iter().map(|port| port.interface.clone()).collect();
        let before = standing.get(&attach.sandbox);
        for (other, taken) in standing.iter().filter(|(other, _)| **other != attach.sandbox) {
            let addresses = taken.kept.fence.interfaces.iter().flat_map(|interface| &interface.addresses);
            let mut shared = addresses.filter(|address| interfaces.iter().any(|own| own.addresses.contains(address)));
            if let Some(address) = shared.next().filter(|address| !is_link_local(address)) {
                let why = format!("its address {address} is that of {other}: each sandbox needs addresses of its own");
                return Err(refused(Code::NotFenceable)(&why));
            }
        }
        let slot = match before {
            Some(before) => before.kept.slot(),
            None => self.free_slot(&standing)?,
        };
        let slot = slot.ok_or_else(|| refused(Code::Kernel)(&"all marks for packets are taken"))?;
        let generation = before.map_or(0, |before| before.kept.fence.generation) + 1;
        let (sandbox, digest) = (attach.sandbox.clone(), policy.digest());
        let fence = Fence {
            sandbox: sandbox.clone(),
            mark: slot.mark(),
            interfaces,
            ruleset: Digest::of(b""),
            policy: digest,
            generation,
        };
        let kept = Kept { attach, own_rules: Vec::new(), policy: document(&policy), ports, fence, put: None };
        self.recorder.know(&kept.attach);
        let put_up = async {
            self.state.put(&kept).map_err(|e| refused(Code::State)(&e))?;
            self.worker.bind(bind(&kept)).await.map_err(silent)?; // a name that is asked for at once is known
            self.enforce(kept.clone(), &policy, Fences::attach)
        };
        match put_up.await {
            Ok(kept) => {
                let fence = kept.fence.clone();
                let changes = match standing.remove(&sandbox) {
                    Some(before) => before.changes,
                    None => watch::Sender::new(fence.clone()),
                };
                changes.send_replace(fence.clone());
                standing.insert(sandbox, Standing { kept, policy, changes });
                self.metrics.standing(standing.len());
                self.metrics.attached(began);
                Ok(fence)
            }
            Err(refusal) => {
                tracing::error!(%sandbox, error = refusal.message, "no new fence");
                let undone = match standing.get(&sandbox).map(|before| before.kept.clone()) {
                    // What stood goes on standing: a sandbox that runs is never without.
                    Some(before) => self.state.put(&before).map_err(|e| refused(Code::State)(&e)),
                    None => self.take_down(&mut standing, &kept).await,
                };
                if let Err(error) = undone {
                    tracing::error!(%sandbox, %error, "what was put up of it is left");
                }
                Err(refusal)
            }
        }
    }

    /// Puts it into the kernel, as a whole or by a change of what stands, and keeps what the kernel says.
    fn enforce(&self, mut kept: Kept, policy: &CompiledPolicy, put: Put) -> Result<Kept, Refusal> {
        let slot = kept.slot().ok_or_else(|| refused(Code::State)(&"what was kept names no mark"))?;
        let rules = policy.address_rules();
        let ruleset = put(&self.fences, slot, &kept.ports, &rules);
        kept.fence.ruleset = ruleset.map_err(|e| refused(Code::Kernel)(&chain(&e)))?;
        kept.put = Some(self.fences.put(slot, &kept.ports, &rules));
        self.state.put(&kept).map_err(|e| refused(Code::State)(&e))?;
        Ok(kept)
    }

    /// Nothing of a sandbox's fence is left.
    pub async fn detach(&self, sandbox: &SandboxKey) -> Result<(), Refusal> {
        let mut standing = self.standing.lock().await;
        let Some(kept) = standing.get(sandbox).map(|standing| standing.kept.clone()) else { return Ok(()) };
        self.take_down(&mut standing, &kept).await
    }

    /// The rules go last: whatever is left of the sandbox stays behind them.
    async fn take_down(&self, standing: &mut Standings, kept: &Kept) -> Result<(), Refusal> {
        let sandbox = &kept.attach.sandbox;
        if let Err(error) = self.worker.unbind(sandbox).await {
            tracing::warn!(%sandbox, %error, "it is forgotten with the worker");
        }
        if let Some(slot) = kept.slot() {
            self.fences.detach(slot, &kept.fence.interfaces).map_err(|e| refused(Code::Kernel)(&chain(&e)))?;
        }
        self.state.remove(sandbox).map_err(|e| refused(Code::State)(&e))?;
        standing.remove(sandbox);
        self.recorder.forget(sandbox);
        self.metrics.standing(standing.len());
        Ok(())
    }

    /// Another policy for a sandbox.
    pub async fn update(&self, update: Update) -> Result<Fence, Refusal> {
        let mut standing = self.standing.lock().await;
        self.change(&mut standing, &update.sandbox, |kept| {
            kept.attach.policy = update.policy;
            Ok(())
        })
        .await
    }

    /// Another agent for a sandbox, and its policy; or all stays as it was.
    pub async fn rebind(&self, rebind: Rebind) -> Result<Fence, Refusal> {
        let Rebind { sandbox, agent, policy, attestation } = rebind;
        let mut standing = self.standing.lock().await;
        let found = standing.get_mut(&sandbox).ok_or_else(|| no_such(&sandbox))?;
        let compiled = self.resolve(&policy, &[])?;
        let (before, before_policy) = (found.kept.clone(), found.policy.clone());
        let attach = Attach { agent, policy, attestation, ..before.attach.clone() };
        self.recorder.know(&attach);
        let kept = Kept { attach, own_rules: Vec::new(), ..before.clone() };
        let refusal = match self.apply(found, kept, compiled).await {
            Ok(fence) => return Ok(fence),
            Err(refusal) => refusal,
        };
        tracing::error!(%sandbox, error = refusal.message, "its fence is put back");
        self.recorder.know(&before.attach);
        if let Err(error) = self.apply(found, before, before_policy).await {
            tracing::error!(%sandbox, %error, "what stood may not stand");
        }
        Err(refusal)
    }

    /// A rule of a sandbox's own.
    pub async fn add_rule(&self, own: OwnRule) -> Result<Fence, Refusal> {
        let mut standing = self.standing.lock().await;
        self.change(&mut standing, &own.sandbox, |kept| {
            let id = own.rule.get("id").cloned();
            kept.own_rules.retain(|rule| rule.get("id").cloned() != id || id.is_none());
            kept.own_rules.push(own.rule);
            Ok(())
        })
        .await
    }

    /// The end of one.
    pub async fn remove_rule(&self, own: OwnRuleId) -> Result<Fence, Refusal> {
        let mut standing = self.standing.lock().await;
        self.change(&mut standing, &own.sandbox, |kept| {
            let before = kept.own_rules.len();
            let ids: Vec<String> = own_ids(&kept.own_rules);
            let mut ids = ids.iter();
            kept.own_rules.retain(|_| ids.next() != Some(&own.id));
            match kept.own_rules.len() < before {
                true => Ok(()),
                false => Err(refused(Code::NoSuchRule)(&format!("{} has no rule {} of its own", own.sandbox, own.id))),
            }
        })
        .await
    }

    /// Changes what a sandbox's policy is made of, and lets that hold.
    async fn change(
        &self,
        standing: &mut Standings,
        sandbox: &SandboxKey,
        change: impl FnOnce(&mut Kept) -> Result<(), Refusal>,
    ) -> Result<Fence, Refusal> {
        let found = standing.get_mut(sandbox).ok_or_else(|| no_such(sandbox))?;
        let mut kept = found.kept.clone();
        change(&mut kept)?;
        let policy = self.resolve(&kept.attach.policy, &kept.own_rules)?;
        self.apply(found, kept, policy).await
    }

    /// Lets a policy hold for a sandbox: in the kernel first, then in the worker. What is no longer permitted ends there. Every rule
    /// of the fence is put anew: what somebody has changed of it by hand is not taken over.
    async fn apply(&self, found: &mut Standing, mut kept: Kept, policy: CompiledPolicy) -> Result<Fence, Refusal> {
        let previous = kept.fence.policy;
        kept.policy = document(&policy);
        kept.fence.policy = policy.digest();
        kept.fence.generation += 1;
        let kept = self.enforce(kept, &policy, Fences::change)?;
        let fence = kept.fence.clone();
        let told = self.worker.bind(bind(&kept)).await;
        found.kept = kept;
        found.policy = policy;
        found.changes.send_replace(fence.clone());
        let text = |digest: Digest| digest.to_string().as_str().into();
        let (generation, policy_digest) = (fence.generation, text(fence.policy));
        let changed = Event::PolicyChanged { generation, policy_digest, previous: Some(text(previous)) };
        self.recorder.record(&fence.sandbox, changed);
        told.map_err(silent)?; // names fail until there is a worker again, which then learns of it
        Ok(fence)
    }

    /// What was granted to a sandbox is asked for again.
    pub async fn revoke(&self, sandbox: &SandboxKey) -> Result<(), Refusal> {
        let standing = self.standing.lock().await;
        standing.get(sandbox).ok_or_else(|| no_such(sandbox))?;
        self.worker.revoke(sandbox).await.map_err(silent)
    }

    /// Reads named policies again, and the files of the decision point.
    pub async fn reload(&self) -> Reloaded {
        let mut standing = self.standing.lock().await;
        let mut reloaded = self.reload_all(&mut standing).await;
        let asked = match self.authz.read() {
            Ok(setup) => self.worker.set_authz(setup).await.map_err(|e| chain(&e)),
            Err(error) => Err(chain(&error)),
        };
        reloaded.errors.extend(asked.err().map(|error| format!("the decision point stays as it was: {error}")));
        reloaded
    }

    async fn reload_all(&self, standing: &mut Standings) -> Reloaded {
        let mut reloaded = Reloaded::default();
        for (sandbox, found) in standing {
            let changed = match self.resolve(&found.kept.attach.policy, &found.kept.own_rules) {
                Ok(policy) if policy.digest() == found.kept.fence.policy => continue,
                Ok(policy) => self.apply(found, found.kept.clone(), policy).await.map(drop),
                Err(refusal) => Err(refusal),
            };
            match changed {
                Ok(()) => reloaded.changed.push(sandbox.clone()),
                Err(refusal) => reloaded.errors.push(format!("{sandbox} keeps the policy it has: {refusal}")),
            }
        }
        reloaded
    }

    /// The sandbox's fence, whenever it changes.
    pub async fn watch(&self, sandbox: &SandboxKey) -> Result<watch::Receiver<Fence>, Refusal> {
        let standing = self.standing.lock().await;
        standing.get(sandbox).map(|found| found.changes.subscribe()).ok_or_else(|| no_such(sandbox))
    }

    /// The lowest one that no fence has, nor one in the kernel that nothing more is known of.
    fn free_slot(&self, standing: &Standings) -> Result<Option<Slot>, Refusal> {
        let taken: BTreeSet<_> = standing.values().filter_map(|found| found.kept.slot()).collect();
        for slot in (1..=Slot::MAX).filter_map(Slot::new).filter(|slot| !taken.contains(slot)) {
            if self.fences.is_free(slot).map_err(|e| refused(Code::Kernel)(&chain(&e)))? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// The whole policy of a sandbox: what it names, and its own rules as if they were included by the name `own`.
    fn resolve(&self, policy: &PolicyRef, own: &[Value]) -> Result<CompiledPolicy, Refusal> {
        let invalid = refused(Code::PolicyInvalid);
        let compiled = self.policies.resolve(policy).map_err(|e| invalid(&e))?;
        if own.is_empty() {
            return Ok(compiled);
        }
        let own = Document::from_json_value(&serde_json::json!({ "rules": own })).map_err(|e| invalid(&e))?;
        let own = own.policy.rules.into_iter().map(|rule| Rule { id: format!("own/{}", rule.id), ..rule });
        let rules = compiled.policy().rules.iter().cloned().chain(own).collect();
        Ok(CompiledPolicy::new(Policy { rules }))
    }
}

/// The ids of rules of a sandbox's own; one without has its place for one, as in any policy.
fn own_ids(rules: &[Value]) -> Vec<String> {
    let id = |(place, rule): (usize, &Value)| match rule.get("id").and_then(Value::as_str) {
        Some(id) => id.to_owned(),
        None => (place + 1).to_string(),
    };
    rules.iter().enumerate().map(id).collect()
}

fn no_such(sandbox: &SandboxKey) -> Refusal {
    let message = format!("there is no fence around {sandbox}: it has no network, or does not run");
    Refusal { code: Code::NoSuchSandbox, message }
}

fn is_link_local(address: &std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// As it is kept and told: all rules, none included by name any more.
fn document(policy: &CompiledPolicy) -> Document {
    Document { include: Vec::new(), policy: policy.policy().clone() }
}

/// The interfaces of a sandbox, all of which can be fenced.
fn look(attach: &Attach) -> Result<Vec<Port>, Refusal> {
    let refused = refused(Code::NotFenceable);
    let netns = File::open(&attach.netns);
    let netns = netns.map_err(|e| refused(&format!("its network namespace {}: {e}", attach.netns.display())))?;
    match netns::look(netns).map_err(|e| refused(&chain(&e)))? {
        Network::Wired(ports) => Ok(ports),
        Network::Sealed => {
            let message = "its network namespace has no interface but lo: there is nothing to fence".to_owned();
            Err(Refusal { code: Code::Sealed, message })
        }
    }
}

/// Whether what a fence was put around is still there; where that cannot be found out, it is.
fn stands(kept: &Kept) -> bool {
    kept.ports.iter().any(|port| netns::stands(&port.interface).unwrap_or(true))
}

fn bind(kept: &Kept) -> Bind {
    let Kept { attach, policy, fence, .. } = kept;
    Bind {
        number: 0,
        sandbox: attach.sandbox.clone(),
        agent: attach.agent.clone(),
        addresses: fence.interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect(),
        policy: policy.clone(),
        generation: fence.generation,
    }
}
