//! What a sandbox may put on its wire. The chain stands on the host's end, where nothing in the sandbox can change it.

use super::parts::*;
use super::{ICMPV6, Slot};
use crate::daemon::netns::Port;
use crate::daemon::nf_tables::{Header, Load, Rule, Step, Verdict};
use crate::protocol::Interface;

/// What a sandbox may put on its wire: frames with its own addresses, to its gateway.
pub fn ingress(slot: Slot, port: &Port) -> Vec<Rule> {
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
        join([arp.clone(), to_gateway.clone(), mark()]),
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
        join([arp, request, broadcast, mark()]),
        join([ipv4, to_gateway.clone(), mark()]),
        join([icmpv6.clone(), nothing_else, drop()]),
        join([icmpv6.clone(), is(136), none_of(packet(48, 16), addresses, false), drop()]),
        join([icmpv6, is(135), vec![frame(0, 3), Step::Is(vec![0x33, 0x33, 0xff])], mark()]),
        join([ipv6, to_gateway, mark()]),
        drop(),
    ]);
    rules
}
