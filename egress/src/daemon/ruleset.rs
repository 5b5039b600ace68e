//! The fence as rules: what is installed for a sandbox, and what all sandboxes share. Pure. Why each rule is there stands in
//! docs/egress.md, section Fence; what a flow may do is decided by `policy`, from whose address rules the sandbox's are made.
//!
//! A frame of a sandbox passes the chain on its host end (netdev ingress), which drops what is forged and marks the rest. From
//! the mark the shared chains (inet) find the sandbox's own in one look-up, however many there are; from the address of a
//! packet towards a sandbox likewise.

use std::net::IpAddr;

use ipnet::IpNet;

use super::netns::Port;
use super::nf_tables::{Change, Family, Header, Hook, Load, Rule, Step, Verdict, ct, meta};
use crate::policy::{Action, AddressRule, Protocol};
use crate::protocol::Interface;

/// The bits of a packet's mark that are ours; kube-proxy's (0x4000, 0x8000) are not among them.
pub const MARK_MASK: u32 = 0x3fff_0000;
/// More interfaces a sandbox cannot have.
pub const MAX_INTERFACES: usize = 8;
/// What our DNS gives names as addresses: 198.18.0.0/15 (RFC 2544).
const SYNTHETIC: ([u8; 4], [u8; 4]) = ([198, 18, 0, 0], [255, 254, 0, 0]);
/// Denied packets of one sandbox that are told of, a second.
const TOLD: u32 = 20;
/// ICMP refusals to all sandboxes, a second; more denied packets are dropped in silence.
const ICMP_REFUSALS: u32 = 1000;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A sandbox's place in the rules, 1 to 0x3fff: the mark's upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// The last one.
    pub const MAX: u16 = (MARK_MASK >> 16) as u16;

    /// The slot of this number, if there is one.
    pub fn new(number: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// The slot that a packet's mark names, whatever other bits it has.
    pub fn of_mark(mark: u32) -> Option<Self> {
        Self::new(((mark & MARK_MASK) >> 16) as u16)
    }

    /// The mark of its packets.
    pub fn mark(self) -> u32 {
        u32::from(self.0) << 16
    }

    fn own(self) -> String {
        format!("s{}", self.0)
    }

    fn policy(self) -> String {
        format!("s{}-policy", self.0)
    }

    fn nat(self) -> String {
        format!("s{}-nat", self.0)
    }

    fn denied(self) -> String {
        format!("s{}-denied", self.0)
    }

    fn device(self, index: usize) -> String {
        format!("s{}-dev{index}", self.0)
    }

    /// Its chains: the shared table's, then those of as many interfaces.
    pub fn chains(self, interfaces: usize) -> Vec<(Family, String)> {
        let inet = [self.own(), self.policy(), self.nat(), self.denied()].map(|name| (Family::Inet, name));
        let devices = (0..interfaces).map(|index| (Family::Netdev, self.device(index)));
        inet.into_iter().chain(devices).collect()
    }

    /// The slot that a chain belongs to.
    pub fn of_chain(name: &str) -> Option<Self> {
        name.strip_prefix('s')?.split('-').next()?.parse().ok().and_then(Self::new)
    }
}

/// What is the same for all sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where our DNS listens, UDP and TCP.
    pub dns_port: u16,
    /// Where our gate listens, TCP.
    pub gate_port: u16,
    /// To which NFLOG group denied packets are told.
    pub log_group: Option<u16>,
    /// Whether the host's own processes may connect to sandboxes (probes, published servers).
    pub host_connects: bool,
}

/// The shared chains, in the order of reading back.
pub const SHARED: [&str; 8] = ["prerouting", "forward", "input", "to-host", "icmp", "icmp6", "stranger", "refuse"];

const SENDERS: &str = "senders";
const REDIRECTS: &str = "redirects";
const DENIALS: &str = "denials";
const RECEIVERS4: &str = "receivers4";
const RECEIVERS6: &str = "receivers6";
/// The maps that lead to the sandboxes' chains: by mark, and by address.
pub const MAPS: [&str; 5] = [SENDERS, REDIRECTS, DENIALS, RECEIVERS4, RECEIVERS6];

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

