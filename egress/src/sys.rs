//! Descriptors that come over a socket or from a service manager: all unsafe code of this crate.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The socket that a service manager has opened for us (sd_listen_fds(3)), if it has: the first of them.
pub fn activated() -> Option<UnixListener> {
    const FIRST: i32 = 3;
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|fds| fds > 0);
    // SAFETY: the service manager has opened it for this process, which it names, and this is called once, before any other
    // descriptor is made.
    ours.then(|| unsafe { UnixListener::from_raw_fd(FIRST) })
}

/// The most descriptors that come at once.
pub const MOST: usize = 16;

/// Reads some bytes and the descriptors that come with them.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut space = nix::cmsg_space!([i32; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            received.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(received)
}
