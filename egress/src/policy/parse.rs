//! How a policy is written: TOML or JSON of one shape, which docs/network-policy.schema.json and docs/network-policy.md
//! describe. An error names the rule and the field.
//!
//! ```toml
//! include = ["base"]
//!
//! [[rules]]
//! id = "model"
//! destination = "*.example.com"
//! ports = [443, "8000-8080"]
//! protocol = "tcp"
//! action = "Allow"
//! ```

use std::collections::HashSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use trust::id::PolicyName;

use super::destination::BadDestination;
use super::model::{Action, Destination, Policy, PortRange, Protocol, Rule};
use super::written::{Table, Written, WrittenPort, WrittenRule};

/// A policy has no more rules, those that it includes counted.
pub const MAX_RULES: usize = 10_000;
/// A rule names no more ranges of ports.
pub const MAX_PORTS: usize = 1_000;
/// The longest id of a rule, in bytes, the name of an included policy counted.
pub const MAX_ID: usize = 200;

/// A policy as it is written: its own rules, and by name what it includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Whose rules are added to its own.
    pub include: Vec<PolicyName>,
    /// Its own rules.
    pub policy: Policy,
}

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    /// Not of the shape, or not TOML or JSON at all; where, and what was expected.
    #[error("{0}")]
    Shape(String),
    /// A rule that cannot be.
    #[error("rule {rule}: {field}: {why}")]
    Rule {
        /// Its id, and its place where it has none.
        rule: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: Box<BadField>,
    },
    /// More than `MAX_RULES`.
    #[error("{0} rules, and at most {MAX_RULES} are taken: join ports into lists and addresses into networks")]
    TooMany(usize),
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadField {
    /// It has to be there.
    #[error("missing")]
    Missing,
    /// The destination.
    #[error(transparent)]
    Destination(#[from] BadDestination),
    /// A list without ports.
    #[error("an empty list: leave the field out for all ports")]
    NoPorts,
    /// Too many.
    #[error("{0} of them: at most {MAX_PORTS} in one rule")]
    TooManyPorts(usize),
    /// Neither a port nor a range.
    #[error("{0:?}: give a port from 1 to 65535, or a range as \"8000-8080\"")]
    Port(String),
    /// A range that goes down.
    #[error("{first}-{last} goes down: write \"{last}-{first}\"")]
    Reversed {
        /// Its first port.
        first: u16,
        /// Its last.
        last: u16,
    },
    /// No word that it knows.
    #[error("{given:?}: give {expected}")]
    Word {
        /// As it was given.
        given: String,
        /// What it knows.
        expected: &'static str,
    },
    /// UDP by name.
    #[error(
        "names are reached by TCP only, through the gate: leave it out or write \"tcp\", or give the UDP service's address"
    )]
    UdpByName,
    /// `allow_special` on a name.
    #[error("no name opens a special-purpose address: leave it out, or give the address or network")]
    SpecialByName,
    /// `allow_special` on a Deny.
    #[error("a Deny opens nothing: leave it out")]
    SpecialDeny,
    /// An id that is none.
    #[error("{0:?}: give 1 to {MAX_ID} letters, digits, `.`, `_`, `-` or `/`")]
    Id(String),
    /// Two rules of one id.
    #[error("another rule has it; rules without an id have their place, 1, 2, …, for one")]
    Twice,
}

impl Document {
    /// Reads TOML.
    pub fn from_toml(text: &str) -> Result<Self, BadPolicy> {
        let written: Written =
            toml::from_str(text).map_err(|e| BadPolicy::Shape(e.to_string().trim_end().to_owned()))?;
        written.try_into()
    }

    /// Reads JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BadPolicy> {
        let Table::<Written>(written) = serde_json::from_slice(bytes).map_err(|e| BadPolicy::Shape(e.to_string()))?;
        written.try_into()
    }

    /// Reads JSON that has been taken apart already.
    pub fn from_json_value(value: &serde_json::Value) -> Result<Self, BadPolicy> {
        let Table::<Written>(written) = Table::deserialize(value).map_err(|e| BadPolicy::Shape(e.to_string()))?;
        written.try_into()
    }

    /// Writes JSON; `from_json` reads the same document from it.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Table::<Written>(written) = Table::deserialize(deserializer)?;
        written.try_into().map_err(de::Error::custom)
    }
}

impl TryFrom<Written> for Document {
    type Error = BadPolicy;

