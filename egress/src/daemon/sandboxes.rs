//! All sandboxes of the node with a fence around them: how one is put up, changed and taken down, in order. Read this first.
//!
//! What is to be enforced is kept on disk before it stands in the kernel, so that a daemon that is killed at any step finds it
//! again; and it stands in the kernel, read back, before whoever asked hears of it. Anything that fails undoes what came before.
//! What is done to one sandbox is done one after the other, by whoever has its turn (`standings`); sandboxes do not wait for each other,
//! but for newcomers, who get marks, and whose addresses are looked at, one after the other.

mod answers;
mod attach;
mod standings;
mod upkeep;

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use trust::audit::Event;
use trust::chain::chain;
use trust::digest::Digest;

use super::enforcer::Enforcer;
use super::fence::{Change, FenceError, Stands};
use super::metrics::Metrics;
use super::netns;
use super::recorder::Recorder;
use super::state::{Kept, State};
use super::worker::{Worker, WorkerError};
use crate::policy::{CompiledPolicy, Document, Policies, Policy, Rule};
use crate::protocol::{
    Attach, Code, Fence, OwnRule, OwnRuleId, PolicyRef, Rebind, Refusal, Reloaded, SandboxKey, Update,
};
use crate::worker::authz;
use crate::worker::control::Bind;
use standings::{Standings, Turn};

/// The node's fenced sandboxes, and all that fences are made with.
pub struct Sandboxes {
    /// Those that have names.
    policies: Policies,
    /// What outlives the daemon.
    state: State,
    /// What holds the packets.
    enforcer: Enforcer,
    /// What answers names and carries connections.
    worker: Worker,
    /// Where it is recorded.
    recorder: Arc<Recorder>,
    /// Where it is counted.
    metrics: Arc<Metrics>,
    /// Who decides where a rule says RequireAuthz.
    authz: authz::settings::Settings,
    standings: Standings,
}

/// How a fence gets into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    /// All of it, whatever stands there.
    Whole,
    /// The rules of its policy, where the rest stands.
    Policy,
}

fn refused(code: Code) -> impl Fn(&dyn std::fmt::Display) -> Refusal {
    move |why| Refusal { code, message: why.to_string() }
}

fn silent(error: WorkerError) -> Refusal {
    refused(Code::Worker)(&error)
}

fn kernel(error: FenceError) -> Refusal {
    refused(Code::Kernel)(&chain(&error))
}

impl Sandboxes {
    /// Around nobody yet.
    pub fn new(
        policies: Policies,
        state: State,
        enforcer: Enforcer,
        worker: Worker,
        recorder: Arc<Recorder>,
        metrics: Arc<Metrics>,
        authz: authz::settings::Settings,
    ) -> Self {
        let standings = Standings::default();
        Self { policies, state, enforcer, worker, recorder, metrics, authz, standings }
    }

    /// Puts it into the kernel, and keeps what the kernel says.
    async fn enforce(&self, mut kept: Kept, policy: &CompiledPolicy, put: Put) -> Result<Kept, Refusal> {
        let slot = kept.slot().ok_or_else(|| refused(Code::State)(&"what was kept names no mark"))?;
        let (ports, rules) = (kept.ports.clone(), policy.address_rules());
        let digest = self.enforcer.digest(slot, &ports, &rules);
        let stands = match kept.frame.filter(|_| put == Put::Policy) {
            Some(frame) => self.enforcer.change(Change { slot, ports, rules, frame }).await,
            None => self.enforcer.ask(move |fences| fences.attach(slot, &ports, &rules)).await,
        };
        let Stands { ruleset, frame } = stands.map_err(kernel)?;
        kept.fence.ruleset = ruleset;
        (kept.frame, kept.put) = (Some(frame), Some(digest));
        self.state.put(&kept).map_err(|e| refused(Code::State)(&e))?;
        Ok(kept)
    }

    /// Nothing of a sandbox's fence is left.
    pub async fn detach(&self, sandbox: &SandboxKey) -> Result<(), Refusal> {
        let turn = self.standings.turn(sandbox).await;
        let Some(found) = self.standings.get(sandbox) else { return Ok(()) };
        self.take_down(&turn, &found.kept).await
    }

    /// The rules go last: whatever is left of the sandbox stays behind them.
    async fn take_down(&self, turn: &Turn, kept: &Kept) -> Result<(), Refusal> {
        let sandbox = turn.sandbox();
        if let Err(error) = self.worker.unbind(sandbox).await {
            tracing::warn!(%sandbox, %error, "it is forgotten with the worker");
        }
        if let Some(slot) = kept.slot() {
            let interfaces = kept.fence.interfaces.clone();
            self.enforcer.ask(move |fences| fences.detach(slot, &interfaces)).await.map_err(kernel)?;
        }
        self.state.remove(sandbox).map_err(|e| refused(Code::State)(&e))?;
        self.standings.remove(turn);
        self.recorder.ended(sandbox);
        self.metrics.standing(self.standings.count());
        Ok(())
    }

    /// Another policy for a sandbox.
    pub async fn update(&self, update: Update) -> Result<Fence, Refusal> {
        self.change(&update.sandbox, |kept| {
            kept.attach.policy = update.policy;
            Ok(())
        })
        .await
    }

