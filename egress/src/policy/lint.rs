//! What in a policy is allowed and probably not meant.

use std::collections::HashMap;

use ipnet::IpNet;

use super::compile::{Pieces, RuleAt};
use super::model::{Action, Destination, Policy, Protocol, Rule};
use super::special;

/// Something about a rule that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule}: {what}")]
pub struct Warning {
    /// The rule, by its id.
    pub rule: String,
    /// What.
    pub what: Doubt,
}

/// What may not be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// Same destination, ports in common, another action.
    #[error("contradicts rule {0}, which is stricter for the same destination and wins on the ports that both name")]
    Contradicts(String),
    /// It decides on nothing: stricter rules, or equal ones, have all its ports.
    #[error("never decides: rule {0} is for the same destination and ports")]
    Shadowed(String),
    /// The Internet.
    #[error("is about every address there is; special-purpose ones excepted unless it says allow_special")]
    Everywhere,
    /// A Deny of every address also holds for what names resolve to.
    #[error(
        "also keeps every name from being reached, whose addresses it denies: what no rule allows is denied without it"
    )]
    DeniesNames,
    /// All of its destination is special.
    #[error("lets nothing through: {0} is special-purpose; allow_special would open it")]
    Closed(IpNet),
    /// All of its destination is never opened.
    #[error("lets nothing through: no rule opens {0}")]
    Never(IpNet),
    /// It opens a metadata service.
    #[error("opens a cloud's metadata service, which hands credentials to whoever asks")]
    Metadata,
    /// Nothing special in its destination.
    #[error("allow_special opens nothing here: {0} has no special-purpose address")]
    NothingSpecial(IpNet),
    /// The decision point hears an address and no name.
    #[error("asks the decision point about an address: it hears no name")]
    AuthzByAddress,
    /// UDP that wants a decision is refused.
    #[error(
        "refuses all UDP: datagrams do not wait for a decision; say protocol = \"tcp\", and allow or deny UDP by a rule of its own"
    )]
    AuthzByUdp,
}

/// Looks a policy over; by rule, in their order.
pub fn lint(policy: &Policy) -> Vec<Warning> {
    let mut doubts: Vec<(RuleAt, Doubt)> = Vec::new();
    let mut together: HashMap<Destination, Vec<RuleAt>> = HashMap::new();
    for (at, rule) in (0..).zip(&policy.rules) {
        let destination = match &rule.destination {
            Destination::Net(net) => {
                of_net(rule, net.trunc(), |doubt| doubts.push((at, doubt)));
                Destination::Net(net.trunc())
            }
            name => name.clone(),
        };
        together.entry(destination).or_default().push(at);
    }
    for mut rules in together.into_values().filter(|rules| rules.len() > 1) {
        rules.sort_by_key(|at| (policy.rules[*at as usize].strictness(), *at));
        of_one_destination(policy, &rules, &mut doubts);
    }
    doubts.sort_by_key(|(at, _)| *at); // stable: the doubts about one rule stay in order
    let warning = |(at, what): (RuleAt, Doubt)| Warning { rule: policy.rules[at as usize].id.clone(), what };
    doubts.into_iter().map(warning).collect()
}

fn of_net(rule: &Rule, net: IpNet, mut doubt: impl FnMut(Doubt)) {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&net));
    let never = special::NEVER.map(|(range, _)| range);
    if rule.action == Action::Deny {
        if net.prefix_len() == 0 && rule.speaks_of(Protocol::Tcp) {
            doubt(Doubt::DeniesNames);
        }
        return;
    }
    if net.prefix_len() == 0 {
        doubt(Doubt::Everywhere);
    }
    let metadata = within(&special::METADATA);
    if within(&never) {
        doubt(Doubt::Never(net));
    } else if !rule.allow_special && (metadata || within(&special::SPECIAL)) {
        doubt(Doubt::Closed(net));
    } else if rule.allow_special && metadata {
        doubt(Doubt::Metadata);
    } else if rule.allow_special && !special::SPECIAL.iter().any(|range| range.contains(&net) || net.contains(range)) {
        doubt(Doubt::NothingSpecial(net));
    }
    if rule.action == Action::RequireAuthz {
        doubt(Doubt::AuthzByAddress);
        if rule.speaks_of(Protocol::Udp) {
            doubt(Doubt::AuthzByUdp);
        }
    }
}

