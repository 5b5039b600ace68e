//! Names of hosts, as policies and questions hold them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A fully qualified host name: A-labels, lower case, without the final dot; at most 253 bytes (RFC 1035, RFC 5890).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fqdn(Box<str>);

/// What is no host name, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no host name: {why}")]
pub struct BadName {
    /// As it was given.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Fqdn {
    /// Reads a name in any case, with U-labels or A-labels, with or without the final dot.
    pub fn parse(name: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { name: name.to_owned(), why };
        let ascii = idna::domain_to_ascii_strict(name.strip_suffix('.').unwrap_or(name));
        match ascii {
            Ok(ascii) if !ascii.is_empty() => Ok(Self(ascii.into())),
            _ => Err(bad("it does not follow IDNA")),
        }
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies below `zone`, at any depth; a zone does not contain its own name.
    pub fn is_below(&self, zone: &Fqdn) -> bool {
        self.0.strip_suffix(zone.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