    /// Another agent for a sandbox, and its policy; or all stays as it was.
    pub async fn rebind(&self, rebind: Rebind) -> Result<Fence, Refusal> {
        let Rebind { sandbox, agent, policy, attestation } = rebind;
        let turn = self.standings.turn(&sandbox).await;
        let before = self.standings.get(&sandbox).ok_or_else(|| no_such(&sandbox))?;
        let compiled = self.resolve(&policy, &[])?;
        let attach = Attach { agent, policy, attestation, ..before.kept.attach.clone() };
        self.recorder.know(&attach, before.kept.fence.generation + 1);
        let kept = Kept { attach, own_rules: Vec::new(), ..before.kept.clone() };
        let refusal = match self.apply(&turn, kept, compiled).await {
            Ok(fence) => return Ok(fence),
            Err(refusal) => refusal,
        };
        tracing::error!(%sandbox, error = refusal.message, "its fence is put back");
        let stands = self.standings.get(&sandbox).map_or(0, |stands| stands.kept.fence.generation);
        self.recorder.know(&before.kept.attach, stands + 1);
        let (Fence { generation, .. }, kept) = (before.kept.fence.clone(), before.kept.clone());
        let fence = Fence { generation: generation.max(stands), ..kept.fence.clone() };
        if let Err(error) = self.apply(&turn, Kept { fence, ..kept }, before.policy.clone()).await {
            tracing::error!(%sandbox, %error, "what stood may not stand");
        }
        Err(refusal)
    }

    /// A rule of a sandbox's own.
    pub async fn add_rule(&self, own: OwnRule) -> Result<Fence, Refusal> {
        self.change(&own.sandbox, |kept| {
            let id = own.rule.get("id").cloned();
            kept.own_rules.retain(|rule| rule.get("id").cloned() != id || id.is_none());
            kept.own_rules.push(own.rule);
            Ok(())
        })
        .await
    }

    /// The end of one.
    pub async fn remove_rule(&self, own: OwnRuleId) -> Result<Fence, Refusal> {
        self.change(&own.sandbox, |kept| {
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
        sandbox: &SandboxKey,
        change: impl FnOnce(&mut Kept) -> Result<(), Refusal>,
    ) -> Result<Fence, Refusal> {
        let turn = self.standings.turn(sandbox).await;
        let found = self.standings.get(sandbox).ok_or_else(|| no_such(sandbox))?;
        let mut kept = found.kept.clone();
        change(&mut kept)?;
        let policy = self.resolve(&kept.attach.policy, &kept.own_rules)?;
        self.apply(&turn, kept, policy).await
    }

    /// Lets a policy hold for a sandbox: in the kernel first, then in the worker. What is no longer permitted ends there. What somebody
    /// has changed of the fence by hand is not taken over.
    async fn apply(&self, turn: &Turn, mut kept: Kept, policy: CompiledPolicy) -> Result<Fence, Refusal> {
        let previous = kept.fence.policy;
        kept.policy = document(&policy);
        kept.fence.policy = policy.digest();
        kept.fence.generation += 1;
        let kept = self.enforce(kept, &policy, Put::Policy).await?;
        let told = self.worker.bind(bind(&kept)).await;
        let fence = self.standings.put(turn, kept, policy);
        let text = |digest: Digest| digest.to_string().as_str().into();
        let (generation, policy_digest) = (fence.generation, text(fence.policy));
        let changed = Event::PolicyChanged { generation, policy_digest, previous: Some(text(previous)) };
        self.recorder.record(&fence.sandbox, changed);
        told.map_err(silent)?; // names fail until there is a worker again, which then learns of it
        Ok(fence)
    }

    /// What was granted to a sandbox is asked for again.
    pub async fn revoke(&self, sandbox: &SandboxKey) -> Result<(), Refusal> {
        let _turn = self.standings.turn(sandbox).await;
        self.standings.get(sandbox).ok_or_else(|| no_such(sandbox))?;
        self.worker.revoke(sandbox).await.map_err(silent)
    }

    /// Reads named policies again, and the files of the decision point.
    pub async fn reload(&self) -> Reloaded {
        let mut reloaded = self.reload_all().await;
        let asked = match self.authz.read() {
            Ok(setup) => self.worker.set_authz(setup).await.map_err(|e| chain(&e)),
            Err(error) => Err(chain(&error)),
        };
        reloaded.errors.extend(asked.err().map(|error| format!("the decision point stays as it was: {error}")));
        reloaded
    }

    async fn reload_all(&self) -> Reloaded {
        let mut reloaded = Reloaded::default();
        for sandbox in self.standings.sandboxes() {
            let turn = self.standings.turn(&sandbox).await;
            let Some(found) = self.standings.get(&sandbox) else { continue }; // gone meanwhile
            let changed = match self.resolve(&found.kept.attach.policy, &found.kept.own_rules) {
                Ok(policy) if policy.digest() == found.kept.fence.policy => continue,
                Ok(policy) => self.apply(&turn, found.kept.clone(), policy).await.map(drop),
                Err(refusal) => Err(refusal),
            };
            match changed {
                Ok(()) => reloaded.changed.push(sandbox),
                Err(refusal) => reloaded.errors.push(format!("{sandbox} keeps the policy it has: {refusal}")),
            }
        }
        reloaded
    }

    /// The sandbox's fence, whenever it changes.
    pub fn watch(&self, sandbox: &SandboxKey) -> Result<watch::Receiver<Fence>, Refusal> {
        self.standings.watch(sandbox).ok_or_else(|| no_such(sandbox))
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

/// As it is kept and told: all rules, none included by name any more.
fn document(policy: &CompiledPolicy) -> Document {
    Document { include: Vec::new(), policy: policy.policy().clone() }
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
