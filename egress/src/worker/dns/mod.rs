//! The policy DNS: answers what sandboxes ask, by their policies alone.
//!
//! A datagram or a message over TCP (`server`) → who asks, and how often (here) → a `question` → its `answer` → bytes
//! (`reply`). An allowed name has a synthetic address (`names`, `synthetic`), by which the gate learns the name that a
//! connection goes to. Nothing that a sandbox asks is passed on: `upstream` resolves what the gate connects to, and nothing
//! else. Not here: whether a name is allowed (`policy`), that port 53 leads here (the fence). Source: RFC 1035, 2308, 6761,
//! 6891, 8914.

mod answer;
mod counters;
mod names;
mod question;
mod reply;
mod server;
mod settings;
mod synthetic;
mod tcp;
mod udp;
mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trust::rate::{Bucket, Rate};

pub use counters::Counters;
pub use names::{HeldName, Names};
pub use server::{Sockets, serve};
pub use settings::{DeniedAs, DnsSettings, Limits, Server, TcpSettings, Transport, UpstreamSettings};
pub use synthetic::{Change, Given};
pub use upstream::{BadUpstream, ResolveError, Resolved, Upstream};

use self::answer::{Answer, Judged, Refusal, judge};
use self::counters::count;
use self::question::{Malformed, Question};
use super::{Attempt, Attempts, Binding, Bindings, Effective, Outcome};
use crate::policy::Protocol;
use crate::protocol::SandboxKey;

/// How often one is told that a sandbox asks too much.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The policy DNS of a node.
pub struct Dns {
    bindings: Arc<Bindings>,
    names: Arc<Names>,
    attempts: Arc<dyn Attempts>,
    settings: DnsSettings,
    questions: Rate,
    asking: Mutex<HashMap<SandboxKey, Asking>>,
    counters: Counters,
}

/// How much a sandbox has asked.
#[derive(Default)]
struct Asking {
    bucket: Bucket,
    told: Option<Instant>,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is answered.
    Send(Vec<u8>),
    /// It is not: no question, or one too many.
    Silence,
}

impl Dns {
    /// Answers those in `bindings`, with addresses from `names`.
    pub fn new(bindings: Arc<Bindings>, names: Arc<Names>, attempts: Arc<dyn Attempts>, settings: DnsSettings) -> Self {
        let questions = settings.limits.questions();
        Self { bindings, names, attempts, settings, questions, asking: Mutex::default(), counters: Counters::default() }
    }

    /// What has been answered so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Forgets a sandbox: its names, and what it asked. Call it once it is removed from the bindings.
    pub fn forget(&self, sandbox: &SandboxKey) {
        self.names.forget(sandbox);
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
    }

    /// The answer to a message that came from `source`.
    pub fn answer(&self, source: IpAddr, message: &[u8], over: Protocol) -> Reply {
        let binding = self.bindings.of(source.to_canonical());
        let effective = binding.as_ref().and_then(|binding| binding.effective.borrow().clone());
        let asker = binding.as_deref().zip(effective.as_deref());
        if let Some((binding, effective)) = asker
            && !self.may_ask(binding, effective, over)
        {
            return Reply::Silence;
        }
        let bytes = match Question::read(message) {
            Ok(question) => {
                let answer = self.of(asker, &question, over);
                count(&self.counters, &answer);
                reply::reply(&question, &answer, self.settings.ttl_seconds)
            }
            Err(Malformed::OtherClass(question)) => {
                let answer = Answer::Refused(Refusal::Class);
                count(&self.counters, &answer);
                reply::reply(&question, &answer, self.settings.ttl_seconds)
            }
            Err(Malformed::Bad(frame, code)) => {
                Counters::add(&self.counters.malformed);
                reply::error(&frame, code)
            }
            Err(Malformed::NoQuestion) => {
                Counters::add(&self.counters.malformed);
                return Reply::Silence;
            }
        };
        match bytes {
            Ok(bytes) => Reply::Send(bytes),
            Err(error) => {
                tracing::error!(%error, "an answer could not be written");
                Reply::Silence
            }
        }
    }

    /// The answer to a question of a sandbox, if who asks is one. What it asked in vain is told.
    fn of(&self, asker: Option<(&Binding, &Effective)>, question: &Question, over: Protocol) -> Answer {
        let Some((binding, effective)) = asker else { return Answer::Refused(Refusal::NoSandbox) };
        let sandbox = &binding.sandbox;
        let answer = match judge(question, &effective.policy, &self.settings) {
            Judged::Address(name) => match self.names.give(sandbox, &name) {
                Ok(address) => Answer::Address(address),
                Err(none) => Answer::Refused(none.into()),
            },
            Judged::Pointer(address) => match self.names.find(sandbox, address) {
                Some(name) => Answer::Pointer(name),
                None => Answer::Refused(Refusal::NoPointer),
            },
            Judged::Answer(answer) => answer,
        };
        // A program asks for the names of addresses for its log: nothing that was attempted.
        if let Answer::Refused(refusal) | Answer::NoSuchName(refusal) = &answer
            && *refusal != Refusal::NoPointer
        {
            let name = question.name.to_ascii().to_ascii_lowercase();
            let rule = match refusal {
                Refusal::Denied { rule, .. } => rule.clone(),
                _ => None,
            };
            let why = match &answer {
                Answer::NoSuchName(_) => format!("{refusal} (answered NXDOMAIN)"),
                _ => refusal.to_string(),
            };
            let name = name.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(&name);
            self.tell(binding, effective, name, why, rule, over);
        }
        answer
    }

    /// Counts a question of a sandbox, and says whether it is within the sandbox's limit.
    fn may_ask(&self, binding: &Binding, effective: &Effective, over: Protocol) -> bool {
        let now = Instant::now();
        let tell = {
            let mut all = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            let asking = match all.get_mut(&binding.sandbox) {
                Some(asking) => asking,
                None => all.entry(binding.sandbox.clone()).or_default(),
            };
            if asking.bucket.take(&self.questions, now) {
                return true;
            }
            let tell = asking.told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
            if tell {
                asking.told = Some(now);
            }
            tell
        };
        Counters::add(&self.counters.limited);
        if tell {
            self.tell(binding, effective, "", "too many questions at once".to_owned(), None, over);
        }
        false
    }

    fn tell(
        &self,
        binding: &Binding,
        effective: &Effective,
        to: &str,
        why: String,
        rule: Option<String>,
        over: Protocol,
    ) {
        self.attempts.tell(Attempt {
            sandbox: binding.sandbox.clone(),
            destination: to.to_owned(),
            port: 0,
            protocol: over,
            outcome: Outcome::Denied(why),
            rule,
            generation: effective.generation,
        });
    }
}
