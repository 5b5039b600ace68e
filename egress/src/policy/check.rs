//! The one judge: may this flow pass? Pure: no clock, lock, log, metric or I/O, and no allocation.
//!
//! Of the rules that match a flow (destination, protocol, port) the one with the most specific destination decides; where
//! several have that destination, the strictest. Then the address has its say: see `special`.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::compile::Compiled;
use super::model::{Action, AddressRule, Policy, Protocol};
use super::name::Fqdn;
use super::special::{self, Carried, Kind};
use super::{addresses, canonical};

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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// A special-purpose address, and the rule does not say `allow_special`; or one that no rule opens; or a cloud's metadata
    /// service, by name.
    #[error("a special-purpose address")]
    Special,
    /// An IPv6 address that carries an IPv4 address (v4-mapped, NAT64, 6to4, Teredo): never, whatever the rules say.
    #[error("an IPv4 address in the guise of an IPv6 one")]
    Disguised,
}

/// A policy made ready to decide: immutable, without allocation on the way to a decision.
#[derive(Clone, Debug, Default)]
pub struct CompiledPolicy {
    policy: Policy,
    compiled: Compiled,
}

impl CompiledPolicy {
    /// Makes a policy ready.
    pub fn new(policy: Policy) -> Self {
        let compiled = Compiled::new(&policy);
        Self { policy, compiled }
    }

    /// The policy it was made of.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// SHA-256 of the policy's canonical form, which is what is attested: the same for policies that say the same.
    pub fn digest(&self) -> trust::digest::Digest {
        canonical::digest(&self.policy)
    }

    /// Decides.
    pub fn check(&self, flow: &Flow<'_>) -> Decision<'_> {
        match flow.target {
            Target::Name(name) => self.by_name(name, self.compiled.by_name(name, flow.protocol, flow.port)),
            Target::Address(address) => self.by_address(address, flow.protocol, flow.port),
        }
    }

    /// What DNS may say of a name: the mildest verdict that any port of it could get over TCP. Deny: the name is not resolved.
    pub fn name(&self, name: &Fqdn) -> Decision<'_> {
        self.by_name(name, self.compiled.mildest(name))
    }

    /// Whether an address that an allowed name resolved to may be dialled: never a special-purpose one, none that a rule about
    /// addresses denies. One that carries an IPv4 address (a DNS64 resolver answers so) is judged by that too.
    pub fn may_dial(&self, address: IpAddr, port: u16) -> Result<(), Reason> {
        let (first, second) = match address {
            IpAddr::V4(_) => (None, None),
            IpAddr::V6(v6) => match special::carried(v6) {
                Carried::Nothing => (None, None),
                Carried::Addresses(first, second) => (Some(IpAddr::V4(first)), second.map(IpAddr::V4)),
                Carried::Somewhere => return Err(Reason::Disguised),
            },
        };
        for carried in [first, second].into_iter().flatten() {
            self.may_reach(carried, port)?;
        }
        match first {
            Some(_) => self.not_denied(address, port),
            None => self.may_reach(address, port),
        }
    }

    fn may_reach(&self, address: IpAddr, port: u16) -> Result<(), Reason> {
        match special::kind(address) {
            Kind::Public => self.not_denied(address, port),
            Kind::Special | Kind::Metadata => Err(Reason::Special),
            Kind::Never(why) => Err(why),
        }
    }

    fn not_denied(&self, address: IpAddr, port: u16) -> Result<(), Reason> {
        let rule = self.compiled.by_address(address, Protocol::Tcp, port).map(|at| &self.policy.rules[at]);
        if rule.is_some_and(|rule| rule.action == Action::Deny) { Err(Reason::Rule) } else { Ok(()) }
    }

    /// The rules about addresses, for the kernel: first match wins.
    pub fn address_rules(&self) -> Vec<AddressRule> {
        addresses::first_match(&self.policy)
    }

    fn by_name(&self, name: &Fqdn, rule: Option<usize>) -> Decision<'_> {
        let Some(rule) = rule.map(|at| &self.policy.rules[at]) else { return Decision::NO_RULE };
        if rule.action != Action::Deny && special::is_metadata(name.as_str()) {
            return Decision { verdict: Verdict::Deny, rule: Some(&rule.id), reason: Reason::Special };
        }
        Decision { verdict: rule.action.into(), rule: Some(&rule.id), reason: Reason::Rule }
    }

    fn by_address(&self, address: IpAddr, protocol: Protocol, port: u16) -> Decision<'_> {
        let kind = special::kind(address);
        if let Kind::Never(reason) = kind {
            return Decision { verdict: Verdict::Deny, rule: None, reason };
        }
        let Some(at) = self.compiled.by_address(address, protocol, port) else { return Decision::NO_RULE };
        let rule = &self.policy.rules[at];
        let opened = match kind {
            Kind::Public => true,
            Kind::Special => rule.allow_special,
            Kind::Metadata => rule.allow_special && rule.is_one_address(),
            Kind::Never(_) => false,
        };
        let (verdict, reason) = match rule.action {
            Action::Deny => (Verdict::Deny, Reason::Rule),
            _ if !opened => (Verdict::Deny, Reason::Special),
            // Datagrams come one by one: there is nothing to hold back until the decision point has answered.
            Action::RequireAuthz if protocol == Protocol::Udp => (Verdict::Deny, Reason::Rule),
            action => (action.into(), Reason::Rule),
        };
        Decision { verdict, rule: Some(&rule.id), reason }
    }
}

impl Decision<'_> {
    const NO_RULE: Self = Self { verdict: Verdict::Deny, rule: None, reason: Reason::NoRule };
}

impl From<Policy> for CompiledPolicy {
    fn from(policy: Policy) -> Self {
        Self::new(policy)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::RequireAuthz => "RequireAuthz",
        })
    }
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::RequireAuthz => Self::RequireAuthz,
            Action::Deny => Self::Deny,
        }
    }
}
