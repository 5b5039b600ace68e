//! RequireAuthz: a decision point is asked whether a connection may be made.
//!
//! question → what is known of it (`answers`) → the decision point: embedded (`cedar`) or another service (`authzen`, behind a
//! `breaker`) → its answer, for all who asked. Whatever goes wrong is a refusal, and says why. Not here: which connections need
//! a decision (`policy::check`), and what a refused one is told (the gate). `settings` and `setup` say which decision point
//! there is.

pub mod answers;
pub mod authzen;
pub mod breaker;
pub mod cedar;
#[cfg(test)]
mod fake;
pub mod question;
pub mod settings;
pub mod setup;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};

use self::answers::{Answer, Answers, Asker, Landing, Look};
use self::authzen::{AuthZen, BadAuthZen};
use self::breaker::Breaker;
use self::cedar::{BadCedar, Cedar};
use self::question::Question;
use self::setup::{DecisionPoint, Limits, Setup};
use super::{Authorizable, Authorizer, Binding, Unauthorized};
use crate::protocol::SandboxKey;

/// What a decision point decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection may be made.
    Granted,
    /// It may not.
    Refused,
}

/// Why there is no decision; each is a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// Nobody to ask.
    #[error("none is configured: set [authz] in egress.toml")]
    NoDecisionPoint,
    /// The sandbox is gone.
    #[error("the sandbox is detached")]
    Detached,
    /// An answer to a question of the past.
    #[error("policy, grants or decision point changed while it was asked")]
    Superseded,
    /// The sandbox asks too much at once.
    #[error("{0} questions of the sandbox are pending already")]
    Crowded(usize),
    /// The breaker is open.
    #[error("it failed too often and is left alone for a while")]
    Broken,
    /// Too slow.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// Not to be had.
    #[error("it cannot be asked: {0}")]
    Unreachable(String),
    /// It answered something else.
    #[error("its answer is none: {0}")]
    NoAnswer(String),
    /// A policy of it failed.
    #[error("its policies fail: {0}")]
    Failed(String),
    /// Whoever asked has vanished.
    #[error("the question was lost")]
    Lost,
}

/// A question that is being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Who wants to connect.
    pub sandbox: SandboxKey,
    /// To where: a name, or an address.
    pub destination: String,
    /// To which port.
    pub port: u16,
    /// Since when it is being asked.
    pub since: SystemTime,
}

