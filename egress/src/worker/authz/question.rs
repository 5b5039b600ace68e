//! What a decision is wanted on, in the words that decision points are asked with.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::policy::Fqdn;
use crate::protocol::SandboxKey;
use crate::worker::Authorizable;

/// May this sandbox, for this agent, connect there by TCP? All that an answer depends on, so that equal questions have one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Who wants to connect.
    pub sandbox: SandboxKey,
    /// For whom it works (a SPIFFE ID). A sandbox's name is used again after it, for another agent maybe.
    pub agent: Option<String>,
    /// To where.
    pub host: Host,
    /// To which port.
    pub port: u16,
    /// The generation of the policy that wants the decision.
    pub generation: u64,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A host by name.
    Name(Fqdn),
    /// An address.
    Address(IpAddr),
}

impl From<Authorizable<'_>> for Host {
    fn from(destination: Authorizable<'_>) -> Self {
        match destination {
            Authorizable::Name(name) => Self::Name(name.clone()),
            Authorizable::Address(address) => Self::Address(address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Host {
    /// The zones that enclose a name, nearest first: of `a.b.example.com` these are `b.example.com`, `example.com`, `com`. As
    /// in a policy, a zone does not contain its own name. An address is in none.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        let name = match self {
            Self::Name(name) => name.as_str(),
            Self::Address(_) => "",
        };
        name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
    }
}

impl Question {
    /// `host:port`; an IPv6 address in brackets.
    pub fn destination(&self) -> String {
        match &self.host {
            Host::Name(name) => format!("{name}:{}", self.port),
            Host::Address(address) => SocketAddr::new(*address, self.port).to_string(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// By sandbox `default/s1` of an agent.
    pub(crate) fn question(host: &str) -> Question {
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(Fqdn::parse(host).unwrap()),
        };
        let sandbox = SandboxKey { namespace: "default".into(), id: "s1".into() };
        Question { sandbox, agent: Some("spiffe://example.org/agents/a".into()), host, port: 443, generation: 1 }
    }

    #[test]
    fn a_destination_and_its_zones() {
        for (host, destination, zones) in [
            ("a.b.example.com", "a.b.example.com:443", vec!["b.example.com", "example.com", "com"]),
            ("com", "com:443", vec![]),
            ("192.0.2.1", "192.0.2.1:443", vec![]),
            ("2001:db8::1", "[2001:db8::1]:443", vec![]),
        ] {
            let question = question(host);
            assert_eq!(question.destination(), destination);
            assert_eq!(question.host.zones().collect::<Vec<_>>(), zones, "{host}");
        }
    }
}
