//! What is on the wire, whoever wrote it: every frame that a namespace's interfaces see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::netns::Netns;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who seems to have sent it.
    pub from: IpAddr,
    /// To whom.
    pub to: IpAddr,
    /// IP's number of what it carries.
    pub protocol: u8,
    /// To which port, where it has ports.
    pub port: u16,
}

/// A frame that is no IP packet: its type, and all of it.
type Frame = (u16, Vec<u8>);

/// Listens to a namespace until it is dropped.
pub struct Wire {
    seen: Arc<Mutex<Vec<Packet>>>,
    others: Arc<Mutex<Vec<Frame>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Begins to listen; what comes from now on is seen.
    pub fn tap(netns: &Netns) -> Self {
        let socket = netns.inside(|| {
            let all =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
            setsockopt(&all, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            setsockopt(&all, sockopt::RcvBuf, &(8 << 20)).unwrap();
            all
        });
        let seen: Arc<Mutex<Vec<Packet>>> = Arc::default();
        let others: Arc<Mutex<Vec<Frame>>> = Arc::default();
        let end = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, others, end) = (seen.clone(), others.clone(), end.clone());
            move || {
                let mut frame = vec![0; 1 << 16];
                while !end.load(Ordering::Relaxed) {
                    let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
                    match parse(&frame[..length]) {
                        Some(packet) => seen.lock().unwrap().push(packet),
                        None if length >= 14 => {
                            let kind = u16::from_be_bytes([frame[12], frame[13]]);
                            others.lock().unwrap().push((kind, frame[..length].to_vec()));
                        }
                        None => {}
                    }
                }
            }
        });
        Self { seen, others, end, thread: Some(thread) }
    }

    /// All packets so far that are like this.
    pub fn saw(&self, like: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        self.seen.lock().unwrap().iter().filter(|packet| like(packet)).cloned().collect()
    }

    /// All packets so far to an address.
    pub fn to(&self, address: &str) -> Vec<Packet> {
        let address: IpAddr = address.parse().unwrap();
        self.saw(|packet| packet.to == address)
    }

    /// All frames so far of a type (`0x0806`: ARP) that contain these bytes.
    pub fn frames(&self, kind: u16, part: &[u8]) -> usize {
        let has = |frame: &[u8]| part.is_empty() || frame.windows(part.len()).any(|window| window == part);
        self.others.lock().unwrap().iter().filter(|(is, frame)| *is == kind && has(frame)).count()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Ethernet with IPv4 or IPv6; of a later fragment the port is 0.
fn parse(frame: &[u8]) -> Option<Packet> {
    let (kind, packet) = (u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]), frame.get(14..)?);
    let (from, to, protocol, rest, first) = match kind {
        0x0800 => {
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
            let first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
            let header = usize::from(packet.first()? & 0xf) * 4;
            (address(12)?, address(16)?, *packet.get(9)?, packet.get(header..)?, first)
        }
        0x86dd => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
            (address(8)?, address(24)?, *packet.get(6)?, packet.get(40..)?, true)
        }
        _ => return None,
    };
    let ported = first && (protocol == 6 || protocol == 17) && rest.len() >= 4;
    let port = if ported { u16::from_be_bytes([rest[2], rest[3]]) } else { 0 };
    Some(Packet { from, to, protocol, port })
}
