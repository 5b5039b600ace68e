//! Questions by UDP: one after the other, as an answer takes microseconds and waits for nobody. What arrives meanwhile waits in
//! the socket's buffer.
//!
//! A reply leaves from the address that its question arrived at (IP_PKTINFO, ip(7); RFC 3542 §6). The nat redirect knows a reply
//! by that address; on an interface with several, or one behind policy routes, the kernel would choose another one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use tokio::io::Interest;

use super::question::LONGEST;
use super::{Dns, Reply};
use crate::policy::Protocol;

/// Between two failures of the socket itself, so that they do not fill the log or the processor.
const PAUSE: Duration = Duration::from_millis(100);

/// Who sent a datagram, and where it arrived.
struct From {
    source: SockaddrStorage,
    arrived: Arrived,
}

enum Arrived {
    V4(in_pktinfo),
    V6(in6_pktinfo),
    Unknown,
}

/// Answers what arrives, for ever.
pub(super) async fn serve(dns: Arc<Dns>, socket: UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true)?,
        IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true)?,
    }
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let descriptor = socket.as_raw_fd();
    // One byte more than is looked at: what is longer is seen to be.
    let mut buffer = [0; LONGEST + 1];
    let mut control = nix::cmsg_space!(in_pktinfo, in6_pktinfo);
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(descriptor, &mut buffer, &mut control)).await;
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "a question could not be received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(source) = address(&from.source) else { continue };
        let Reply::Send(reply) = dns.answer(source, &buffer[..length], Protocol::Udp) else { continue };
        // A full buffer, or a client that is gone: it asks again, or does not.
        if let Err(error) = send(descriptor, &reply, &from) {
            tracing::debug!(%error, %source, "an answer could not be sent");
        }
    }
}

fn receive(socket: RawFd, buffer: &mut [u8], control: &mut [u8]) -> io::Result<(usize, From)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let source = message.address.ok_or(io::ErrorKind::InvalidData)?;
    let arrived = message.cmsgs()?.find_map(|control| match control {
        // `ipi_spec_dst` is the local address; the index is left to the route back.
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Arrived::V4(in_pktinfo { ipi_ifindex: 0, ipi_addr: in_addr { s_addr: 0 }, ..info }))
        }
        // The index stays: a link-local address means nothing without it.
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Arrived::V6(info)),
        _ => None,
    });
    Ok((message.bytes, From { source, arrived: arrived.unwrap_or(Arrived::Unknown) }))
}

fn send(socket: RawFd, bytes: &[u8], to: &From) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let control = match &to.arrived {
        Arrived::V4(info) => Some(ControlMessage::Ipv4PacketInfo(info)),
        Arrived::V6(info) => Some(ControlMessage::Ipv6PacketInfo(info)),
        Arrived::Unknown => None,
    };
    sendmsg(socket, &parts, control.as_slice(), MsgFlags::MSG_DONTWAIT, Some(&to.source))?;
    Ok(())
}

fn address(source: &SockaddrStorage) -> Option<IpAddr> {
    match source.family()? {
        nix::sys::socket::AddressFamily::Inet => source.as_sockaddr_in().map(|v4| v4.ip().into()),
        nix::sys::socket::AddressFamily::Inet6 => source.as_sockaddr_in6().map(|v6| v6.ip().into()),
        _ => None,
    }
}