/// `rules` are those of one destination, the strictest first.
fn of_one_destination(policy: &Policy, rules: &[RuleAt], doubts: &mut Vec<(RuleAt, Doubt)>) {
    let rule = |at: RuleAt| &policy.rules[at as usize];
    let pieces = [Protocol::Tcp, Protocol::Udp].map(|protocol| Pieces::new(policy, rules, protocol));
    for (rank, at) in rules.iter().enumerate() {
        let own = rule(*at);
        let mut before = rules[..rank].iter().map(|other| rule(*other)).filter(|other| meet(own, other));
        if !pieces.iter().any(|pieces| pieces.decides(*at)) {
            // One is named; it may take several to have all its ports.
            doubts.extend(before.next().map(|other| (*at, Doubt::Shadowed(other.id.clone()))));
        } else if let Some(other) = before.find(|other| other.action != own.action) {
            doubts.push((*at, Doubt::Contradicts(other.id.clone())));
        }
    }
}

/// Whether there is a port and protocol that both speak of.
fn meet(one: &Rule, other: &Rule) -> bool {
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let touch = |one: &Rule, other: &Rule| {
        one.ports.iter().any(|a| other.ports.iter().any(|b| a.start() <= b.end() && b.start() <= a.end()))
    };
    protocols.iter().any(|protocol| one.speaks_of(*protocol) && other.speaks_of(*protocol))
        && (one.ports.is_empty() || other.ports.is_empty() || touch(one, other))
}

#[cfg(test)]
mod tests {
    use super::super::Document;
    use super::*;

    #[test]
    fn what_is_probably_not_meant_is_told() {
        let name = "destination = \"a.example\"";
        for (rules, expected) in [
            (vec![format!("{name}\naction = \"Allow\"\nports = [443]")], vec![]),
            (
                vec![
                    format!("{name}\naction = \"Allow\"\nports = [\"80-443\"]"),
                    format!("{name}\naction = \"Deny\"\nports = [80]"),
                ],
                vec!["rule 1: contradicts rule 2"],
            ),
            (
                vec![
                    format!("{name}\naction = \"Allow\"\nports = [443]"),
                    format!("{name}\naction = \"RequireAuthz\""),
                ],
                vec!["rule 1: never decides: rule 2"],
            ),
            (
                vec![
                    format!("{name}\naction = \"Allow\""),
                    format!("{name}\naction = \"Allow\"\nports = [443]\nprotocol = \"tcp\""),
                ],
                vec!["rule 2: never decides: rule 1"],
            ),
            (
                vec![
                    "destination = \"1.1.1.1\"\nprotocol = \"udp\"\naction = \"Allow\"".into(),
                    "destination = \"1.1.1.1\"\nprotocol = \"tcp\"\naction = \"Deny\"".into(),
                ],
                vec![],
            ),
            (vec!["destination = \"0.0.0.0/0\"\naction = \"Allow\"".into()], vec!["rule 1: is about every address"]),
            (vec!["destination = \"::/0\"\naction = \"Deny\"".into()], vec!["rule 1: also keeps every name"]),
            (vec!["destination = \"10.1.0.0/16\"\naction = \"Allow\"".into()], vec!["10.1.0.0/16 is special-purpose"]),
            (vec!["destination = \"10.1.0.0/16\"\naction = \"Allow\"\nallow_special = true".into()], vec![]),
            (
                vec!["destination = \"9.0.0.0/8\"\naction = \"Allow\"\nallow_special = true".into()],
                vec!["opens nothing here"],
            ),
            (
                vec!["destination = \"198.18.1.0/24\"\naction = \"Allow\"\nallow_special = true".into()],
                vec!["no rule opens 198.18.1.0/24"],
            ),
            (vec!["destination = \"64:ff9b::/96\"\naction = \"Allow\"".into()], vec!["no rule opens 64:ff9b::/96"]),
            (
                vec!["destination = \"169.254.169.254\"\naction = \"Allow\"\nallow_special = true".into()],
                vec!["hands credentials"],
            ),
            (vec!["destination = \"168.63.129.16\"\naction = \"Allow\"".into()], vec!["is special-purpose"]),
            (
                vec!["destination = \"1.1.1.1\"\naction = \"RequireAuthz\"".into()],
                vec!["asks the decision point about an address", "refuses all UDP"],
            ),
            (
                vec!["destination = \"1.1.1.1\"\nprotocol = \"tcp\"\naction = \"RequireAuthz\"".into()],
                vec!["about an address"],
            ),
        ] {
            let text: String = rules.iter().map(|rule| format!("[[rules]]\n{rule}\n")).collect();
            let found: Vec<String> =
                lint(&Document::from_toml(&text).unwrap().policy).iter().map(ToString::to_string).collect();
            let as_expected =
                found.len() == expected.len() && found.iter().zip(&expected).all(|(found, part)| found.contains(part));
            assert!(as_expected, "{text}: {found:#?}");
        }
    }
}
