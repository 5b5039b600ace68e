//! The gate: sandboxes' TCP connections to names, and to addresses that a rule wants a decision on.
//!
//! The fence brings them here (nat `redirect`). From top to bottom: `listen` takes one and learns whose it is and where it was
//! to go; `flow` tells its life: what the policy says before a byte is read, what the client says (`filter` over `sniff`, `hello` and
//! `http`: is it meant for that name?), `admit`, `dial`, `splice`. Whatever is refused is reset at once, or told in HTTP where the
//! client speaks that in the clear.
//!
//! Not here: what a policy allows (`policy`), which names and addresses belong together (`dns`), who decides where a rule
//! wants a decision (`authz`). No TLS is opened: what stands inside it is between the sandbox and the allowed host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Attempts, Authorizable, Authorizer, Bindings, Effective};
use crate::policy::{Flow, Fqdn, Protocol, Reason, Target};
use crate::protocol::SandboxKey;

mod admit;
mod dial;
mod filter;
mod flow;
mod hello;
mod http;
mod listen;
mod metrics;
mod refusal;
mod sniff;
mod splice;
mod way;

pub use dial::Unresolved;
pub use filter::{Expected, Filter};
pub use hello::Hello;
pub use http::Requests;
pub use listen::{Open, OriginalDestination, original_destination};
pub use metrics::Metrics;
pub use refusal::Refusal;
pub use sniff::{MAX_HEAD, Malformed, Sniffed, sniff};

/// Which names the synthetic addresses stand for.
pub trait Names: Send + Sync + 'static {
    /// A name in use by a flow: as long as it lives, its address stands for nothing else.
    type Held: AsRef<Fqdn> + Send + Sync;

    /// The name that an address stands for to a sandbox; none where it is another's, or nobody's any more.
    fn hold(&self, sandbox: &SandboxKey, address: Ipv4Addr) -> Option<Self::Held>;
}

/// Which addresses a name really has.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of a name that may be dialled under this policy; at least one.
    fn resolve(
        &self,
        name: &Fqdn,
        port: u16,
        effective: &Effective,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, Unresolved>> + Send;

    /// Whether a flow to a name may stay at an address under another policy than the one that it was dialled under.
    fn may_stay(&self, address: SocketAddr, effective: &Effective) -> Result<(), Reason> {
        effective.policy.may_dial(address.ip(), address.port())
    }
}

/// What becomes of a TLS client that sends `encrypted_client_hello`. A real one hides the name that it goes to; browsers send one
/// for show, and nobody on the way can tell the two apart (RFC 9849 §6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ech {
    /// It is refused. Costs browsers that send it always; libraries and tools do so only when asked to.
    #[default]
    Refuse,
    /// It passes where the outer name is the one that was asked for. Then another name at the same address can be reached, if its
    /// server does ECH under that outer name (large CDNs do).
    AllowIfOuterNameMatches,
}

/// The table `[gate]` of egress.toml: how the gate behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The most connections of all sandboxes together. Each costs two descriptors, a busy one up to six.
    pub total: usize,
    /// The most connections of one sandbox.
    pub per_sandbox: usize,
    /// How long a client may be silent before its host is connected to, for protocols in which the server speaks first.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// How long a ClientHello or a head may take from its first byte to its last.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// How long a connection waits for the decision point.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
    /// How long resolving and connecting may take together.
    #[serde(with = "humantime_serde")]
    pub dial: Duration,
    /// How long the next address waits for the one before it (RFC 8305 §5).
    #[serde(with = "humantime_serde")]
    pub stagger: Duration,
    /// How long a flow lives on which nothing is said.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// How long a flow is silent before TCP asks whether the other end is still there.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// What becomes of an encrypted ClientHello.
    pub ech: Ech,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            total: 16_384,
            per_sandbox: 1_024,
            silence: Duration::from_millis(100),
            head: Duration::from_secs(10),
            hold: Duration::from_secs(10),
            dial: Duration::from_secs(15),
            stagger: Duration::from_millis(250),
            idle: Duration::from_secs(3_600),
            keep_alive: Duration::from_secs(60),
            ech: Ech::Refuse,
        }
    }
}

/// The gate and what it needs of others. `serve` runs it.
pub struct Gate<N, R, A> {
    /// How it behaves.
    pub settings: Settings,
    /// Whose an address is.
    pub bindings: Arc<Bindings>,
    /// What it stands for.
    pub names: N,
    /// Where that really is.
    pub resolve: R,
    /// Who decides where a rule wants a decision.
    pub authorizer: A,
    /// Where it is told what became of a connection.
    pub attempts: Arc<dyn Attempts>,
    /// What is counted.
    pub metrics: Metrics,
    /// What is open now, of all its listeners.
    pub open: Arc<Open>,
    /// Where a connection was to go before it was brought here: `original_destination`.
    pub original_destination: OriginalDestination,
}

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// To a host by name.
    Name(Fqdn),
    /// To an address that the sandbox dialled itself.
    Address(IpAddr),
}

impl Goal {
    /// As the policy is asked about it.
    fn flow(&self, port: u16) -> Flow<'_> {
        let target = match self {
            Self::Name(name) => Target::Name(name),
            Self::Address(address) => Target::Address(*address),
        };
        Flow { target, protocol: Protocol::Tcp, port }
    }

    /// As the decision point is asked about it.
    fn authorizable(&self) -> Authorizable<'_> {
        match self {
            Self::Name(name) => Authorizable::Name(name),
            Self::Address(address) => Authorizable::Address(*address),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
