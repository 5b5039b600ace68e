//! The worker, from its first order to its end. It ends when whoever started it does.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{mpsc, watch};

use super::confine::{NotConfined, confine};
use super::control::{Bind, Busy, Notice, Order, Settings};
use super::{Attempt, Attempts, Binding, Bindings, Effective};
use crate::policy::{CompiledPolicy, Document};
use crate::protocol::SandboxKey;
use crate::sys;

/// Attempts and answers that wait to be written.
const NOTICES: usize = 4096;
/// Attempts that are told together.
const TOGETHER: usize = 256;
/// Threads that serve, at most.
const THREADS: usize = 4;

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFailed {
    /// Whoever started it did not say what it must.
    #[error("its orders: {0}")]
    Orders(String),
    /// Something of the kernel's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It has too much power to read what sandboxes send.
    #[error(transparent)]
    NotConfined(#[from] NotConfined),
}

/// Serves, with what comes over standard input.
pub fn run() -> Result<(), WorkerFailed> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut counts = [0; 3];
    let sockets = Sockets::from(sys::receive(&control, &mut counts)?, counts)?;
    let mut orders = BufReader::new(control.try_clone()?);
    let settings = match next(&mut orders)? {
        Some(Order::Begin(settings)) => *settings,
        other => return Err(WorkerFailed::Orders(format!("{other:?} came first"))),
    };
    confine(&settings.root, settings.uid, settings.gid)?;

    let (notices, told) = sync_channel(NOTICES);
    thread::spawn(move || tell(control, &told));
    let (pass, ordered) = mpsc::channel(NOTICES);
    thread::spawn(move || while let Ok(Some(order)) = next(&mut orders) {
        if pass.blocking_send(order).is_err() {
            return;
        }
    });
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(settings, sockets, ordered, notices))
}

fn next(orders: &mut impl BufRead) -> Result<Option<Order>, WorkerFailed> {
    let mut line = String::new();
    match orders.read_line(&mut line)? {
        0 => Ok(None),
        _ => serde_json::from_str(&line).map(Some).map_err(|e| WorkerFailed::Orders(e.to_string())),
    }
}

/// What it was given to listen on.
struct Sockets {
    dns_udp: Vec<UdpSocket>,
    dns_tcp: Vec<TcpListener>,
    gate: Vec<TcpListener>,
}

impl Sockets {
    fn from(fds: Vec<OwnedFd>, counts: [u8; 3]) -> Result<Self, WorkerFailed> {
        let [udp, tcp, gate] = counts.map(usize::from);
        if fds.len() != udp + tcp + gate || fds.is_empty() {
            return Err(WorkerFailed::Orders(format!("{} sockets came, and {counts:?} were said to", fds.len())));
        }
        let mut fds = fds.into_iter();
        Ok(Self {
            dns_udp: fds.by_ref().take(udp).map(UdpSocket::from).collect(),
            dns_tcp: fds.by_ref().take(tcp).map(TcpListener::from).collect(),
            gate: fds.map(TcpListener::from).collect(),
        })
    }
}

/// Attempts go the way of all notices; what finds no room is counted.
struct Teller {
    notices: SyncSender<Told>,
    lost: Arc<AtomicU64>,
}

enum Told {
    Attempt(Attempt),
    Notice(Notice),
}

impl Attempts for Teller {
    fn tell(&self, attempt: Attempt) {
        if let Err(TrySendError::Full(_)) = self.notices.try_send(Told::Attempt(attempt)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
