//! What is the same for all sandboxes: the chains that packets pass first, and the maps that lead from them to a sandbox's own.

use super::parts::*;
use super::{DENIALS, ICMP, ICMPV6, RECEIVERS4, RECEIVERS6, REDIRECTS, SENDERS, Settings, TCP, TOLD, UDP};
use crate::daemon::nf_tables::{Change, Family, Header, Hook, Load, Rule, Step, Verdict, ct};

/// ICMP refusals to all sandboxes, a second; more denied packets are dropped in silence.
const ICMP_REFUSALS: u32 = 1000;
/// What our DNS gives names as addresses: 198.18.0.0/15 (RFC 2544).
const SYNTHETIC: ([u8; 4], [u8; 4]) = ([198, 18, 0, 0], [255, 254, 0, 0]);
/// The shared chains, in the order of reading back.
pub const SHARED: [&str; 8] = ["prerouting", "forward", "input", "to-host", "icmp", "icmp6", "stranger", "refuse"];

/// Makes what all share. Rules of an older run are replaced in the same transaction: the fence is never open in between.
pub fn shared(settings: &Settings) -> Vec<Change> {
    const MARK_TYPE: u32 = 19; // nft(8)'s numbers: how it prints the keys
    const IPV4_TYPE: u32 = 7;
    const IPV6_TYPE: u32 = 8;
    let hook = |kind, number, priority| Some(Hook { kind, number, priority, device: None, accept: true });
    let hooks = [
        ("prerouting", hook("nat", 0, -110)), // before others' DNAT (-100)
        ("forward", hook("filter", 2, -10)),
        ("input", hook("filter", 1, -10)),
    ];
    let mut changes = vec![Change::Table(Family::Inet), Change::Table(Family::Netdev)];
    for (map, kind, length) in [
        (SENDERS, MARK_TYPE, 4),
        (REDIRECTS, MARK_TYPE, 4),
        (DENIALS, MARK_TYPE, 4),
        (RECEIVERS4, IPV4_TYPE, 4),
        (RECEIVERS6, IPV6_TYPE, 16),
    ] {
        changes.push(Change::VerdictMap(map, kind, length));
    }
    for name in SHARED {
        let hook = hooks.iter().find(|(hooked, _)| *hooked == name).and_then(|(_, hook)| hook.clone());
        changes.push(Change::Chain(Family::Inet, name.into(), hook));
        changes.push(Change::Flush(Family::Inet, name.into()));
    }
    let append = |chain: &str, rule| Change::Append(Family::Inet, chain.into(), rule);
    changes.extend(prerouting(settings).into_iter().map(|rule| append("prerouting", rule)));
    changes.extend(forward().into_iter().map(|rule| append("forward", rule)));
    changes.push(append("input", join([unmarked(), then(Verdict::Accept)])));
    changes.push(append("input", then(goto("to-host"))));
    changes.extend(to_host(settings).into_iter().map(|rule| append("to-host", rule)));
    changes.extend(icmp(ICMP, 8, 0, &[3, 11, 12]).into_iter().map(|rule| append("icmp", rule)));
    changes.extend(icmp(ICMPV6, 128, 129, &[1, 2, 3, 4]).into_iter().map(|rule| append("icmp6", rule)));
    changes.extend(stranger(settings).into_iter().map(|rule| append("stranger", rule)));
    changes.extend(refuse().into_iter().map(|rule| append("refuse", rule)));
    changes
}

/// Connections to names, and to whatever wants a decision, come to us. Only a connection's first packet gets here.
fn prerouting(settings: &Settings) -> Vec<Rule> {
    let to = |protocol, condition: Rule, port| join([l4(protocol), condition, vec![Step::Redirect(port)]]);
    vec![
        join([unmarked(), then(Verdict::Accept)]),
        to(UDP, dport(53), settings.dns_port),
        to(TCP, dport(53), settings.dns_port),
        to(TCP, synthetic(), settings.gate_port),
        join([masked_mark(), vec![Step::Map(REDIRECTS)]]),
    ]
}