/// Puts a fence around a sandbox, in place of what stands there.
pub fn attach(settings: &Settings, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Vec<Change> {
    let mut changes = remove_devices(slot);
    for (_, name) in slot.chains(0) {
        changes.push(Change::Chain(Family::Inet, name.clone(), None));
        changes.push(Change::Flush(Family::Inet, name));
    }
    for (index, port) in ports.iter().enumerate() {
        let name = slot.device(index);
        let device = Some(port.interface.host_name.clone());
        let hook = Hook { kind: "filter", number: 0, priority: -450, device, accept: false };
        changes.push(Change::Chain(Family::Netdev, name.clone(), Some(hook)));
        changes.extend(ingress(slot, port).into_iter().map(|rule| Change::Append(Family::Netdev, name.clone(), rule)));
    }
    let own = |rule| Change::Append(Family::Inet, slot.own(), rule);
    changes.push(own(join([ct_bits(ct::STATE, ct::INVALID), then(Verdict::Drop)])));
    let addresses: Vec<_> = ports.iter().flat_map(|port| &port.interface.addresses).copied().collect();
    for (key, v4) in [(ct::SRC_IP, true), (ct::SRC_IP6, false)] {
        let opener = Step::Load(Load::CtDir(key, ct::ORIGINAL));
        changes.push(own(join([none_of(opener, &addresses, v4), then(goto("stranger"))])));
    }
    changes.push(own(then(goto(&slot.policy()))));
    let denied = |rule| Change::Append(Family::Inet, slot.denied(), rule);
    if let Some(group) = settings.log_group {
        changes.push(denied(vec![Step::Limit(TOLD), Step::Log(group)]));
    }
    changes.push(denied(join([vec![Step::Count], then(goto("refuse"))])));
    changes.extend(content(settings, slot, rules));
    let interfaces: Vec<_> = ports.iter().map(|port| port.interface.clone()).collect();
    changes.extend(elements(slot, &interfaces).into_iter().map(|(map, key, verdict)| Change::Put(map, key, verdict)));
    changes
}

/// Gives a sandbox another policy: flows that it does not permit end with their next packet, in either direction.
pub fn update(settings: &Settings, slot: Slot, rules: &[AddressRule]) -> Vec<Change> {
    let flush = [slot.policy(), slot.nat()].map(|name| Change::Flush(Family::Inet, name));
    flush.into_iter().chain(content(settings, slot, rules)).collect()
}

/// Takes the fence away. What is in the maps must be taken out before.
pub fn detach(slot: Slot) -> Vec<Change> {
    let mut changes = remove_devices(slot);
    let chains = slot.chains(0);
    // Made first: so that it makes no difference whether they are there.
    for (family, name) in &chains {
        changes.push(Change::Chain(*family, name.clone(), None));
        changes.push(Change::Flush(*family, name.clone()));
    }
    changes.extend(chains.into_iter().map(|(family, name)| Change::DropChain(family, name)));
    changes
}

fn remove_devices(slot: Slot) -> Vec<Change> {
    let chains = (0..MAX_INTERFACES).map(|index| slot.device(index));
    let remove = |name: String| {
        let family = Family::Netdev;
        [
            Change::Chain(family, name.clone(), None),
            Change::Flush(family, name.clone()),
            Change::DropChain(family, name),
        ]
    };
    chains.flat_map(remove).collect()
}

/// What leads to the sandbox's chains: map, key, verdict.
pub fn elements(slot: Slot, interfaces: &[Interface]) -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let mark = slot.mark().to_ne_bytes().to_vec();
    let mut all = vec![
        (SENDERS, mark.clone(), goto(&slot.own())),
        (REDIRECTS, mark.clone(), goto(&slot.nat())),
        (DENIALS, mark, goto(&slot.denied())),
    ];
    for address in interfaces.iter().flat_map(|interface| &interface.addresses).filter(|address| routed(address)) {
        let map = if address.is_ipv4() { RECEIVERS4 } else { RECEIVERS6 };
        all.push((map, octets(address), goto(&slot.own())));
    }
    all
}

