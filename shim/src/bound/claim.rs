//! A claim: a sandbox that has waited, working for nobody behind a fence that lets nothing pass, is handed over. Once.
//!
//! **Invariant:** at any time a sandbox is whole: it waits, or it is one claim's (agent, key, token, secrets, policy and fence
//! are all of that claim), or it is spoilt. What can be refused is looked at first, and changes nothing: the sandbox waits on.
//! From the first change on there is no way back: what fails then spoils the sandbox. Nothing of anybody's is left in it, it
//! has the fence that it waited behind, and nobody gets it any more; where that cannot be brought about it is ended
//! (`Failed::loose`).

mod steps;

use std::fmt;
use std::sync::Arc;

use egress::protocol::{Fence, PolicyRef};
use trust::attestation::predicate::Launch;
use trust::audit::{About, Event, Text};
use trust::digest::Digest;
use trust::id::{AgentId, ClaimId, PoolGeneration, PoolName};
use trust::identity::Word;
use trust::identity::workload::Credential;
use trust::refusal::Cause;
use trust::sandbox_api::Took;

use self::steps::{Step, Steps};
use super::network::{default_policy, digest_of, refusal, unheld};
use super::statement::Stand;
use super::{Bond, Bound, State, credential};
use crate::attest::Network;
use crate::error::TaskError;
use crate::fence::{self, FenceError};
use crate::run_dir::{self, Readers};
use crate::secrets::{Audience, SecretRef, Secrets};

/// What becomes of a sandbox as one that waits to be claimed.
pub enum Standing {
    /// It was not made for that.
    Never,
    /// It waits.
    Waits,
    /// It was handed over.
    Taken {
        /// To whom.
        claim: ClaimId,
        /// What was said of it, and is said again whenever the claim asks again.
        answer: Box<Claimed>,
    },
    /// A claim failed half-way.
    Spoilt(Spoilt),
}

impl Standing {
    /// Nobody gets it any more.
    pub fn is_spoilt(&self) -> bool {
        matches!(self, Self::Spoilt(_))
    }
}

/// A claim's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// What the sandbox is bound to.
    pub stand: Stand,
    /// How long that took.
    pub took: Took,
}

/// What has spoilt a sandbox.
#[derive(Clone, Debug)]
pub struct Spoilt {
    /// Whose claim.
    pub claim: ClaimId,
    step: &'static str,
    why: String,
}

impl fmt::Display for Spoilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TaskError::from(self.clone()).fmt(f)
    }
}

impl From<Spoilt> for TaskError {
    fn from(Spoilt { claim, step, why }: Spoilt) -> Self {
        Self::Spoilt { claim, step, why }
    }
}

/// What a claim asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name.
    pub claim: ClaimId,
    /// Where the sandbox has waited.
    pub pool: PoolName,
    /// What it was made from there.
    pub generation: Option<PoolGeneration>,
    /// For whom it works from here on.
    pub agent: Option<AgentId>,
    /// Whether whoever asks has verified that agent's token.
    pub by_token: bool,
    /// What it may connect to; the agent's own policy where none is named.
    pub policy: Option<PolicyRef>,
    /// What its containers may know.
    pub secrets: Vec<SecretRef>,
}

/// A claim that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: TaskError,
    /// It is not certain that the sandbox is empty and behind the fence that it waited behind: end it.
    pub loose: bool,
}

impl From<TaskError> for Failed {
    fn from(error: TaskError) -> Self {
        Self { error, loose: false }
    }
}

/// What a claim brings, looked up and made, before anything is changed.
struct Heir {
    bond: Bond,
    credential: Credential,
    policy: PolicyRef,
    digest: Digest,
}

/// What a sandbox goes back to that a claim has spoilt.
struct Before {
    bond: Arc<Bond>,
    policy: PolicyRef,
    digest: Digest,
    fence: Option<Fence>,
}