    fn try_from(written: Written) -> Result<Self, BadPolicy> {
        if written.rules.len() > MAX_RULES {
            return Err(BadPolicy::TooMany(written.rules.len()));
        }
        let numbered = (1..).zip(written.rules);
        let rules: Vec<Rule> = numbered.map(|(place, rule)| read(rule, place)).collect::<Result<_, _>>()?;
        let mut ids = HashSet::new();
        match rules.iter().find(|rule| !ids.insert(&rule.id)) {
            Some(twice) => Err(BadPolicy::Rule { rule: twice.id.clone(), field: "id", why: Box::new(BadField::Twice) }),
            None => Ok(Self { include: written.include, policy: Policy { rules } }),
        }
    }
}

/// Reads a rule; `place` counts from 1.
pub(super) fn read(written: WrittenRule, place: usize) -> Result<Rule, BadPolicy> {
    let id = written.id.unwrap_or_else(|| place.to_string());
    let named = id.len() <= MAX_ID && !id.is_empty();
    if !named || !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/')) {
        let why = Box::new(BadField::Id(id.chars().take(MAX_ID).collect()));
        return Err(BadPolicy::Rule { rule: place.to_string(), field: "id", why });
    }
    let bad = |field| {
        let rule = if id == place.to_string() { id.clone() } else { format!("{place} ({id})") };
        move |why: BadField| BadPolicy::Rule { rule, field, why: Box::new(why) }
    };
    let destination: Destination = match written.destination {
        Some(text) => text.parse().map_err(|why: BadDestination| bad("destination")(why.into()))?,
        None => return Err(bad("destination")(BadField::Missing)),
    };
    let action = written.action.ok_or(BadField::Missing).and_then(action).map_err(bad("action"))?;
    let ports = written.ports.map(ports).transpose().map_err(bad("ports"))?.unwrap_or_default();
    let protocol = written.protocol.map(protocol).transpose().map_err(bad("protocol"))?;
    let allow_special = written.allow_special.unwrap_or_default();
    let by_name = !matches!(destination, Destination::Net(_));
    if by_name && protocol == Some(Protocol::Udp) {
        return Err(bad("protocol")(BadField::UdpByName));
    }
    if allow_special && by_name {
        return Err(bad("allow_special")(BadField::SpecialByName));
    }
    if allow_special && action == Action::Deny {
        return Err(bad("allow_special")(BadField::SpecialDeny));
    }
    Ok(Rule { id, destination, ports, protocol, action, allow_special })
}

fn action(given: String) -> Result<Action, BadField> {
    match given.as_str() {
        "Allow" => Ok(Action::Allow),
        "Deny" => Ok(Action::Deny),
        "RequireAuthz" => Ok(Action::RequireAuthz),
        _ => Err(BadField::Word { given: shown(&given), expected: "Allow, Deny or RequireAuthz" }),
    }
}

fn protocol(given: String) -> Result<Protocol, BadField> {
    match given.as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(BadField::Word { given: shown(&given), expected: "tcp or udp, or leave it out for both" }),
    }
}

fn ports(written: Vec<WrittenPort>) -> Result<Vec<PortRange>, BadField> {
    match written.len() {
        0 => Err(BadField::NoPorts),
        1..=MAX_PORTS => written.into_iter().map(port_range).collect(),
        count => Err(BadField::TooManyPorts(count)),
    }
}

fn port_range(written: WrittenPort) -> Result<PortRange, BadField> {
    let text = match written {
        WrittenPort::Number(number) => number.to_string(),
        WrittenPort::Text(text) => text,
    };
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits == port.to_string() => Ok(port),
        _ => Err(BadField::Port(shown(&text))),
    };
    match text.split_once('-') {
        None => port(&text).map(|port| port..=port),
        Some((first, last)) => match (port(first)?, port(last)?) {
            (first, last) if first <= last => Ok(first..=last),
            (first, last) => Err(BadField::Reversed { first, last }),
        },
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

impl From<&Document> for Written {
    fn from(document: &Document) -> Self {
        let rules = (1..).zip(&document.policy.rules);
        Self { include: document.include.clone(), rules: rules.map(|(place, rule)| write(rule, place)).collect() }
    }
}

/// Writes a rule; its id is left out where it is its place.
pub(super) fn write(rule: &Rule, place: usize) -> WrittenRule {
    let range = |ports: &PortRange| match (*ports.start(), *ports.end()) {
        (first, last) if first == last => WrittenPort::Number(first.into()),
        (first, last) => WrittenPort::Text(format!("{first}-{last}")),
    };
    WrittenRule {
        id: Some(rule.id.clone()).filter(|id| *id != place.to_string()),
        destination: Some(rule.destination.to_string()),
        ports: Some(rule.ports.iter().map(range).collect::<Vec<_>>()).filter(|ports| !ports.is_empty()),
        protocol: rule.protocol.map(|protocol| protocol.to_string()),
        action: Some(rule.action.to_string()),
        allow_special: rule.allow_special.then_some(true),
    }
}
