//! What the kernel has denied, as it tells it: a copy of the head of each packet that the fence's log rule has let through its
//! limit. Source: Linux `include/uapi/linux/netfilter/nfnetlink_log.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NlasIterator;
use nix::sys::socket::SockProtocol;

use super::netlink::{Message, Netlink, align};
use super::ruleset::Slot;
use crate::policy::Protocol;

/// NFNL_SUBSYS_ULOG, and its two messages.
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = 4 << 8 | 1;
/// Of each packet so many bytes are copied: IPv6 and the ports.
const HEAD: u32 = 64;

/// A packet that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Whose.
    pub slot: Slot,
    /// To where.
    pub to: IpAddr,
    /// To which port; 0 where it was not the first fragment.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

/// Listens to a group.
pub struct Log(Netlink);

impl Log {
    /// Begins to listen, in the network namespace of this thread. One process at a time may have a group.
    pub fn open(group: u16) -> io::Result<Self> {
        const BIND: [u8; 1] = [1];
        const NOW: [u8; 4] = 1u32.to_be_bytes(); // packets that are told together
        let mode = [&HEAD.to_be_bytes()[..], &[2, 0]].concat(); // copy the packet
        let netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
        for (kind, value) in [(1, &BIND[..]), (2, &mode), (5, &NOW)] {
            netlink.ask(config(group, kind, value))?;
        }
        Ok(Self(netlink))
    }

    /// Waits for packets.
    pub fn next(&self) -> io::Result<Vec<Denied>> {
        Ok(self.0.heard()?.iter().filter(|message| message.kind == PACKET).filter_map(|m| read(&m.payload)).collect())
    }
}

fn config(group: u16, kind: u16, value: &[u8]) -> Message {
    let mut payload = vec![0, 0];
    payload.extend(group.to_be_bytes());
    payload.extend((4 + value.len() as u16).to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend(value);
    payload.resize(align(payload.len()), 0);
    Message { kind: CONFIG, flags: 0, payload }
}

/// The mark says whose it is, the head of the packet the rest; what is neither TCP nor UDP has no port to tell.
fn read(payload: &[u8]) -> Option<Denied> {
    const MARK: u16 = 2;
    const HEAD: u16 = 9;
    let (mut mark, mut head) = (None, None);
    for attribute in NlasIterator::new(payload.get(4..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            MARK => mark = attribute.value().first_chunk().map(|mark| u32::from_be_bytes(*mark)),
            HEAD => head = packet(attribute.value()),
            _ => {}
        }
    }
    let (slot, (to, port, protocol)) = (Slot::of_mark(mark?)?, head?);
    Some(Denied { slot, to, port, protocol })
}

fn packet(bytes: &[u8]) -> Option<(IpAddr, u16, Protocol)> {
    let (to, protocol, ports): (IpAddr, _, _) = match bytes.first()? >> 4 {
        4 => {
            let to: [u8; 4] = *bytes.get(16..)?.first_chunk()?;
            let later = u16::from_be_bytes(*bytes.get(6..)?.first_chunk()?) & 0x1fff != 0;
            let ports = if later { None } else { bytes.get(usize::from(bytes[0] & 0xf) * 4..) };
            (Ipv4Addr::from(to).into(), *bytes.get(9)?, ports)
        }
        6 => {
            let to: [u8; 16] = *bytes.get(24..)?.first_chunk()?;
            (Ipv6Addr::from(to).into(), *bytes.get(6)?, bytes.get(40..))
        }
        _ => return None,
    };
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let port = ports.and_then(|ports| ports.get(2..)?.first_chunk()).map_or(0, |port| u16::from_be_bytes(*port));
    Some((to, port, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mark: u32, packet: &[u8]) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 7];
        for (kind, value) in [(2u16, &mark.to_be_bytes()[..]), (9, packet)] {
            payload.extend((4 + value.len() as u16).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
            payload.resize(align(payload.len()), 0);
        }
        payload
    }

    #[test]
    fn a_packet_says_where_it_wanted_to_go() {
        let slot = Slot::new(5).unwrap();
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1, 0x12, 0x34, 1, 0xbb];
        let expected = Denied { slot, to: [192, 0, 2, 1].into(), port: 443, protocol: Protocol::Tcp };
        assert_eq!(read(&told(slot.mark() | 0x4000, &v4)), Some(expected));
        v4[7] = 9; // a later fragment
        v4[9] = 17;
        assert_eq!(read(&told(slot.mark(), &v4)), Some(Denied { port: 0, protocol: Protocol::Udp, ..expected }));
        v4[9] = 1;
        assert_eq!(read(&told(slot.mark(), &v4)), None, "ICMP");
        let mut v6 = vec![0; 44];
        (v6[0], v6[6], v6[39], v6[43]) = (0x60, 17, 1, 53);
        let to = Ipv6Addr::LOCALHOST.into();
        assert_eq!(read(&told(slot.mark(), &v6)), Some(Denied { slot, to, port: 53, protocol: Protocol::Udp }));
        assert_eq!(read(&told(0, &v6)), None, "nobody's");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_not(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..128)) {
            let _ = read(&bytes);
            let _ = packet(&bytes);
        }
    }
}