impl Bound {
    /// Hands the sandbox over, and says what it is bound to. The order: identity, policy and secrets are looked up · the fence
    /// is put up for the new agent and policy · key, token and secrets are replaced · the statement · the record.
    pub async fn claim(self: &Arc<Self>, asked: Asked) -> Result<Claimed, Failed> {
        let _alone = self.changing.lock().await;
        if let Some(answer) = self.answered(&asked.claim)? {
            return Ok(answer);
        }
        let mut steps = Steps::begin();
        let (heir, pid) = match self.look(&asked, &mut steps).await {
            Ok(heir) => heir,
            Err(error) => return Err(self.refused(&asked, steps.now, error).into()),
        };
        let before = self.before();
        steps.enter(Step::Fence); // the first change
        let fence = match self.fence_in(pid, &heir).await {
            Ok(fence) => fence,
            Err(FenceError::Unsure(why)) => return Err(self.spoil(&asked, steps.now, why, before, pid).await),
            Err(unchanged) => return Err(self.refused(&asked, steps.now, refusal(unchanged)).into()),
        };
        let is_first = before.fence.is_none() && fence.is_some();
        steps.enter(Step::Delivery);
        let handed_over = self.hand_over(heir, fence).and_then(|secrets| {
            steps.enter(Step::Attestation);
            Ok((secrets, self.issue()?))
        });
        let (secrets, issued) = match handed_over {
            Ok(done) => done,
            Err(error) => return Err(self.spoil(&asked, steps.now, error.to_string(), before, pid).await),
        };
        if is_first {
            fence::watch(self, self.place.clone());
        }
        let stand = self.stand().ok_or_else(|| self.gone())?; // it has ended under our hands
        steps.enter(Step::Record);
        let claimed = Event::SandboxClaimed {
            pool: text(&asked.pool),
            claim: text(&asked.claim),
            policy_digest: Some(text(&stand.policy)),
        };
        let delivered = (!secrets.is_empty()).then_some(Event::SecretsDelivered { names: secrets });
        self.record([claimed].into_iter().chain(delivered).chain([issued]).collect());
        let answer = Claimed { stand, took: steps.end() };
        self.state().claim = Standing::Taken { claim: asked.claim, answer: Box::new(answer.clone()) };
        Ok(answer)
    }

    /// What became of the sandbox's claim, and by which claim, for whoever asks.
    pub fn told_of_claim<T>(&self, tell: impl FnOnce(&Standing) -> T) -> T {
        tell(&self.state().claim)
    }

    /// The answer, where this claim has had one; an error where it can get none.
    fn answered(&self, claim: &ClaimId) -> Result<Option<Claimed>, TaskError> {
        match &self.state().claim {
            Standing::Waits => Ok(None),
            Standing::Taken { claim: taken, answer } if taken == claim => Ok(Some((**answer).clone())),
            Standing::Spoilt(spoilt) if spoilt.claim == *claim => Err(spoilt.clone().into()),
            Standing::Taken { claim: taken, .. } => {
                Err(TaskError::NotClaimable(format!("the sandbox was handed over to claim {taken}, and is so once")))
            }
            Standing::Spoilt(spoilt) => Err(TaskError::NotClaimable(spoilt.to_string())),
            Standing::Never => {
                let why = "the sandbox was not made to be claimed: make it with the annotation creto.dev/claimable";
                Err(TaskError::NotClaimable(why.into()))
            }
        }
    }

    /// All that may be refused, and changes nothing. With it the sandbox's process.
    async fn look(&self, asked: &Asked, steps: &mut Steps) -> Result<(Heir, i32), TaskError> {
        let word = Word { agent: asked.agent.as_ref(), by_token: asked.by_token, backend: &self.backend };
        let rejected = |e: &dyn fmt::Display| TaskError::Rejected(e.to_string()).because(Cause::IdentityRejected);
        let identity = self.ports.binder.vouched(word).await.map_err(|e| rejected(&e))?;
        steps.enter(Step::Policy);
        let policy = asked.policy.clone().unwrap_or_else(|| default_policy(&identity));
        let digest = digest_of(&self.ports.policies, &policy)?;
        steps.enter(Step::Secrets);
        let audience = Audience { identity: &identity, sandbox: &self.sandbox };
        let secrets = Secrets::resolve(&asked.secrets, &self.secrets, audience).await?;
        steps.enter(Step::Token);
        let credential = credential(&self.ports, &identity, &self.sandbox)?;
        steps.enter(Step::Network);
        let pid = self.pid().ok_or_else(|| self.gone())?;
        match self.ports.fences.network(pid) {
            Network::Gone => return Err(self.gone()),
            Network::Host => return Err(unheld()),
            Network::Sealed(_) | Network::Wired => {}
        }
        let agent = identity.agent().map(text);
        let about = About { agent, ..self.bond().about.clone() };
        let launch = Launch::Claimed {
            pool: asked.pool.clone(),
            generation: asked.generation.clone(),
            claim: asked.claim.clone(),
        };
        let bond = Bond { identity, asked_secrets: asked.secrets.clone(), secrets, launch, about };
        Ok((Heir { bond, credential, policy, digest }, pid))
    }

    /// The fence for the new agent and policy, where there is a network.
    async fn fence_in(&self, pid: i32, heir: &Heir) -> Result<Option<Fence>, FenceError> {
        let (agent, policy) = (heir.bond.identity.agent().cloned(), heir.policy.clone());
        match self.ports.fences.network(pid) {
            Network::Wired if !self.state().idle => {
                let asked = fence::Asked { agent, policy, attestation: self.current() };
                let stands = self.state().fence.is_some();
                match stands {
                    true => self.ports.fences.rebind(&self.place, asked).await.map(Some),
                    false => self.ports.fences.attach(&self.place, pid, asked).await,
                }
            }
            _ => Ok(None),
        }
    }

