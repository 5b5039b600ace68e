//! The sockets that sandboxes' packets are brought to: ours, so that no one else can take the ports while no worker runs.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use super::config::Ports;

/// All of them, for IPv4 and IPv6.
pub struct Sockets {
    dns_udp: Vec<UdpSocket>,
    dns_tcp: Vec<TcpListener>,
    gate: Vec<TcpListener>,
}

impl Sockets {
    /// Binds them, for IPv4, and for IPv6 where the host has it.
    pub fn bind(ports: Ports) -> io::Result<Self> {
        let hosts = [(Ipv4Addr::UNSPECIFIED).into(), (Ipv6Addr::UNSPECIFIED).into()];
        let mut all = Self { dns_udp: Vec::new(), dns_tcp: Vec::new(), gate: Vec::new() };
        for host in hosts {
            let at = |port| SocketAddr::new(host, port);
            let bound = (|| Ok((udp(at(ports.dns))?, tcp(at(ports.dns))?, tcp(at(ports.gate))?)))();
            match bound {
                Ok((dns_udp, dns_tcp, gate)) => {
                    all.dns_udp.push(dns_udp);
                    all.dns_tcp.push(dns_tcp);
                    all.gate.push(gate);
                }
                Err(error) if host.is_ipv6() && is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// In the order in which the worker finds them: how many of each, then they themselves.
    pub fn fds(&self) -> ([u8; 3], Vec<RawFd>) {
        let counts = [self.dns_udp.len(), self.dns_tcp.len(), self.gate.len()].map(|n| n as u8);
        let udp = self.dns_udp.iter().map(AsRawFd::as_raw_fd);
        let tcp = self.dns_tcp.iter().chain(&self.gate).map(AsRawFd::as_raw_fd);
        (counts, udp.chain(tcp).collect())
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::DGRAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

fn tcp(at: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 4096;
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?; // connections of an earlier daemon may linger
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
