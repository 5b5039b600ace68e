//! The console socket of the OCI runtimes: runsc makes the terminal and sends us its primary.
//! Source: runc docs/terminals.md, "Detached".

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::sys;

/// Listens for one terminal.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `dir`, where one create at a time has its terminal made.
    pub fn listen(dir: &Path) -> io::Result<Self> {
        let path = dir.join("tty.sock");
        let _ = std::fs::remove_file(&path); // of a create that was killed
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// For `--console-socket`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The primary that runsc has sent. Call it after runsc has ended: its message waits then, or will never come.
    pub fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let (mut name, mut space) = ([0; 4096], nix::cmsg_space!([std::os::fd::RawFd; 1]));
        let mut name = [IoSliceMut::new(&mut name)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut name, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let received = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        received.map(sys::received_fd).ok_or_else(|| io::Error::other("runsc sent no terminal"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
