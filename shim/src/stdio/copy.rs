//! Bytes from one descriptor to another, where the shim must stand in between (a terminal, stdin).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::sys;

/// Where bytes go.
#[derive(Clone)]
pub enum Sink {
    /// A FIFO, pipe or terminal.
    Stream(Arc<AsyncFd<OwnedFd>>),
    /// A regular file, which is always ready and cannot be polled.
    File(Arc<OwnedFd>),
}

impl Sink {
    /// A sink that never makes the shim's one thread wait.
    pub fn stream(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd, true)?;
        Ok(Self::Stream(Arc::new(sys::watch(fd)?)))
    }

    async fn write_all(&self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            let written = match self {
                Self::File(file) => unistd::write(file.as_fd(), rest)?,
                Self::Stream(stream) => {
                    let mut guard = stream.writable().await?;
                    match guard.try_io(|fd| Ok(unistd::write(fd.get_ref().as_fd(), rest)?)) {
                        Ok(written) => written?,
                        Err(_would_block) => continue,
                    }
                }
            };
            rest = &rest[written..];
        }
        Ok(())
    }
}

/// Whether reads and writes of this descriptor wait. gVisor shows the flag to the process inside, so what a workload
/// gets must wait, as workloads expect.
pub fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Copies until the source ends. Where `ended` is given, an empty source after it was notified is the end too.
pub async fn copy(from: &AsyncFd<OwnedFd>, to: &Sink, ended: Option<&Notify>) -> io::Result<()> {
    let mut buffer = vec![0; 8 << 10];
    let mut over = false;
    loop {
        let n = if over {
            match unistd::read(from.get_ref().as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => n,
            }
        } else {
            let end = async {
                match ended {
                    Some(ended) => ended.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = from.readable() => {
                    match ready?.try_io(|fd| Ok(unistd::read(fd.get_ref().as_fd(), &mut buffer)?)) {
                        Ok(Ok(0)) => return Ok(()),
                        Ok(read) => read?,
                        Err(_would_block) => continue,
                    }
                }
                () = end => {
                    over = true;
                    continue;
                }
            }
        };
        to.write_all(&buffer[..n]).await?;
    }
}
