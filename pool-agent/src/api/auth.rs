//! Who asks. Over the socket it is root, who may do all and say for whom. Over TCP it is an agent, by a token of its own that is good
//! once (docs/identity.md), for its own sandboxes; who brings none may look and change nothing. Agents are looked up where the shim looks
//! them up: `identity.source` in runtime.toml.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use trust::chain::chain;
use trust::clock::SystemClock;
use trust::id::{AgentId, BackendName};
use trust::identity::http::{self, HttpSource};
use trust::identity::registry::Registry;
use trust::identity::replay::SeenTokens;
use trust::identity::service::HttpSettings;
use trust::identity::source::AgentSource;
use trust::identity::token::{Rules, unverified_subject};
use trust::identity::{self, Binder, Permission, Word};
use trust::sandbox_api::Proven;

use super::limits::Limits;
use super::problem::Problem;
use crate::claim::Caller;
use crate::node::Node;
use crate::ports::Ports;
use crate::sandbox::Sandbox;
use crate::spec::Backend;

/// An answer of an identity service counts for so long: so long may an agent that is revoked there go on here.
const ANSWER: Duration = Duration::from_secs(5);

/// Which way a request came.
#[derive(Clone, Debug)]
pub enum Via {
    /// The socket, from root.
    Socket,
    /// TCP.
    Tcp(Arc<Peer>),
}

/// Who is at the other end of a request over TCP.
#[derive(Debug)]
pub struct Peer {
    /// From where.
    pub address: IpAddr,
    proven: AtomicBool,
}

impl Peer {
    /// Nothing is proven yet.
    pub fn new(address: IpAddr) -> Arc<Self> {
        Arc::new(Self { address, proven: AtomicBool::new(false) })
    }

    /// Whether a token that came with the request counts.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The node's operator.
    Operator,
    /// An agent, by its token.
    Agent(AgentId),
}

/// Checks tokens.
pub struct Auth {
    binder: Result<Binder, String>,
    /// What may be asked over TCP.
    pub limits: Limits,
}

impl Auth {
    /// As the node's runtime.toml says. Where that cannot be followed nobody is let in over TCP.
    pub fn new(ports: &Ports) -> Self {
        let binder = Self::binder(ports);
        if let Err(why) = &binder {
            tracing::error!(why, "no agent is let in over TCP");
        }
        Self { binder, limits: Limits::new(&ports.config.api.rate) }
    }

    fn binder(ports: &Ports) -> Result<Binder, String> {
        let node = Node::read(&ports.root).map_err(|e| chain(&e))?;
        let source: Box<dyn AgentSource> = match node.service {
            None => Box::new(Registry::new(ports.root.agents())),
            Some(HttpSettings { url, ca_file, timeout }) => {
                let settings = http::Settings { ttl: ANSWER, timeout, ..http::Settings::new(url, ca_file) };
                Box::new(HttpSource::new(settings).map_err(|e| chain(&e))?)
            }
        };
        Ok(Binder {
            source,
            seen: SeenTokens::new(ports.root.lib().join("seen-tokens")),
            clock: Arc::new(SystemClock),
            settings: identity::Settings {
                anonymous: Permission::Deny,
                operator: Permission::Deny,
                tokens: Rules::new(node.audience),
            },
        })
    }

    /// Who asks for a change. The token of an agent is used up.
    pub async fn who(&self, via: Via, headers: &HeaderMap, backend: Backend) -> Result<Who, Problem> {
        let Via::Tcp(peer) = via else { return Ok(Who::Operator) };
        let refused = |why: &str| {
            Problem::new(StatusCode::UNAUTHORIZED, "identity-rejected", why)
                .hint("send a fresh token of the agent's: Authorization: Bearer $(creto-runtime-cli agent token …)")
        };
        let header = headers.get(AUTHORIZATION).ok_or_else(|| refused("over TCP this needs an agent's token"))?;
        let token = header.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| refused("Authorization is not \"Bearer TOKEN\""))?;
        let agent = unverified_subject(token).map_err(|e| refused(&e.to_string()))?; // whose keys the token must be signed by
        let binder = self.binder.as_ref().map_err(|why| refused(why))?;
        let backend: BackendName = backend.name().parse().map_err(|e: trust::id::BadId| refused(&e.to_string()))?;
        self.limits.may_ask(&agent, Instant::now())?; // before its token is used up
        let claim = identity::Claim { agent: Some(&agent), token: Some(token), backend: &backend };
        binder.bind(claim).await.map_err(|e| refused(&e.to_string()))?;
        peer.proven.store(true, Ordering::Relaxed);
        self.limits.asked(&agent, Instant::now());
        Ok(Who::Agent(agent))
    }

    /// Whether an agent that the operator names may have a sandbox of this backend: asked before a member is taken for it.
    pub async fn known(&self, agent: &AgentId, backend: Backend) -> Result<(), Problem> {
        let refused = |why: String| {
            Problem::new(StatusCode::FORBIDDEN, "identity-rejected", format!("ClaimError::IdentityRejected({why:?})"))
                .hint("check the agent: creto-runtime-cli agent list")
        };
        let binder = self.binder.as_ref().map_err(|why| refused(why.clone()))?;
        let backend: BackendName = backend.name().parse().map_err(|e: trust::id::BadId| refused(e.to_string()))?;
        let word = Word { agent: Some(agent), by_token: true, backend: &backend };
        binder.vouched(word).await.map(drop).map_err(|e| refused(e.to_string()))
    }
}

/// That the node's operator asks. Looked at before a body is read.
pub struct Operator;

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.extensions.get::<Via>() {
            Some(Via::Socket) => Ok(Self),
            Some(Via::Tcp(_)) | None => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "operator-only",
                "this is for the node's operator, over /run/creto/pool-agent.sock",
            )),
        }
    }
}

impl Who {
    /// For whom a sandbox is made or claimed: an agent for itself, the operator for whomever it names.
    pub fn caller(self, named: Option<AgentId>) -> Result<Caller, Problem> {
        match (self, named) {
            (Self::Operator, agent) => Ok(Caller { agent, proven: Proven::Operator }),
            (Self::Agent(agent), None) => Ok(Caller { agent: Some(agent), proven: Proven::Token }),
            (Self::Agent(agent), Some(named)) if named == agent => {
                Ok(Caller { agent: Some(agent), proven: Proven::Token })
            }
            (Self::Agent(agent), Some(named)) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "identity-rejected",
                format!("{agent} asks for {named}: an agent asks for itself"),
            )),
        }
    }

    /// An agent has to do with its own sandboxes alone. Another's is told from none by nobody.
    pub fn may(&self, sandbox: &Sandbox) -> Result<(), Problem> {
        match self {
            Self::Operator => Ok(()),
            Self::Agent(agent) if sandbox.agent.as_ref() == Some(agent) => Ok(()),
            Self::Agent(_) => Err(Problem::new(
                StatusCode::NOT_FOUND,
                "sandbox-not-found",
                format!("there is no sandbox {}", sandbox.id),
            )),
        }
    }
}
