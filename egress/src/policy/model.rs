//! A policy: what a sandbox may connect to. How it is written stands in `parse`.

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
    /// How decisions name it: as the policy does, else its place (`1`, `2`, …).
    pub id: String,
    /// To where.
    pub destination: Destination,
    /// To which ports; any where none is named.
    pub ports: Vec<PortRange>,
    /// How; any of them where none is named.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
