//! The fence around a sandbox that has a network: creto-egress puts it up, on the host, before the first instruction. Without
//! it such a sandbox does not start; one without an interface needs none.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use egress::client::{Client, ClientError, DEADLINE};
use egress::protocol::{
    Answer, Ask, Attach, Code, Fence, MAX_LINE, PolicyRef, Question, Rebind, Refusal, SandboxKey, Update,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use trust::digest::Digest;
use trust::id::AgentId;
use trust::refusal::Cause;

use crate::attest::{self, Network};
use crate::backend::Place;
use crate::bound::Bound;
use crate::error::TaskError;
use crate::paths;

/// Before the daemon is asked again for what it has to tell.
const AGAIN: Duration = Duration::from_secs(2);

/// As creto-egress knows a pod's sandbox.
pub fn key(place: &Place) -> SandboxKey {
    SandboxKey { namespace: place.namespace.clone(), id: place.group.clone() }
}

/// What a fence is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// For whom the sandbox works.
    pub agent: Option<AgentId>,
    /// What it may connect to.
    pub policy: PolicyRef,
    /// The current statement about it.
    pub attestation: Option<Digest>,
}

/// Why there is no such fence.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Nobody was asked; what stood stands.
    #[error("the sandbox has a network and no fence around it: {0}")]
    Down(#[source] ClientError),
    /// The daemon refuses; what stood stands.
    #[error("the sandbox's network: {0}")]
    Refused(#[from] Refusal),
    /// It was asked, and nobody knows what came of it.
    #[error("the sandbox's network: {0}")]
    Unsure(String),
}

impl From<FenceError> for TaskError {
    /// Of a sandbox that is to start.
    fn from(error: FenceError) -> Self {
        let text = error.to_string();
        match error {
            FenceError::Down(_) => Self::Unavailable(text).because(Cause::EgressUnavailable),
            FenceError::Unsure(why) => {
                Self::Unavailable(format!("the sandbox has a network and no fence around it: {why}"))
                    .because(Cause::EgressUnavailable)
            }
            FenceError::Refused(refusal) => match cause(refusal.code) {
                cause @ Cause::EgressUnavailable => Self::Unavailable(text).because(cause),
                cause => Self::Rejected(text).because(cause),
            },
        }
    }
}

/// What a refusal of the daemon's means to whoever wants the sandbox.
pub fn cause(code: Code) -> Cause {
    match code {
        Code::PolicyInvalid => Cause::PolicyInvalid,
        Code::NoSuchSandbox => Cause::FenceLost,
        Code::NotFenceable | Code::Sealed => Cause::NotFenceable,
        Code::BadQuestion | Code::BadVersion | Code::NoSuchRule | Code::Kernel | Code::Worker | Code::State => {
            Cause::EgressUnavailable
        }
    }
}

/// What there is between sandboxes and networks.
#[async_trait]
pub trait Fences: Send + Sync {
    /// How the sandbox of a process can reach a network.
    fn network(&self, pid: i32) -> Network;

    /// Puts up a fence around the network namespace of a process; none where nothing in it can send a packet.
    async fn attach(&self, place: &Place, pid: i32, asked: Asked) -> Result<Option<Fence>, FenceError>;

    /// Gives the fence that stands another agent and policy.
    async fn rebind(&self, place: &Place, asked: Asked) -> Result<Fence, FenceError>;

    /// Gives the fence that stands another policy.
    async fn update(&self, place: &Place, policy: PolicyRef) -> Result<Fence, FenceError>;
}

/// creto-egress, and the kernel.
pub struct Egress;

#[async_trait]
impl Fences for Egress {
    fn network(&self, pid: i32) -> Network {
        attest::network(pid)
    }

    async fn attach(&self, place: &Place, pid: i32, asked: Asked) -> Result<Option<Fence>, FenceError> {
        let Asked { agent, policy, attestation } = asked;
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let agent = agent.map(|agent| agent.to_string());
        match ask(Ask::Attach(Attach { sandbox: key(place), agent, netns, policy, attestation })).await {
            Ok(fence) => Ok(Some(fence)),
            Err(FenceError::Refused(Refusal { code: Code::Sealed, .. })) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn rebind(&self, place: &Place, asked: Asked) -> Result<Fence, FenceError> {
        let Asked { agent, policy, attestation } = asked;
        let agent = agent.map(|agent| agent.to_string());
        ask(Ask::Rebind(Rebind { sandbox: key(place), agent, policy, attestation })).await
    }

    async fn update(&self, place: &Place, policy: PolicyRef) -> Result<Fence, FenceError> {
        ask(Ask::Update(Update { sandbox: key(place), policy })).await
    }
}

/// What is answered with a fence. Without a thread of its own: a claim waits for the answer.
async fn ask(ask: Ask) -> Result<Fence, FenceError> {
    let path = paths::egress();
    let unsure = |error: &dyn std::fmt::Display| FenceError::Unsure(format!("creto-egress gave no answer: {error}"));
    let line = Question::line(ask).map_err(|e| unsure(&e))?;
    let connected = UnixStream::connect(&path).await;
    let mut stream = BufReader::new(connected.map_err(|error| FenceError::Down(ClientError::Down { path, error }))?);
    let answered = async {
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        (&mut stream).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut answer).await?;
        match answer.last() {
            Some(b'\n') => Ok(answer),
            _ => Err(Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
        }
    };
    let late = |_| Err(Error::from(ErrorKind::TimedOut));
    let answer = tokio::time::timeout(DEADLINE, answered).await.unwrap_or_else(late).map_err(|e| unsure(&e))?;
    match serde_json::from_slice(&answer).map_err(|e| unsure(&e))? {
        Answer::Fence(fence) => Ok(fence),
        Answer::Refused(refusal) => Err(FenceError::Refused(refusal)),
        other => Err(unsure(&format!("{other:?} instead of a fence"))),
    }
}

/// Takes a fence down, whether there is one or not. One that cannot be asked for sweeps by itself what belongs to nobody.
pub fn detach(place: &Place) {
    let asked = Client::connect(&paths::egress(), DEADLINE).and_then(|mut daemon| daemon.done(Ask::Detach(key(place))));
    match asked {
        Ok(()) | Err(ClientError::Down { .. }) => {}
        Err(error) => tracing::warn!(sandbox = place.group, %error, "the fence stands on"),
    }
}

/// Tells the sandbox's owner of every change of its fence, for as long as there is one.
pub fn watch(bound: &Arc<Bound>, place: Place) {
    let bound = Arc::downgrade(bound);
    tokio::spawn(async move {
        while bound.strong_count() > 0 {
            if let Err(error) = follow(&bound, &place, &paths::egress()).await {
                tracing::debug!(sandbox = place.group, %error, "creto-egress tells nothing for now");
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

async fn follow(bound: &Weak<Bound>, place: &Place, socket: &Path) -> Result<(), Error> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    stream.write_all(&Question::line(Ask::Watch(key(place)))?).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let Answer::Fence(fence) = serde_json::from_str(&line)? else {
            return Err(Error::new(ErrorKind::InvalidData, line)); // refused: there is no fence
        };
        let Some(bound) = bound.upgrade() else { return Ok(()) };
        if let Err(error) = bound.heard_of(fence).await {
            tracing::error!(sandbox = place.group, %error, "the new fence is not attested");
        }
        line.clear();
    }
    Ok(())
}

/// For the order of a claim, and what it leaves where a step fails.
#[cfg(test)]
pub mod fake {
    use std::collections::VecDeque;
    use std::io;
    use std::sync::{Arc, Mutex};

    use trust::attestation::predicate::Fence as Sealed;

    use super::*;

    /// What goes wrong with one question.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Broken {
        /// The daemon is down.
        Down,
        /// It refuses.
        Refuses(Code),
        /// It is gone before it has answered.
        Unsure,
    }

    /// Without a network, or with one around which a fence stands that does as it is told.
    #[derive(Clone, Default)]
    pub struct FakeFences {
        /// Whether there is a network.
        pub wired: bool,
        /// What was asked for: `attach AGENT POLICY`, `rebind AGENT POLICY` or `update POLICY`.
        pub journal: Arc<Mutex<Vec<String>>>,
        /// What becomes of the next questions.
        pub next: Arc<Mutex<VecDeque<Option<Broken>>>>,
    }

    impl FakeFences {
        fn answer(&self, place: &Place, question: String, policy: &PolicyRef) -> Result<Fence, FenceError> {
            let mut journal = self.journal.lock().unwrap();
            journal.push(question);
            let refusal = |code| Refusal { code, message: "no".into() };
            match self.next.lock().unwrap().pop_front().flatten() {
                Some(Broken::Down) => {
                    let error = io::Error::other("down");
                    Err(FenceError::Down(ClientError::Down { path: "/egress.sock".into(), error }))
                }
                Some(Broken::Refuses(code)) => Err(FenceError::Refused(refusal(code))),
                Some(Broken::Unsure) => Err(FenceError::Unsure("gone".into())),
                None => Ok(Fence {
                    sandbox: key(place),
                    mark: 1,
                    interfaces: vec![],
                    ruleset: Digest::of(format!("{policy:?}").as_bytes()),
                    policy: Digest::of(format!("canonical {policy:?}").as_bytes()),
                    generation: journal.len() as u64,
                }),
            }
        }
    }

    #[async_trait]
    impl Fences for FakeFences {
        fn network(&self, _: i32) -> Network {
            match self.wired {
                true => Network::Wired,
                false => Network::Sealed(Sealed { mechanism: "sealed".into(), digest: Digest::of(b"lo") }),
            }
        }

        async fn attach(&self, place: &Place, _: i32, asked: Asked) -> Result<Option<Fence>, FenceError> {
            self.answer(place, question("attach", &asked), &asked.policy).map(Some)
        }

        async fn rebind(&self, place: &Place, asked: Asked) -> Result<Fence, FenceError> {
            self.answer(place, question("rebind", &asked), &asked.policy)
        }

        async fn update(&self, place: &Place, policy: PolicyRef) -> Result<Fence, FenceError> {
            self.answer(place, format!("update {}", told(&policy)), &policy)
        }
    }

    fn question(verb: &str, Asked { agent, policy, .. }: &Asked) -> String {
        let agent = agent.as_ref().map_or("nobody".into(), ToString::to_string);
        format!("{verb} {agent} {}", told(policy))
    }

    fn told(policy: &PolicyRef) -> String {
        match policy {
            PolicyRef::Named(name) => name.clone(),
            PolicyRef::Inline(policy) => policy.to_string(),
        }
    }
}