/// Link-local addresses are never forwarded, and not unique.
fn routed(address: &IpAddr) -> bool {
    !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The policy: judges every packet of a flow that the sandbox opened, in both directions, by who really is at the other end.
fn content(settings: &Settings, slot: Slot, rules: &[AddressRule]) -> Vec<Change> {
    let judge = |rule| Change::Append(Family::Inet, slot.policy(), rule);
    let nat = |rule| Change::Append(Family::Inet, slot.nat(), rule);
    let others = [TCP, UDP, ICMP, ICMPV6].map(|protocol| Step::IsNot(vec![protocol])).to_vec();
    let mut changes = vec![
        judge(join([l4(ICMP), then(Verdict::Jump("icmp".into()))])),
        judge(join([l4(ICMPV6), then(Verdict::Jump("icmp6".into()))])),
        judge(join([vec![Step::Load(Load::Meta(meta::L4PROTO))], others, then(goto(&slot.denied()))])),
    ];
    for rule in rules {
        let verdict = if rule.action == Action::Allow { Verdict::Accept } else { goto(&slot.denied()) };
        let peer = matches(rule, Side::Peer);
        changes.extend(peer.into_iter().map(|rule| judge(join([rule, then(verdict.clone())]))));
    }
    changes.push(judge(then(goto(&slot.denied()))));
    if rules.iter().any(|rule| rule.action == Action::RequireAuthz) {
        for rule in rules.iter().filter(|rule| rule.protocol != Some(Protocol::Udp)) {
            let end = match rule.action {
                Action::RequireAuthz => vec![Step::Redirect(settings.gate_port)],
                Action::Allow | Action::Deny => then(Verdict::Accept),
            };
            let tcp = AddressRule { protocol: Some(Protocol::Tcp), ..rule.clone() };
            changes.extend(matches(&tcp, Side::Destination).into_iter().map(|rule| nat(join([rule, end.clone()]))));
        }
    }
    changes
}

/// By what a flow's other end is known.
#[derive(Clone, Copy)]
enum Side {
    /// By the connection: who answers, after any rewriting; the same in both directions.
    Peer,
    /// By the packet: to where it was sent, before any rewriting.
    Destination,
}

/// Conditions, one of which must hold.
fn matches(rule: &AddressRule, side: Side) -> Vec<Rule> {
    let address = net(&rule.net, side);
    let protocols: &[Option<u8>] = match (rule.protocol, rule.ports.is_empty()) {
        (Some(Protocol::Tcp), _) => &[Some(TCP)],
        (Some(Protocol::Udp), _) => &[Some(UDP)],
        (None, true) => &[None], // ICMP echo, too
        (None, false) => &[Some(TCP), Some(UDP)],
    };
    let ports: Vec<Rule> = match rule.ports.as_slice() {
        [] => vec![vec![]],
        ranges => ranges.iter().map(|range| port(side, *range.start(), *range.end())).collect(),
    };
    let with = |protocol: &Option<u8>| protocol.map_or(vec![], l4);
    let each = |protocol| ports.iter().map(move |port| (protocol, port));
    protocols
        .iter()
        .flat_map(each)
        .map(|(protocol, port)| join([with(protocol), address.clone(), port.clone()]))
        .collect()
}

fn net(net: &IpNet, side: Side) -> Rule {
    let (address, mask) = (octets(&net.network()), octets(&net.netmask()));
    let mut rule = match (side, net) {
        (Side::Peer, _) => vec![Step::Load(connection(ct::REPLY, &net.addr()))],
        (Side::Destination, IpNet::V4(_)) => join([family(2), vec![Step::Load(Load::Bytes(Header::Network, 16, 4))]]),
        (Side::Destination, IpNet::V6(_)) => join([family(10), vec![Step::Load(Load::Bytes(Header::Network, 24, 16))]]),
    };
    if net.prefix_len() < net.max_prefix_len() {
        rule.push(Step::And(mask));
    }
    rule.push(Step::Is(address));
    rule
}

fn port(side: Side, from: u16, to: u16) -> Rule {
    let load = match side {
        Side::Peer => Load::CtDir(ct::PROTO_SRC, ct::REPLY),
        Side::Destination => Load::Bytes(Header::Transport, 2, 2),
    };
    let (from, to) = (from.to_be_bytes().to_vec(), to.to_be_bytes().to_vec());
    vec![Step::Load(load), if from == to { Step::Is(from) } else { Step::Within(from, to) }]
}

/// What a sandbox may put on its wire: frames with its own addresses, to its gateway.
fn ingress(slot: Slot, port: &Port) -> Vec<Rule> {
    let Interface { mac, gateway_mac, addresses, .. } = &port.interface;
    let frame = |offset, length| Step::Load(Load::Bytes(Header::Link, offset, length));
    let packet = |offset, length| Step::Load(Load::Bytes(Header::Network, offset, length));
    // The frame's own type, which a VLAN tag would stand in the place of.
    let kind = |kind: u16| vec![frame(12, 2), Step::Is(kind.to_be_bytes().to_vec())];
    let (ipv4, arp, ipv6) = (kind(0x0800), kind(0x0806), kind(0x86dd));
    let drop = || join([vec![Step::Count], then(Verdict::Drop)]);
    let mark = || join([vec![Step::Mark(slot.mark())], then(Verdict::Accept)]);
    let to_gateway = vec![frame(0, 6), Step::Is(gateway_mac.to_vec())];
    let icmpv6 = join([ipv6.clone(), l4(ICMPV6), transport(0, 1)]);
    let is = |kind: u8| vec![Step::Is(vec![kind])];
    let nothing_else = [128, 129, 135, 136].map(|kind| Step::IsNot(vec![kind])).to_vec();
    let ethernet_arp = vec![0, 1, 8, 0, 6, 4];
    let request = vec![packet(6, 2), Step::Is(vec![0, 1])];
    let broadcast = vec![frame(0, 6), Step::Is(vec![0xff; 6])];
    let mut rules = vec![
        join([vec![frame(6, 6), Step::IsNot(mac.to_vec())], drop()]),
        join([ipv4.clone(), none_of(packet(12, 4), addresses, true), drop()]),
        join([ipv6.clone(), none_of(packet(8, 16), addresses, false), drop()]),
        join([arp.clone(), vec![packet(0, 6), Step::IsNot(ethernet_arp)], drop()]),
        join([arp.clone(), vec![packet(8, 6), Step::IsNot(mac.to_vec())], drop()]),
        join([arp.clone(), none_of(packet(14, 4), addresses, true), drop()]),
        join([arp.clone(), to_gateway.clone(), then(Verdict::Accept)]),
    ];
    // On a bridge, who asks for a neighbour's address could tell that neighbour something by it.
    let foreign_target = |offset, length, v4: bool| match &port.neighbours {
        Some(gateways) => none_of(packet(offset, length), gateways, v4),
        None => vec![],
    };
    if port.neighbours.is_some() {
        rules.push(join([arp.clone(), foreign_target(24, 4, true), drop()]));
        rules.push(join([icmpv6.clone(), is(135), foreign_target(48, 16, false), drop()]));
    }
    rules.extend([
        join([arp, request, broadcast, then(Verdict::Accept)]),
        join([ipv4, to_gateway.clone(), mark()]),
        join([icmpv6.clone(), nothing_else, drop()]),
        join([icmpv6.clone(), is(136), none_of(packet(48, 16), addresses, false), drop()]),
        join([icmpv6, is(135), vec![frame(0, 3), Step::Is(vec![0x33, 0x33, 0xff])], mark()]),
        join([ipv6, to_gateway, mark()]),
        drop(),
    ]);
    rules
}

/// Loads an address of a family, and matches if it is none of these.
fn none_of(load: Step, all: &[IpAddr], v4: bool) -> Rule {
    let of_family = all.iter().filter(|address| address.is_ipv4() == v4);
    join([vec![load], of_family.map(|address| Step::IsNot(octets(address))).collect()])
}

fn join<const N: usize>(parts: [Rule; N]) -> Rule {
    parts.concat()
}

fn then(verdict: Verdict) -> Rule {
    vec![Step::Then(verdict)]
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.to_owned())
}