/// Why a decision point cannot be used; the one before stays.
#[derive(Debug, thiserror::Error)]
pub enum BadSetup {
    /// Cedar's texts.
    #[error(transparent)]
    Cedar(#[from] BadCedar),
    /// The service.
    #[error(transparent)]
    AuthZen(#[from] BadAuthZen),
}

/// The decision point, and what it answered so far. Shared by clones.
#[derive(Clone)]
pub struct Authz {
    state: Arc<Mutex<State>>,
}

struct State {
    setup: Setup,
    generation: u64,
    point: Point,
    answers: Answers,
}

#[derive(Clone)]
enum Point {
    None,
    Embedded(Arc<Cedar>),
    Remote(Arc<Remote>),
}

struct Remote {
    service: AuthZen,
    breaker: Mutex<Breaker>,
}

/// A question that was not asked by whoever holds this alone.
enum Begun {
    Answered(Verdict),
    /// Asked of the decision point of this generation.
    Asked(u64, Landing),
}

impl Default for Authz {
    fn default() -> Self {
        Self::new()
    }
}

impl Authz {
    /// Without a decision point: refuses everything.
    pub fn new() -> Self {
        let (setup, answers) = (Setup::default(), Answers::default());
        Self { state: Arc::new(Mutex::new(State { setup, generation: 0, point: Point::None, answers })) }
    }

    /// Puts a decision point in the place of the one before, and forgets what that one answered; its generation. A bad one
    /// changes nothing, and neither does the one that is there already.
    pub fn set_up(&self, setup: Setup) -> Result<u64, BadSetup> {
        if let State { setup: current, generation, .. } = &*self.state()
            && *current == setup
        {
            return Ok(*generation);
        }
        let point = match &setup.point {
            DecisionPoint::None => Point::None,
            DecisionPoint::Cedar(texts) => Point::Embedded(Arc::new(Cedar::load(texts).map_err(refused)?)),
            DecisionPoint::AuthZen(service) => Point::Remote(Arc::new(Remote {
                service: AuthZen::new(service).map_err(refused)?,
                breaker: Mutex::default(),
            })),
        };
        let mut state = self.state();
        (state.setup, state.point) = (setup, point);
        state.generation += 1;
        state.answers.forget_all();
        tracing::info!(generation = state.generation, point = state.setup.point.kind(), "decision point in use");
        Ok(state.generation)
    }

    /// Forgets what was granted to a sandbox, and what is being asked for it: for one that is detached, too.
    pub fn revoke(&self, sandbox: &SandboxKey) {
        self.state().answers.forget(sandbox);
    }

    /// The questions that are being asked, the oldest first.
    pub fn pending(&self) -> Vec<Pending> {
        self.state().answers.pending()
    }

    /// The answer, from what is known or from the decision point.
    pub async fn decide(&self, question: &Question) -> Answer {
        loop {
            let (generation, mut landing) = match self.begin(question)? {
                Begun::Answered(verdict) => return Ok(verdict),
                Begun::Asked(generation, landing) => (generation, landing),
            };
            let answer = landing.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
            match answer.unwrap_or(Err(Undecided::Lost)) {
                // Another decision point took its place: it has not refused.
                Err(Undecided::Superseded) if self.state().generation != generation => (),
                answer => return answer,
            }
        }
    }

    fn begin(&self, question: &Question) -> Result<Begun, Undecided> {
        let mut state = self.state();
        let (point, generation, limits) = (state.point.clone(), state.generation, state.setup.limits);
        match state.answers.look(question, Instant::now(), || point.may_ask())? {
            Look::Answered(verdict) => Ok(Begun::Answered(verdict)),
            Look::Pending(landing) => Ok(Begun::Asked(generation, landing)),
            Look::Ask(asker, landing) => {
                drop(state);
                self.ask(point, question, asker, limits);
                Ok(Begun::Asked(generation, landing))
            }
        }
    }

    /// The question outlives whoever asks it first: others may wait for it.
    fn ask(&self, point: Point, question: &Question, asker: Asker, limits: Limits) {
        match point {
            Point::None => self.land(question, asker, Err(Undecided::NoDecisionPoint), &limits),
            Point::Embedded(cedar) => self.land(question, asker, cedar.decide(question), &limits),
            Point::Remote(remote) => {
                let (authz, question) = (self.clone(), question.clone());
                tokio::spawn(async move {
                    let answer = remote.ask(&question, &limits).await;
                    authz.land(&question, asker, answer, &limits);
                });
            }
        }
    }

    fn land(&self, question: &Question, asker: Asker, answer: Answer, limits: &Limits) {
        let Question { sandbox, agent, port, generation, host } = question;
        tracing::debug!(%sandbox, agent = agent.as_deref(), destination = %host, port, generation, ?answer, "authz");
        self.state().answers.land(question, asker, answer, Instant::now(), &limits.times());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused<E: Into<BadSetup>>(error: E) -> BadSetup {
    let error = error.into();
    tracing::error!(%error, "the new decision point is refused; the one before stays in use");
    error
}

impl Point {
    fn may_ask(&self) -> Result<(), Undecided> {
        match self {
            Self::None => Err(Undecided::NoDecisionPoint),
            Self::Embedded(_) => Ok(()),
            Self::Remote(remote) if remote.breaker().admit(Instant::now()) => Ok(()),
            Self::Remote(_) => Err(Undecided::Broken),
        }
    }
}

impl Remote {
    async fn ask(&self, question: &Question, limits: &Limits) -> Answer {
        let asked = timeout(limits.deadline, self.service.ask(question)).await;
        let answer = asked.unwrap_or(Err(Undecided::Deadline(limits.deadline)));
        let changed = self.breaker().note(answer.is_ok(), Instant::now(), &limits.breaker());
        match &answer {
            Ok(_) if changed => tracing::info!("the decision point answers again"),
            Err(error) if changed => {
                tracing::error!(%error, left_alone = ?limits.breaker_open, "the decision point fails: all is refused")
            }
            Err(error) => tracing::warn!(%error, "the decision point gave no decision"),
            Ok(_) => (),
        }
        answer
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authorizer for Authz {
    async fn authorize(&self, binding: &Binding, destination: Authorizable<'_>, port: u16) -> Result<(), Unauthorized> {
        let generation = || binding.effective.borrow().as_ref().map(|effective| effective.generation);
        let undecided = |why: Undecided| Unauthorized::Undecided(why.to_string());
        let asked = generation().ok_or(Undecided::Detached).map_err(undecided)?;
        let (sandbox, agent) = (binding.sandbox.clone(), binding.agent.clone());
        let question = Question { sandbox, agent, host: destination.into(), port, generation: asked };
        let verdict = self.decide(&question).await.map_err(undecided)?;
        if generation() != Some(asked) {
            return Err(undecided(Undecided::Superseded)); // the new policy may refuse it altogether
        }
        match verdict {
            Verdict::Granted => Ok(()),
            Verdict::Refused => Err(Unauthorized::Refused),
        }
    }
}
