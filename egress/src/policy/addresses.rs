//! The rules about addresses as a list of which the first that matches decides: what `check` says of addresses, for a kernel
//! that knows neither specificity nor special-purpose ranges.
//!
//! The order is longer networks first, then strictness. What a rule does not open (`special`) stands as a Deny right before
//! it; with its ports and protocol, or, where no later rule opens any of it, for all ports once.

use ipnet::IpNet;

use super::model::{Action, AddressRule, Destination, Policy, Rule};
use super::special;

/// Writes the list.
pub(super) fn first_match(policy: &Policy) -> Vec<AddressRule> {
    let mut rules: Vec<(IpNet, &Rule)> = Vec::new();
    for rule in &policy.rules {
        if let Destination::Net(net) = &rule.destination {
            rules.push((net.trunc(), rule));
        }
    }
    rules.sort_by_key(|(net, rule)| (u8::MAX - net.prefix_len(), rule.strictness(), *net));
    let mut list = Vec::new();
    let mut shut: Vec<IpNet> = Vec::new();
    for (at, (net, rule)) in rules.iter().enumerate() {
        let entry = |net, action| AddressRule {
            rule: rule.id.clone(),
            net,
            ports: rule.ports.clone(),
            protocol: rule.protocol,
            action,
        };
        if shut.iter().any(|shut| shut.contains(net)) {
            continue; // nothing comes this far
        }
        if rule.action == Action::Deny {
            list.push(entry(*net, Action::Deny));
            continue;
        }
        let unopened = unopened(*net, rule);
        if unopened.iter().any(|closed| closed.contains(net)) {
            list.push(entry(*net, Action::Deny));
            continue;
        }
        for closed in unopened {
            if shut.iter().any(|shut| shut.contains(&closed)) {
                continue;
            }
            if rules[at + 1..].iter().any(|(net, rule)| opens_some(*net, rule, closed)) {
                list.push(entry(closed, Action::Deny));
            } else {
                list.push(AddressRule { ports: Vec::new(), protocol: None, ..entry(closed, Action::Deny) });
                shut.push(closed);
            }
        }
        list.push(entry(*net, rule.action));
    }
    list
}

/// The ranges that touch a network and that its rule does not open, outermost only.
fn unopened(net: IpNet, rule: &Rule) -> Vec<IpNet> {
    let never = special::NEVER.iter().map(|(closed, _)| *closed);
    let metadata = special::METADATA.into_iter().filter(|one| !(rule.allow_special && *one == net));
    let special = special::SPECIAL.into_iter().filter(|_| !rule.allow_special);
    let touching: Vec<IpNet> = never.chain(special).chain(metadata).filter(|closed| touch(&net, closed)).collect();
    let outer = |one: &IpNet| !touching.iter().any(|other| other != one && other.contains(one));
    touching.iter().copied().filter(outer).collect()
}

/// Whether a rule lets anything into a range.
fn opens_some(net: IpNet, rule: &Rule, range: IpNet) -> bool {
    rule.action != Action::Deny
        && touch(&net, &range)
        && !unopened(net, rule).iter().any(|closed| closed.contains(&range) || closed.contains(&net))
}

fn touch(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}
