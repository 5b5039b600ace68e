//! A terminal: the shim makes the pair, the sandbox gets the replica, and bytes are copied between the FIFOs and ours.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::unistd;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Request, fifo};
use crate::sys;

/// A process's terminal, our side.
pub struct Console {
    primary: Arc<AsyncFd<OwnedFd>>,
    replica: Option<OwnedFd>,
    ended: Arc<Notify>,
    output: Option<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    _stdin_writer: Option<OwnedFd>,
    _stdout_reader: Option<OwnedFd>,
}

impl Console {
    /// Makes the pair and starts copying; the second value is what the sandbox gets three times.
    pub fn open(request: &Request) -> io::Result<(Self, OwnedFd)> {
        let pair = openpty(None, None)?;
        set_nonblocking(&pair.master)?;
        let primary = Arc::new(sys::watch(pair.master)?);
        let ended = Arc::new(Notify::new());
        let mut console = Self {
            primary: primary.clone(),
            // Ours keeps the terminal alive until the process has ended: a primary without replicas reads EIO.
            replica: Some(pair.slave.try_clone()?),
            ended: ended.clone(),
            output: None,
            input: None,
            _stdin_writer: None,
            _stdout_reader: None,
        };
        if !request.stdout.is_empty() {
            let ends = fifo::open(Path::new(&request.stdout))?;
            console._stdout_reader = Some(ends.reader);
            let out = sys::watch(ends.writer)?;
            let from = primary.clone();
            console.output = Some(tokio::task::spawn(async move {
                if let Err(error) = copy(&from, &out, Some(&ended)).await {
                    tracing::debug!(%error, "terminal output ended");
                }
            }));
        }
        if !request.stdin.is_empty() {
            let ends = fifo::open(Path::new(&request.stdin))?;
            console._stdin_writer = Some(ends.writer);
            let from = sys::watch(ends.reader)?;
            console.input = Some(tokio::task::spawn(async move {
                if let Err(error) = copy(&from, &primary, None).await {
                    tracing::debug!(%error, "terminal input ended");
                }
            }));
        }
        Ok((console, pair.slave))
    }

    /// ResizePty.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        sys::set_window_size(self.primary.get_ref().as_fd(), columns, rows)
    }

    /// The process has ended: copies what is still in the terminal, then lets the client see the end.
    pub async fn finish(&mut self) {
        self.replica = None;
        self.ended.notify_one();
        if let Some(input) = self.input.take() {
            input.abort();
        }
        if let Some(output) = self.output.take() {
            let _ = output.await; // it ends: the terminal has no writer any more
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        for task in [self.input.take(), self.output.take()].into_iter().flatten() {
            task.abort();
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
    Ok(())
}

/// Copies until the source ends. Where `ended` is given, an empty source after it was notified is the end too.
async fn copy(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>, ended: Option<&Notify>) -> io::Result<()> {
    let mut buffer = vec![0; 8 << 10];
    let mut over = false;
    loop {
        let n = if over {
            match unistd::read(from.get_ref().as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => n,
            }
        } else {
            tokio::select! {
                ready = from.readable() => match ready?.try_io(|fd| Ok(unistd::read(fd.get_ref().as_fd(), &mut buffer)?)) {
                    Ok(Ok(0)) => return Ok(()),
                    Ok(Ok(n)) => n,
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => continue,
                },
                () = async { match ended { Some(ended) => ended.notified().await, None => std::future::pending().await } } => {
                    over = true;
                    continue;
                }
            }
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let mut guard = to.writable().await?;
            match guard.try_io(|fd| Ok(unistd::write(fd.get_ref().as_fd(), rest)?)) {
                Ok(written) => rest = &rest[written?..],
                Err(_would_block) => continue,
            }
        }
    }
}
