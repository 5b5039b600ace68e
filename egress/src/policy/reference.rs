//! The same judgement once more, as the documentation tells it: slow, without tables and indices, sharing nothing with what it
//! is compared to but the model and the tests.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

/// What `check` must say.
pub fn check<'p>(policy: &'p Policy, flow: &Flow<'_>) -> Decision<'p> {
    let deny = |rule, reason| Decision { verdict: Verdict::Deny, rule, reason };
    if let Target::Address(address) = flow.target {
        if address == "::".parse::<IpAddr>().unwrap() || address == "::1".parse::<IpAddr>().unwrap() || ours(address) {
            return deny(None, Reason::Special);
        }
        if disguised(address) {
            return deny(None, Reason::Disguised);
        }
    }
    let matching: Vec<&Rule> = policy.rules.iter().filter(|rule| matches(rule, flow)).collect();
    let Some(most) = matching.iter().map(|rule| specificity(rule)).max() else { return deny(None, Reason::NoRule) };
    let rule = matching
        .into_iter()
        .filter(|rule| specificity(rule) == most)
        .min_by_key(|rule| (Reverse(rule.action), rule.allow_special, &rule.id))
        .unwrap();
    let id = Some(rule.id.as_str());
    let udp = flow.protocol == Protocol::Udp;
    match (rule.action, flow.target) {
        (Action::Deny, _) => deny(id, Reason::Rule),
        (_, Target::Name(name)) if name.as_str() == "metadata.google.internal" => deny(id, Reason::Special),
        (_, Target::Address(a)) if metadata(a) && !(rule.allow_special && one(rule)) => deny(id, Reason::Special),
        (_, Target::Address(a)) if special(a) && !rule.allow_special => deny(id, Reason::Special),
        (Action::RequireAuthz, _) if udp => deny(id, Reason::Rule),
        (Action::RequireAuthz, _) => Decision { verdict: Verdict::RequireAuthz, rule: id, reason: Reason::Rule },
        (Action::Allow, _) => Decision { verdict: Verdict::Allow, rule: id, reason: Reason::Rule },
    }
}

/// What the kernel makes of a list of rules.
pub fn first_match(rules: &[AddressRule], address: IpAddr, protocol: Protocol, port: u16) -> Verdict {
    let matching = rules.iter().find(|rule| {
        rule.net.contains(&address)
            && (rule.ports.is_empty() || rule.ports.iter().any(|ports| ports.contains(&port)))
            && rule.protocol.is_none_or(|own| own == protocol)
    });
    match matching.map(|rule| rule.action) {
        None | Some(Action::Deny) => Verdict::Deny,
        Some(Action::RequireAuthz) if protocol == Protocol::Udp => Verdict::Deny,
        Some(Action::RequireAuthz) => Verdict::RequireAuthz,
        Some(Action::Allow) => Verdict::Allow,
    }
}

fn matches(rule: &Rule, flow: &Flow<'_>) -> bool {
    let destination = match (&rule.destination, flow.target) {
        (Destination::Name(own), Target::Name(name)) => own == name && flow.protocol == Protocol::Tcp,
        (Destination::Zone(zone), Target::Name(name)) => {
            name.as_str().ends_with(&format!(".{zone}")) && flow.protocol == Protocol::Tcp
        }
        (Destination::Net(net), Target::Address(address)) => net.trunc().contains(&address),
        _ => false,
    };
    destination
        && rule.protocol.is_none_or(|own| own == flow.protocol)
        && (rule.ports.is_empty() || rule.ports.iter().any(|ports| ports.contains(&flow.port)))
}

fn specificity(rule: &Rule) -> usize {
    match &rule.destination {
        Destination::Name(_) => usize::MAX,
        Destination::Zone(zone) => zone.as_str().len(),
        Destination::Net(net) => net.prefix_len().into(),
    }
}

fn one(rule: &Rule) -> bool {
    let text = rule.destination.to_string();
    text.parse::<IpAddr>().is_ok()
}

fn ours(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 198 && (18..20).contains(&v4.octets()[1]))
}

fn disguised(address: IpAddr) -> bool {
    let IpAddr::V6(v6) = address else { return false };
    let text = v6.octets();
    let starts = |prefix: &[u8]| text.starts_with(prefix);
    v6.to_ipv4().is_some() // v4-mapped and v4-compatible
        || starts(&[0x20, 0x02])
        || starts(&[0x20, 0x01, 0, 0])
        || starts(&[0, 0x64, 0xff, 0x9b, 0, 1])
        || starts(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0])
        || starts(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])
}

fn metadata(address: IpAddr) -> bool {
    let known =
        ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "169.254.170.2", "169.254.170.23"];
    let more = ["169.254.42.42", "169.254.0.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"];
    known.iter().chain(&more).any(|text| address == text.parse::<IpAddr>().unwrap())
}

fn special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_documentation()
        || v4.is_multicast()
        || v4.is_broadcast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
}

fn special_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    v6.is_multicast()
        || v6.is_unicast_link_local()
        || v6.is_unique_local()
        || s[..4] == [0x100, 0, 0, 0]
        || s[..4] == [0x100, 0, 0, 1]
        || s[..3] == [0x64, 0xff9b, 0xffff]
        || (s[0] == 0x2001 && s[1] < 0x200)
        || s[..2] == [0x2001, 0xdb8]
        || (s[0] == 0x3fff && s[1] < 0x1000)
        || s[0] == 0x5f00
        || (0xfec0..0xff00).contains(&s[0])
}
