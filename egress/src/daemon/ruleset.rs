//! The fence as rules: what is installed for a sandbox, and what all sandboxes share. Pure. Why each rule is there stands in
//! docs/egress.md, section Fence; what a flow may do is decided by `policy`, from whose address rules the sandbox's are made.
//!
//! A frame of a sandbox passes the chain on its host end (netdev ingress), which drops what is forged and marks the rest. From
//! the mark the shared chains (inet) find the sandbox's own in one look-up, however many there are; from the address of a
//! packet towards a sandbox likewise.

use std::net::IpAddr;

use ipnet::IpNet;
use trust::digest::Digest;

mod ingress;
mod parts;
mod shared;

pub use shared::{SHARED, shared};

use self::ingress::ingress;
use self::parts::*;
use super::netns::Port;
use super::nf_tables::{Change, Family, Header, Hook, Load, Rule, Step, Verdict, ct, meta};
use crate::policy::{Action, AddressRule, Protocol};
use crate::protocol::Interface;

/// The bits of a packet's mark that are ours; kube-proxy's (0x4000, 0x8000) are not among them.
pub const MARK_MASK: u32 = 0x3fff_0000;
/// More interfaces a sandbox cannot have.
pub const MAX_INTERFACES: usize = 8;
/// Denied packets of one sandbox that are told of, a second.
const TOLD: u32 = 20;

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

    fn towards(self, index: usize) -> String {
        format!("s{}-out{index}", self.0)
    }

    /// Its chains: the shared table's, then those of as many interfaces.
    pub fn chains(self, interfaces: usize) -> Vec<(Family, String)> {
        let inet = [self.own(), self.policy(), self.nat(), self.denied()].map(|name| (Family::Inet, name));
        let names = (0..interfaces).flat_map(|index| [self.device(index), self.towards(index)]);
        let devices = names.map(|name| (Family::Netdev, name));
        inet.into_iter().chain(devices).collect()
    }

    /// Whether a chain has the rules that the sandbox's policy is made into, and no others.
    pub fn is_policys(self, chain: &str) -> bool {
        [self.policy(), self.nat()].iter().any(|name| name == chain)
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

const SENDERS: &str = "senders";
const REDIRECTS: &str = "redirects";
const DENIALS: &str = "denials";
const RECEIVERS4: &str = "receivers4";
const RECEIVERS6: &str = "receivers6";
/// The maps that lead to the sandboxes' chains: by mark, and by address.
pub const MAPS: [&str; 5] = [SENDERS, REDIRECTS, DENIALS, RECEIVERS4, RECEIVERS6];

/// Puts a fence around a sandbox, in place of what stands there.
pub fn attach(settings: &Settings, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Vec<Change> {
    let mut changes = remove_devices(slot);
    for (_, name) in slot.chains(0) {
        changes.push(Change::Chain(Family::Inet, name.clone(), None));
        changes.push(Change::Flush(Family::Inet, name));
    }
    for (index, port) in ports.iter().enumerate() {
        let device = Some(port.interface.host_name.clone());
        let hook = Hook { kind: "filter", number: 0, priority: -450, device, accept: false };
        let out = Hook { number: 1, accept: true, ..hook.clone() };
        // What another sandbox may say to the whole wire (to find its gateway) is not for this one's ears.
        let marked = join([masked_mark(), vec![Step::IsNot(vec![0; 4]), Step::Count], then(Verdict::Drop)]);
        for (name, hook, rules) in
            [(slot.device(index), hook, ingress(slot, port)), (slot.towards(index), out, vec![marked])]
        {
            changes.push(Change::Chain(Family::Netdev, name.clone(), Some(hook)));
            changes.push(Change::Flush(Family::Netdev, name.clone()));
            changes.extend(rules.into_iter().map(|rule| Change::Append(Family::Netdev, name.clone(), rule)));
        }
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

/// Puts the rules of another policy in the place of those of the one before.
pub fn policy(settings: &Settings, slot: Slot, rules: &[AddressRule]) -> Vec<Change> {
    let mut changes = [slot.policy(), slot.nat()].map(|name| Change::Flush(Family::Inet, name)).to_vec();
    changes.extend(content(settings, slot, rules));
    changes
}

/// Of what is put into the kernel for such a fence: another one where the daemon's version or its settings are others.
pub fn digest(settings: &Settings, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Digest {
    let changes = [shared(settings), attach(settings, slot, ports, rules)];
    Digest::of(changes.iter().flatten().map(|change| format!("{change}\n")).collect::<String>().as_bytes())
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
    let chains = (0..MAX_INTERFACES).flat_map(|index| [slot.device(index), slot.towards(index)]);
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
        golden("policy.txt", &policy(&SETTINGS, slot, &rules));
        golden("detach.txt", &detach(slot));
    }

    #[test]
    fn a_sandbox_without_a_policy_is_allowed_nothing() {
        let changes = content(&SETTINGS, Slot::new(1).unwrap(), &[]);
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