fn masked_mark() -> Rule {
    vec![Step::Load(Load::Meta(meta::MARK)), Step::And(MARK_MASK.to_ne_bytes().to_vec())]
}

fn unmarked() -> Rule {
    join([masked_mark(), vec![Step::Is(vec![0; 4])]])
}

fn l4(protocol: u8) -> Rule {
    vec![Step::Load(Load::Meta(meta::L4PROTO)), Step::Is(vec![protocol])]
}

fn family(number: u8) -> Rule {
    vec![Step::Load(Load::Meta(meta::NFPROTO)), Step::Is(vec![number])]
}

fn transport(offset: u32, length: u32) -> Rule {
    vec![Step::Load(Load::Bytes(Header::Transport, offset, length))]
}

fn dport(port: u16) -> Rule {
    join([transport(2, 2), vec![Step::Is(port.to_be_bytes().to_vec())]])
}

fn synthetic() -> Rule {
    let (network, mask) = SYNTHETIC;
    let address =
        vec![Step::Load(Load::Bytes(Header::Network, 16, 4)), Step::And(mask.into()), Step::Is(network.into())];
    join([family(2), address])
}

fn ct_bits(key: u32, bits: u32) -> Rule {
    vec![Step::Load(Load::Ct(key)), Step::And(bits.to_ne_bytes().into()), Step::IsNot(vec![0; 4])]
}

