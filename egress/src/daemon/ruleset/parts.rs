//! What rules are put together from: conditions that more than one of them has.

use std::net::IpAddr;

use super::MARK_MASK;
use crate::daemon::nf_tables::{Header, Load, Rule, Step, Verdict, ct, meta};

/// Loads an address of a family, and matches if it is none of these.
pub fn none_of(load: Step, all: &[IpAddr], v4: bool) -> Rule {
    let of_family = all.iter().filter(|address| address.is_ipv4() == v4);
    join([vec![load], of_family.map(|address| Step::IsNot(octets(address))).collect()])
}

/// Conditions one after the other.
pub fn join<const N: usize>(parts: [Rule; N]) -> Rule {
    parts.concat()
}

/// The end of a rule.
pub fn then(verdict: Verdict) -> Rule {
    vec![Step::Then(verdict)]
}

/// Into that chain.
pub fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.to_owned())
}

/// Loads what of the mark is ours.
pub fn masked_mark() -> Rule {
    vec![Step::Load(Load::Meta(meta::MARK)), Step::And(MARK_MASK.to_ne_bytes().to_vec())]
}

/// Not from a sandbox.
pub fn unmarked() -> Rule {
    join([masked_mark(), vec![Step::Is(vec![0; 4])]])
}

/// Of this protocol.
pub fn l4(protocol: u8) -> Rule {
    vec![Step::Load(Load::Meta(meta::L4PROTO)), Step::Is(vec![protocol])]
}

/// IPv4 (2) or IPv6 (10).
pub fn family(number: u8) -> Rule {
    vec![Step::Load(Load::Meta(meta::NFPROTO)), Step::Is(vec![number])]
}

/// Loads bytes of the TCP, UDP or ICMP header.
pub fn transport(offset: u32, length: u32) -> Rule {
    vec![Step::Load(Load::Bytes(Header::Transport, offset, length))]
}

/// To this port.
pub fn dport(port: u16) -> Rule {
    join([transport(2, 2), vec![Step::Is(port.to_be_bytes().to_vec())]])
}

/// Has one of these bits.
pub fn ct_bits(key: u32, bits: u32) -> Rule {
    vec![Step::Load(Load::Ct(key)), Step::And(bits.to_ne_bytes().into()), Step::IsNot(vec![0; 4])]
}

/// Who sent, in a direction of the connection; of the family of `address`.
pub fn connection(direction: u8, address: &IpAddr) -> Load {
    Load::CtDir(if address.is_ipv4() { ct::SRC_IP } else { ct::SRC_IP6 }, direction)
}

/// An address as it is on the wire.
pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
