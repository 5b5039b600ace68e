//! The one text of all policies that say the same. Its SHA-256 is what is attested, so this form never changes without a new
//! `version`.
//!
//! Compact JSON, ASCII, keys in alphabetical order:
//! `{"rules":[{"action":"Allow","allow_special":false,"destination":"*.example.com","ports":[[443,443]],"protocol":"tcp"}],"version":1}`.
//! `ports` is sorted, ranges that overlap or touch are one, `[]` is any; `protocol` is `tcp`, `udp` or null for any (a rule on
//! a name is `tcp`). Rules are sorted by their own text, and equal ones stand once. Ids are left out: they name rules, and
//! change nothing that passes.

use serde::Serialize;
use trust::digest::Digest;

use super::model::{Action, Destination, Policy, PortRange, Protocol, Rule};

/// What `version` says.
const VERSION: u32 = 1;

/// Fields in alphabetical order, as they are written.
#[derive(Serialize)]
struct CanonicalRule {
    action: Action,
    allow_special: bool,
    destination: String,
    ports: Vec<(u16, u16)>,
    protocol: Option<Protocol>,
}

/// The text.
pub(super) fn text(policy: &Policy) -> String {
    let mut rules: Vec<String> = policy.rules.iter().map(rule).collect();
    rules.sort_unstable();
    rules.dedup();
    format!("{{\"rules\":[{}],\"version\":{VERSION}}}", rules.join(","))
}

/// Its digest.
pub(super) fn digest(policy: &Policy) -> Digest {
    Digest::of(text(policy).as_bytes())
}

fn rule(rule: &Rule) -> String {
    let (destination, protocol) = match &rule.destination {
        Destination::Net(net) => (Destination::Net(net.trunc()), rule.protocol),
        name => (name.clone(), Some(rule.protocol.unwrap_or(Protocol::Tcp))),
    };
    let canonical = CanonicalRule {
        action: rule.action,
        allow_special: rule.allow_special,
        destination: destination.to_string(),
        ports: merged(&rule.ports),
        protocol,
    };
    // Serializing plain fields into memory has no way to fail; were there one, no two rules must look alike.
    serde_json::to_string(&canonical).unwrap_or_else(|error| format!("\"{error}: {rule:?}\""))
}

/// The same ports in as few ranges as there can be, ascending.
pub(super) fn merged(ports: &[PortRange]) -> Vec<(u16, u16)> {
    let mut sorted: Vec<(u16, u16)> = ports.iter().map(|range| (*range.start(), *range.end())).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, before)) if u32::from(first) <= u32::from(*before) + 1 => *before = last.max(*before),
            _ => merged.push((first, last)),
        }
    }
    merged
}
