//! A terminal: the sandbox has the replica, the shim copies bytes between the primary and the client. A container's pair
//! is made by runsc, which makes it the sandbox's controlling terminal (so that ^C is a signal); an exec's by the shim.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::pty::openpty;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use super::copy::{Sink, copy, set_nonblocking};
use crate::sys;

/// A process's terminal, our side.
pub struct Console {
    primary: Arc<AsyncFd<OwnedFd>>,
    /// Keeps the terminal alive until the process has ended: a primary without replicas reads EIO.
    replica: Option<OwnedFd>,
    ended: Arc<Notify>,
    output: Option<JoinHandle<()>>,
}

impl Console {
    /// Makes the pair and starts copying its output; the second value is what the sandbox gets three times.
    pub fn open(output: Option<Sink>) -> io::Result<(Self, OwnedFd)> {
        let pair = openpty(None, None)?;
        let mut console = Self::over(pair.master, output)?;
        console.replica = Some(pair.slave.try_clone()?);
        Ok((console, pair.slave))
    }

    /// Copies the output of a terminal whose replica somebody else holds.
    pub fn over(primary: OwnedFd, output: Option<Sink>) -> io::Result<Self> {
        set_nonblocking(&primary, true)?;
        let primary = Arc::new(sys::watch(primary)?);
        let ended = Arc::new(Notify::new());
        let output = output.map(|to| {
            let (from, ended) = (primary.clone(), ended.clone());
            tokio::spawn(async move {
                if let Err(error) = copy(&from, &to, Some(&ended)).await {
                    tracing::debug!(%error, "terminal output ended");
                }
            })
        });
        Ok(Self { primary, replica: None, ended, output })
    }

    /// Where the client's input goes. With `signals`, keys that mean one are told there: the terminal of an exec is no
    /// process's controlling terminal on the host, so the kernel has nobody to signal.
    pub fn input(&self, signals: Option<UnboundedSender<Signal>>) -> Sink {
        match signals {
            Some(signals) => Sink::Terminal(self.primary.clone(), signals),
            None => Sink::Stream(self.primary.clone()),
        }
    }

    /// ResizePty.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        sys::set_window_size(self.primary.get_ref().as_fd(), columns, rows)
    }

    /// The process has ended: copies what is still in the terminal.
    pub async fn finish(mut self) {
        self.replica = None;
        self.ended.notify_one();
        if let Some(output) = self.output.take() {
            let _ = output.await; // it ends: the terminal has no writer any more
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(output) = self.output.take() {
            output.abort();
        }
    }
}