    /// Puts what the claim brings in the place of what was: nothing of that is left. Returns the names of the secrets.
    fn hand_over(&self, heir: Heir, fence: Option<Fence>) -> Result<Vec<Text>, TaskError> {
        let doing = |e: std::io::Error| TaskError::host("replacing what is in /run/creto", e);
        let mut state = self.state();
        if state.ended {
            return Err(self.gone());
        }
        let mut names = Vec::new();
        for dir in state.dirs.values() {
            dir.clear().map_err(doing)?;
            let key = heir.credential.private_key.as_bytes();
            dir.put(run_dir::KEY, key, Readers::Workload).map_err(doing)?;
            names = heir.bond.secrets.deliver(dir).map_err(doing)?;
            // Last: whoever waits for it finds the rest.
            dir.put(run_dir::TOKEN, heir.credential.token.as_bytes(), Readers::Workload).map_err(doing)?;
        }
        state.policy = fence.as_ref().map_or(heir.digest, |fence| fence.policy);
        state.asked_policy = heir.policy;
        state.fence = fence;
        state.bond = Arc::new(heir.bond);
        state.credential = heir.credential;
        state.refused = None;
        Ok(names)
    }

    fn before(&self) -> Before {
        let state = self.state();
        let (bond, policy) = (state.bond.clone(), state.asked_policy.clone());
        Before { bond, policy, digest: state.policy, fence: state.fence.clone() }
    }

    /// Nothing was changed: the sandbox waits on, and it is recorded who has asked.
    fn refused(&self, asked: &Asked, step: Step, error: TaskError) -> TaskError {
        let why = error.to_string();
        let event = match step {
            Step::Identity => Event::IdentityRejected { claimed: asked.agent.as_ref().map(text), reason: text(&why) },
            _ => failure(asked, step, &why, false),
        };
        self.record(vec![event]);
        error
    }

    /// Something was changed, and not all: takes everything out of the sandbox, and asks for the fence that it had.
    async fn spoil(&self, asked: &Asked, step: Step, why: String, before: Before, pid: i32) -> Failed {
        tracing::error!(sandbox = self.place.group, claim = %asked.claim, step = step.name(), why, "a claim has failed half-way");
        let fence = fence::Asked {
            agent: before.bond.identity.agent().cloned(),
            policy: before.policy.clone(),
            attestation: self.current(),
        };
        let had_fence = before.fence.is_some();
        let spoilt = Spoilt { claim: asked.claim.clone(), step: step.name(), why };
        let is_empty = self.empty(before, spoilt.clone());
        let is_fenced = match self.ports.fences.network(pid) {
            Network::Wired if had_fence => match self.ports.fences.rebind(&self.place, fence).await {
                Ok(fence) => {
                    self.state().fence = Some(fence);
                    true
                }
                Err(error) => {
                    tracing::error!(sandbox = self.place.group, %error, "the fence that it had is not there for certain");
                    false
                }
            },
            Network::Wired => self.state().idle,
            Network::Sealed(_) | Network::Gone => true,
            Network::Host => false,
        };
        self.record(vec![failure(asked, step, &spoilt.why, true)]);
        Failed { error: spoilt.into(), loose: !(is_empty && is_fenced) }
    }

    /// Nobody's any more: whether nothing of anybody's is left in the sandbox.
    fn empty(&self, before: Before, spoilt: Spoilt) -> bool {
        let mut state = self.state();
        let State { bond, asked_policy, policy, fence, claim, .. } = &mut *state;
        (*bond, *asked_policy, *policy, *fence) = (before.bond, before.policy, before.digest, before.fence);
        *claim = Standing::Spoilt(spoilt);
        // Each, whatever becomes of the others.
        let emptied = state.dirs.values().flat_map(|dir| [dir.clear(), dir.remove(run_dir::ATTESTATION)]);
        let failed = emptied.filter_map(Result::err).inspect(|error| tracing::error!(%error, "emptying /run/creto"));
        failed.count() == 0
    }
}

fn failure(asked: &Asked, step: Step, why: &str, spoilt: bool) -> Event {
    let (pool, claim) = (text(&asked.pool), text(&asked.claim));
    Event::SandboxClaimFailed { pool, claim, step: step.name().into(), error: text(why), spoilt }
}

fn text(of: &(impl fmt::Display + ?Sized)) -> Text {
    of.to_string().as_str().into()
}

#[cfg(test)]
mod tests;
