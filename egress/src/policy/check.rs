//! The one judge: may this flow pass?

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::model::{Action, AddressRule, Policy, Protocol};
use super::name::Fqdn;

/// What a sandbox wants to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// To where.
    pub target: Target<'a>,
    /// How.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
}

/// A host by name (asked of our DNS), or an address that the sandbox dialled itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// By name.
    Name(&'a Fqdn),
    /// By address.
    Address(IpAddr),
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
    /// It passes if the decision point says so.
    RequireAuthz,
}

/// A verdict, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'p> {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rule that decided, by its id; none where no rule matched.
    pub rule: Option<&'p str>,
    /// Why.
    pub reason: Reason,
}

/// Why a flow was decided as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The most specific rule says so.
    #[error("the rule says so")]
    Rule,
    /// Nothing allows it.
    #[error("no rule allows it")]
    NoRule,
    /// A special-purpose address, and the rule does not say `allow_special`.
    #[error("a special-purpose address")]
    Special,
    /// An IPv6 address that carries an IPv4 address (v4-mapped, NAT64, 6to4, Teredo): never, whatever the rules say.
    #[error("an IPv4 address in the guise of an IPv6 one")]
    Disguised,
}

/// A policy made ready to decide: immutable, without allocation on the way to a decision.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    policy: Policy,
}

impl CompiledPolicy {
    /// Makes a policy ready.
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    /// Decides.
    pub fn check(&self, _flow: &Flow<'_>) -> Decision<'_> {
        let _ = &self.policy;
        Decision { verdict: Verdict::Deny, rule: None, reason: Reason::NoRule }
    }

    /// What DNS may say of a name: the mildest verdict that any port of it could get over TCP. Deny: the name is not resolved.
    pub fn name(&self, _name: &Fqdn) -> Decision<'_> {
        Decision { verdict: Verdict::Deny, rule: None, reason: Reason::NoRule }
    }

    /// Whether an address that an allowed name resolved to may be dialled: never a special-purpose one, none that a rule about
    /// addresses denies.
    pub fn may_dial(&self, _address: IpAddr, _port: u16) -> Result<(), Reason> {
        Err(Reason::NoRule)
    }

    /// The rules about addresses, for the kernel: first match wins.
    pub fn address_rules(&self) -> Vec<AddressRule> {
        let _ = Action::Deny;
        Vec::new()
    }
}
