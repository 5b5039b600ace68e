//! The rule of a pod's network namespace that hands connections to any port of its loopback to one socket: nf_tables' tproxy,
//! which needs no connection tracking. Written by ourselves, for a node need not have nft(8). It goes with the namespace.
//! Source: Linux `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`, Documentation/networking/tproxy.rst.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

/// Where containerd connects to.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The name of the table, and of its chain.
const TABLE: &str = "creto-forward";

/// How long the kernel may take to answer, in seconds; it answers within the call that asks.
const PATIENCE: i64 = 5;
const NF_TABLES: u16 = 10 << 8;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = NF_TABLES;
const DELETE_TABLE: u16 = NF_TABLES | 2;
const NEW_CHAIN: u16 = NF_TABLES | 3;
const NEW_RULE: u16 = NF_TABLES | 6;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const IPV4: u8 = 2;
const TCP: u8 = 6;
/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;
/// Before routing, where others mangle (`NF_IP_PRI_MANGLE`).
const PRIORITY: i32 = -150;
const ERROR: u16 = 2;

/// Puts the rule into this thread's network namespace, in the place of one that may be there.
pub fn install(port: u16) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&kernel, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    let batch = batch(port);
    send(kernel.as_raw_fd(), &batch.concat(), MsgFlags::empty())?;
    let awaited = batch.len() as u32 - 2; // the rule, before the end
    let mut answer = [0; 4096];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if read(&answer[..length], awaited)? {
            return Ok(());
        }
    }
}

/// Whether the awaited message is acknowledged; whatever was refused is an error.
fn read(mut answers: &[u8], awaited: u32) -> io::Result<bool> {
    let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four));
    let mut done = false;
    while let (Some(length), Some(kind), Some(sequence)) = (word(answers, 0), word(answers, 4), word(answers, 8)) {
        if kind as u16 == ERROR {
            match word(answers, 16).map(|code| code as i32) {
                Some(0) => done |= sequence == awaited,
                code => return Err(Errno::from_raw(code.unwrap_or_default().saturating_neg()).into()),
            }
        }
        // Never less than its own header, so that this ends.
        answers = answers.get((length.max(16) as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(done)
}

/// All in one transaction: what fails leaves nothing.
fn batch(port: u16) -> Vec<Vec<u8>> {
    let table = || text(1, TABLE);
    let hook = nest(4, &[int(1, 0), int(2, PRIORITY as u32)].concat());
    let messages: [(u16, u16, u8, Vec<u8>); 7] = [
        (BEGIN, 0, 0, Vec::new()),
        (NEW_TABLE, CREATE, IPV4, table()),
        (DELETE_TABLE, 0, IPV4, table()),
        (NEW_TABLE, CREATE, IPV4, table()),
        (NEW_CHAIN, CREATE, IPV4, [table(), text(3, TABLE), hook, int(5, 1), text(7, "filter")].concat()),
        (NEW_RULE, CREATE | APPEND | ACK, IPV4, [table(), text(2, TABLE), nest(4, &steps(port))].concat()),
        (END, 0, 0, Vec::new()),
    ];
    let numbered = messages.into_iter().zip(0_u32..);
    numbered.map(|((kind, flags, family, attributes), n)| message(kind, flags, n, family, &attributes)).collect()
}

/// iif lo ip daddr 127.0.0.1 meta l4proto tcp tproxy to 127.0.0.1:port accept
fn steps(port: u16) -> Vec<u8> {
    const META_INTERFACE: u32 = 4;
    const META_PROTOCOL: u32 = 16;
    const NETWORK_HEADER: u32 = 1;
    const DESTINATION: u32 = 16; // in an IPv4 header, 4 bytes
    let [first, second, verdict] = [1, 2, 0]; // registers
    let meta = |key| step("meta", &[int(1, first), int(2, key)]);
    let is = |value: &[u8]| step("cmp", &[int(1, first), int(2, 0), nest(3, &attribute(1, value))]);
    let load = |register, value: &[u8]| step("immediate", &[int(1, register), nest(2, &attribute(1, value))]);
    let accept = nest(2, &int(1, 1));
    [
        meta(META_INTERFACE),
        is(&LOOPBACK.to_ne_bytes()),
        step("payload", &[int(1, first), int(2, NETWORK_HEADER), int(3, DESTINATION), int(4, 4)]),
        is(&ADDRESS.octets()),
        meta(META_PROTOCOL),
        is(&[TCP]),
        load(first, &ADDRESS.octets()),
        load(second, &port.to_be_bytes()),
        step("tproxy", &[int(1, u32::from(IPV4)), int(2, first), int(3, second)]),
        step("immediate", &[int(1, verdict), nest(2, &accept)]),
    ]
    .concat()
}

fn step(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nest(1, &[text(1, name), nest(2, &data.concat())].concat())
}

/// A netlink header, nfnetlink's, then attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let resource = if kind < NF_TABLES { NF_TABLES >> 8 } else { 0 };
    let mut bytes = ((20 + attributes.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0, 0, 0, 0, family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nest(kind: u16, value: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(NESTED | kind, value)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn int(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let words = [36, u32::from(ERROR), sequence, 0, code as u32, 0, 0, 0, 0];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_rule_is_in_force_when_it_is_acknowledged_and_a_refusal_of_anything_is_an_error() {
        assert!(!read(&answer(1, 0), 5).unwrap());
        assert!(read(&[answer(1, 0), answer(5, 0)].concat(), 5).unwrap());
        for refused in [answer(0, -1), answer(5, -95), [answer(5, 0), answer(6, -2)].concat()] {
            assert!(read(&refused, 5).unwrap_err().raw_os_error().is_some_and(|code| code > 0));
        }
    }

    #[test]
    fn every_message_says_how_long_it_is_and_the_rule_is_the_last_before_the_end() {
        let batch = batch(7777);
        for message in &batch {
            assert_eq!(message.len() as u32, u32::from_ne_bytes(*message.first_chunk().unwrap()));
            assert_eq!(message.len() % 4, 0);
        }
        let kind = |message: &[u8]| u16::from_ne_bytes([message[4], message[5]]);
        assert_eq!(kind(&batch[batch.len() - 2]), NEW_RULE);
        assert!(batch[batch.len() - 2].windows(2).any(|two| two == 7777_u16.to_be_bytes()));
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_read_to_its_end(bytes in crate::arbitrary::bytes(), awaited in 0_u32..8) {
            let _ = read(&bytes, awaited);
        }
    }
}
