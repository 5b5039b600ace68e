//! One socket for every port of a network namespace's loopback: packets to any of them are handed to it (`rules`), and what it
//! accepts has the address that was connected to. Sockets stay in the namespace in which they are made, so that whoever makes
//! them need not.

use std::fs::File;
use std::io;
use std::net::{SocketAddrV4, TcpListener as StdListener};
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::{BindToDevice, IpTransparent};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket};
use tokio::net::TcpListener;

use super::rules;
use crate::interfaces;

/// Connections that wait to be accepted.
const WAITING: i32 = 16;

/// In the network namespace of a process, which must not be ours.
pub fn open(pid: i32) -> io::Result<TcpListener> {
    if interfaces::are_ours(pid) {
        return Err(io::Error::other("its network is the host's, or it is gone"));
    }
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    // On a thread of its own: one that has moved into another network namespace is of no use for anything else.
    let made = std::thread::scope(|scope| {
        let make = move || -> io::Result<StdListener> {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            let listener = transparent()?;
            rules::install(listener.local_addr()?.port())?;
            Ok(listener)
        };
        std::thread::Builder::new()
            .name("port-forward".into())
            .spawn_scoped(scope, make)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })?;
    TcpListener::from_std(made)
}

/// It may accept what was sent to other ports than its own, which is whichever is free.
fn transparent() -> io::Result<StdListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, IpTransparent, &true)?;
    setsockopt(&socket, BindToDevice, &"lo".into())?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(rules::ADDRESS, 0)))?;
    listen(&socket, Backlog::new(WAITING)?)?;
    Ok(socket.into())
}
