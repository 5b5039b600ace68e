//! A policy: what a sandbox may connect to. How it is written stands in `parse`.

use std::cmp::Reverse;
use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::name::Fqdn;

/// Rules without an order; what none of them allows is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The rules, as they were written.
    pub rules: Vec<Rule>,
}

/// One line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How decisions name it: as the policy does, else its place (`1`, `2`, …); one that was included has the name of its
    /// policy before that (`base/1`).
    pub id: String,
    /// To where.
    pub destination: Destination,
    /// To which ports; any where none is named.
    pub ports: Vec<PortRange>,
    /// How; any of them where none is named. A name is reached by TCP alone.
    pub protocol: Option<Protocol>,
    /// What becomes of it.
    pub action: Action,
    /// Addresses only: special-purpose ranges (loopback, private, link-local, …) count as part of the destination.
    pub allow_special: bool,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// One host, by name.
    Name(Fqdn),
    /// All hosts below a name (`*.example.com`), at any depth, without the name itself.
    Zone(Fqdn),
    /// Addresses; a single one is a network of full length.
    Net(IpNet),
}

/// Ports from the first to the last.
pub type PortRange = RangeInclusive<u16>;

/// What carries it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Transport"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP; by address only.
    Udp,
}

/// What a rule does. From the mildest to the strictest: of rules that are equally specific the strictest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    /// Let it through.
    Allow,
    /// Let it through if the decision point says so.
    RequireAuthz,
    /// Refuse it.
    Deny,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Tcp { "tcp" } else { "udp" })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "Allow",
            Self::RequireAuthz => "RequireAuthz",
            Self::Deny => "Deny",
        })
    }
}

/// A rule about addresses as the kernel needs it: of a list of these the first that matches decides, and where none does it
/// is Deny. Equivalent to `check` of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRule {
    /// The rule it comes from, by its id.
    pub rule: String,
    /// To where.
    pub net: IpNet,
    /// To which ports; any where none is named.
    pub ports: Vec<PortRange>,
    /// How; TCP and UDP where none is named.
    pub protocol: Option<Protocol>,
    /// What becomes of it. RequireAuthz: TCP is brought to the gate, UDP is refused.
    pub action: Action,
}

impl Rule {
    /// Whether it speaks of this protocol. Of names no rule speaks but of TCP.
    pub fn speaks_of(&self, protocol: Protocol) -> bool {
        let by_name = !matches!(self.destination, Destination::Net(_));
        self.protocol.is_none_or(|own| own == protocol) && !(by_name && protocol == Protocol::Udp)
    }

    /// Whether it is about one address and no other.
    pub(super) fn is_one_address(&self) -> bool {
        matches!(&self.destination, Destination::Net(net) if net.prefix_len() == net.max_prefix_len())
    }

    /// Among rules of one destination the least of these decides: the strictest first, then the one without
    /// `allow_special`, then by id, so that no order of writing counts.
    pub(super) fn strictness(&self) -> (Reverse<Action>, bool, &str) {
        (Reverse(self.action), self.allow_special, &self.id)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Zone(zone) => write!(f, "*.{zone}"),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
        }
    }
}
