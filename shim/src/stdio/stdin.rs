//! A process's input: from the client's FIFO into a pipe or terminal, from the moment the process runs.
//!
//! Why not hand the FIFO over: a client may finish its input as soon as a reader appears, and before Create has
//! answered it has no task yet whose stdin it could close (`echo x | ctr run … cat` would wait for ever). So the FIFO
//! gets its reader only after Start, and until then the client waits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::copy::{Sink, copy};
use super::fifo;
use crate::sys;

/// How long a client that closed its input before the process ran may take to come in with it.
const LATE_CLIENT: Duration = Duration::from_secs(1);

/// The input of one process.
pub struct Stdin {
    state: State,
    /// CloseIO came, maybe before the process ran.
    closed: bool,
    /// Dropped when the copying ends; its other end is for whoever waits for that.
    over: (Option<oneshot::Sender<()>>, Option<oneshot::Receiver<()>>),
}

enum State {
    Waiting {
        fifo: PathBuf,
        to: Sink,
    },
    /// `ours` keeps the FIFO from ending when containerd goes away for a while.
    Copying {
        ours: Option<OwnedFd>,
        task: JoinHandle<()>,
    },
    Over,
}

impl Stdin {
    /// Nothing is opened yet.
    pub fn new(fifo: &str, to: Sink) -> Self {
        let (copying, over) = oneshot::channel();
        Self { state: State::Waiting { fifo: fifo.into(), to }, closed: false, over: (Some(copying), Some(over)) }
    }

    /// What resolves, with an error, when all has been copied; once.
    pub fn over(&mut self) -> Option<oneshot::Receiver<()>> {
        self.over.1.take()
    }

    /// The process runs: its input flows from here on.
    pub fn begin(&mut self) -> io::Result<()> {
        let State::Waiting { fifo, to } = std::mem::replace(&mut self.state, State::Over) else { return Ok(()) };
        let (reader, ours) = match self.closed {
            false => {
                let fifo::Ends { reader, writer, .. } = fifo::open(Path::new(&fifo))?;
                (reader, Some(writer))
            }
            // With no writer of ours the FIFO reports nothing until the client, which our reader lets in, is done.
            true => (fifo::open_reader(Path::new(&fifo))?, None),
        };
        let (from, closed, copying) = (sys::watch(reader)?, self.closed, self.over.0.take());
        let task = tokio::spawn(async move {
            let _copying = copying;
            let gone = closed && tokio::time::timeout(LATE_CLIENT, from.readable()).await.is_err();
            if !gone && let Err(error) = copy(&from, &to, None).await {
                tracing::debug!(%error, "input ended");
            }
            drop(to); // the process reads the end of its input, and only then is it over
        });
        self.state = State::Copying { ours, task };
        Ok(())
    }

    /// CloseIO: the input ends when the client has closed its own end.
    pub fn close(&mut self) {
        self.closed = true;
        if let State::Copying { ours, .. } = &mut self.state {
            *ours = None;
        }
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let State::Copying { task, .. } = &self.state {
            task.abort();
        }
    }
}
