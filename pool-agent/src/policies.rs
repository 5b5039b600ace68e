//! The node's named network policies, for whoever looks at them: which there are, and what one does with a connection.
//! Not here: what a policy is (`egress::policy`), and what holds for a running sandbox, which creto-egress is asked.

use std::io;
use std::path::PathBuf;

use egress::explain::explain;
use egress::policy::{CompiledPolicy, LoadError, Policies, Protocol};
use egress::protocol::{Explained, PolicyRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::digest::Digest;
use trust::id::PolicyName;

/// The port that is meant where none is given.
const HTTPS: u16 = 443;

/// A policy among others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PolicySummary")]
pub struct Listed {
    /// Its name.
    pub name: PolicyName,
    /// How many rules it has, with those that it includes; none where it cannot be read.
    pub rules: Option<usize>,
    /// Of what it compiles to, as statements have it.
    pub digest: Option<Digest>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// The policies cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("the policies in {}", dir.display())]
pub struct ListError {
    dir: PathBuf,
    #[source]
    why: io::Error,
}

/// All names.
pub fn names(policies: &Policies) -> Result<Vec<PolicyName>, ListError> {
    policies.names().map_err(|why| ListError { dir: policies.dir().to_owned(), why })
}

/// All of them, by name. Blocks.
pub fn list(policies: &Policies) -> Result<Vec<Listed>, ListError> {
    let listed = |name: PolicyName| match policies.named(&name) {
        Ok(policy) => {
            let compiled = CompiledPolicy::new(policy);
            let (rules, digest) = (Some(compiled.policy().rules.len()), Some(compiled.digest()));
            Listed { name, rules, digest, error: None }
        }
        Err(error) => Listed { name, rules: None, digest: None, error: Some(error.to_string()) },
    };
    Ok(names(policies)?.into_iter().map(listed).collect())
}

/// Why it is not known what becomes of a connection.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] LoadError),
    /// No host, or no port.
    #[error("destination {text:?}: {why}")]
    Destination {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What a named policy does with a connection. Blocks.
pub fn explain_by_name(
    policies: &Policies,
    name: &PolicyName,
    (host, port): &(String, u16),
    protocol: Protocol,
) -> Result<Explained, ExplainError> {
    let policy = policies.resolve(&PolicyRef::Named(name.to_string()))?;
    let explained = explain(&policy, host, *port, protocol);
    explained.map_err(|e| ExplainError::Destination { text: host.clone(), why: e.to_string() })
}

/// `HOST`, `HOST:PORT`, `IP`, `IP:PORT`, `[IPv6]:PORT`.
pub fn host_and_port(text: &str) -> Result<(String, u16), ExplainError> {
    let bad = |why: &str| ExplainError::Destination { text: text.to_owned(), why: why.to_owned() };
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok((text.to_owned(), HTTPS));
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    match text.rsplit_once(':') {
        None if text.is_empty() => Err(bad("give a host name or an address")),
        None => Ok((text.to_owned(), HTTPS)),
        Some((host, port)) => match port.parse() {
            Ok(port) if port > 0 => Ok((host.to_owned(), port)),
            _ => Err(bad("after the colon belongs a port from 1 to 65535")),
        },
    }
}

#[cfg(test)]
mod tests {
    use egress::policy::Verdict;

    use super::*;

    #[test]
    fn a_destination_has_a_port_or_that_of_https() {
        for (text, host, port) in [
            ("api.example.com", "api.example.com", 443),
            ("api.example.com:8080", "api.example.com", 8080),
            ("192.0.2.1", "192.0.2.1", 443),
            ("192.0.2.1:53", "192.0.2.1", 53),
            ("2001:db8::1", "2001:db8::1", 443),
            ("[2001:db8::1]:53", "2001:db8::1", 53),
        ] {
            assert_eq!(host_and_port(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in ["", "a:0", "a:b", "a:70000"] {
            host_and_port(text).unwrap_err();
        }
    }

    #[test]
    fn policies_are_listed_with_what_is_wrong_with_them_and_asked() {
        let dir = tempfile::tempdir().unwrap();
        let rule = "[[rules]]\ndestination = \"open.example.com\"\naction = \"Allow\"\n";
        std::fs::write(dir.path().join("web.toml"), rule).unwrap();
        std::fs::write(dir.path().join("bad.toml"), "rules = 1").unwrap();
        let policies = Policies::new(dir.path().to_owned());
        let listed = list(&policies).unwrap();
        let short: Vec<_> = listed.iter().map(|p| (p.name.to_string(), p.rules, p.error.is_some())).collect();
        assert_eq!(short, [("bad".to_owned(), None, true), ("web".to_owned(), Some(1), false)]);
        let web = "web".parse().unwrap();
        let asked = |host: &str| {
            explain_by_name(&policies, &web, &host_and_port(host).unwrap(), Protocol::Tcp).map(|said| said.verdict)
        };
        assert_eq!(asked("open.example.com").unwrap(), Verdict::Allow);
        assert_eq!(asked("other.example.com").unwrap(), Verdict::Deny);
        assert!(matches!(asked("a b"), Err(ExplainError::Destination { .. })));
        let none = explain_by_name(&policies, &"none".parse().unwrap(), &("a.example".into(), 1), Protocol::Tcp);
        assert!(matches!(none, Err(ExplainError::Policy(_))));
    }
}