fn forward() -> Vec<Rule> {
    vec![
        // Towards a sandbox: first, so that nothing another sandbox may do opens this one.
        join([family(2), vec![Step::Load(Load::Bytes(Header::Network, 16, 4)), Step::Map(RECEIVERS4)]]),
        join([family(10), vec![Step::Load(Load::Bytes(Header::Network, 24, 16)), Step::Map(RECEIVERS6)]]),
        join([unmarked(), then(Verdict::Accept)]),
        join([ct_bits(ct::STATE, ct::INVALID), then(Verdict::Drop)]),
        // By name only TCP passes, and that does not come here.
        join([synthetic(), masked_mark(), vec![Step::Map(DENIALS)]]),
        join([masked_mark(), vec![Step::Map(SENDERS)]]),
        // Marked, but of no sandbox that we know.
        join([vec![Step::Count], then(Verdict::Drop)]),
    ]
}

/// From a sandbox to the host itself.
fn to_host(settings: &Settings) -> Vec<Rule> {
    let ours =
        |protocol, port| join([l4(protocol), dport(port), ct_bits(ct::STATUS, ct::DST_NAT), then(Verdict::Accept)]);
    let mut rules = vec![
        join([ct_bits(ct::STATE, ct::INVALID), then(Verdict::Drop)]),
        ours(UDP, settings.dns_port),
        ours(TCP, settings.dns_port),
        ours(TCP, settings.gate_port),
        // Neighbour solicitation and advertisement; the ingress chain has looked at them.
        join([l4(ICMPV6), transport(0, 1), vec![Step::Within(vec![135], vec![136])], then(Verdict::Accept)]),
    ];
    if settings.host_connects {
        let reply = vec![Step::Load(Load::Ct(ct::DIRECTION)), Step::Is(vec![ct::REPLY])];
        rules.push(join([ct_bits(ct::STATE, ct::ESTABLISHED), reply, then(Verdict::Accept)]));
    }
    rules.push(join([masked_mark(), vec![Step::Map(DENIALS)]]));
    rules.push(then(Verdict::Drop));
    rules
}

/// Errors about the sandbox's own flows reach it; it sends none. Echo is left to the policy, all else is denied.
fn icmp(protocol: u8, request: u8, reply: u8, errors: &[u8]) -> Vec<Rule> {
    let span = |from: &[u8]| Step::Within(vec![from[0]], vec![from[from.len() - 1]]);
    let towards = join([unmarked(), ct_bits(ct::STATE, ct::RELATED), l4(protocol), transport(0, 1)]);
    let mut rules: Vec<Rule> = match protocol {
        ICMPV6 => vec![join([towards, vec![span(errors)], then(Verdict::Accept)])],
        _ => errors
            .iter()
            .map(|error| join([towards.clone(), vec![Step::Is(vec![*error])], then(Verdict::Accept)]))
            .collect(),
    };
    for echo in [request, reply] {
        rules.push(join([l4(protocol), transport(0, 1), vec![Step::Is(vec![echo])], then(Verdict::Return)]));
    }
    rules.push(then(Verdict::Drop));
    rules
}

/// Towards a sandbox, of a flow that it did not open: another sandbox is told so, anyone else hears nothing. (Not by the map
/// of denials: the kernel follows every map from every chain that names it, whenever anything is changed.)
fn stranger(settings: &Settings) -> Vec<Rule> {
    let told = |group| vec![Step::Limit(TOLD), Step::Log(group)];
    let mut rules = vec![join([unmarked(), vec![Step::Count], then(Verdict::Drop)])];
    rules.extend(settings.log_group.map(told));
    rules.push(join([vec![Step::Count], then(goto("refuse"))]));
    rules
}

fn refuse() -> Vec<Rule> {
    vec![join([l4(TCP), vec![Step::Reset]]), vec![Step::Limit(ICMP_REFUSALS), Step::Prohibit], then(Verdict::Drop)]
}

fn synthetic() -> Rule {
    let (network, mask) = SYNTHETIC;
    let address =
        vec![Step::Load(Load::Bytes(Header::Network, 16, 4)), Step::And(mask.into()), Step::Is(network.into())];
    join([family(2), address])
}