fn connection(direction: u8, address: &IpAddr) -> Load {
    Load::CtDir(if address.is_ipv4() { ct::SRC_IP } else { ct::SRC_IP6 }, direction)
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings { dns_port: 5300, gate_port: 5301, log_group: Some(5), host_connects: false };

    fn bridged() -> Port {
        let interface = Interface {
            name: "eth0".into(),
            host_name: "veth1".into(),
            host_index: 7,
            mac: [2, 0, 0, 0, 0, 2],
            gateway_mac: [2, 0, 0, 0, 0, 1],
            addresses: ["10.88.0.2", "fd00::2", "fe80::2"].map(|address| address.parse().unwrap()).to_vec(),
        };
        Port { interface, neighbours: Some(vec!["10.88.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]) }
    }

    fn rule(net: &str, ports: &[crate::policy::PortRange], protocol: Option<Protocol>, action: Action) -> AddressRule {
        AddressRule { rule: net.into(), net: net.parse().unwrap(), ports: ports.to_vec(), protocol, action }
    }

    /// The text of a transaction, compared with what stands in `golden/`; read its change before you accept it
    /// (`CRETO_ACCEPT=1`).
    fn golden(name: &str, changes: &[Change]) {
        let text: String = changes.iter().map(|change| format!("{change}\n")).collect();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/daemon/golden").join(name);
        if std::env::var_os("CRETO_ACCEPT").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    }

    #[test]
    fn the_transactions_are_what_was_reviewed() {
        let slot = Slot::new(7).unwrap();
        let rules = [
            rule("203.0.113.7/32", &[443..=443], None, Action::Deny),
            rule("203.0.113.0/24", &[80..=80, 8000..=8999], Some(Protocol::Tcp), Action::RequireAuthz),
            rule("2001:db8::/64", &[], None, Action::Allow),
            rule("0.0.0.0/0", &[123..=123], Some(Protocol::Udp), Action::Allow),
        ];
        golden("shared.txt", &shared(&SETTINGS));
        golden("attach.txt", &attach(&SETTINGS, slot, &[bridged()], &rules));
        golden("update.txt", &update(&SETTINGS, slot, &rules[..1]));
        golden("detach.txt", &detach(slot));
    }

    #[test]
    fn a_sandbox_without_a_policy_is_allowed_nothing() {
        let changes = update(&SETTINGS, Slot::new(1).unwrap(), &[]);
        assert!(changes.iter().all(|change| !change.to_string().ends_with("accept")), "{changes:?}");
    }

    proptest! {
        #[test]
        fn a_mark_names_one_slot_whatever_else_is_in_it(number in 1..=Slot::MAX, others: u32) {
            let slot = Slot::new(number).unwrap();
            prop_assert_eq!(Slot::of_mark(slot.mark() | others & !MARK_MASK), Some(slot));
            for (_, chain) in slot.chains(MAX_INTERFACES) {
                prop_assert_eq!(Slot::of_chain(&chain), Some(slot));
            }
        }
    }

    #[test]
    fn shared_chains_belong_to_no_slot() {
        for name in SHARED.into_iter().chain(["s", "s0", "s-policy", "s16384", "s70000"]) {
            assert_eq!(Slot::of_chain(name), None, "{name}");
        }
        assert_eq!(Slot::of_mark(0xc000), None);
    }
}
