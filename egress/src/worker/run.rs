//! The worker, from its first order to its end. It ends when whoever started it does.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::authz::Authz;
use super::confine::{NotConfined, confine};
use super::control::{Bind, Busy, Notice, Order, Settings};
use super::dns::{self, BadUpstream, Dns, HeldName, Names, ResolveError, Upstream};
use super::gate::{self, Gate, Unresolved};
use super::{Attempt, Attempts, Binding, Bindings, Effective, metrics};
use crate::policy::{CompiledPolicy, Fqdn};
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
    /// Its resolvers.
    #[error(transparent)]
    Upstream(#[from] BadUpstream),
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
    thread::spawn(move || {
        while let Ok(Some(order)) = next(&mut orders) {
            if pass.blocking_send(order).is_err() {
                return;
            }
        }
    });
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(settings, sockets, ordered, notices))
}

/// Carries out orders, beside what they are about, until there are no more.
async fn serve(
    settings: Settings,
    sockets: Sockets,
    mut orders: mpsc::Receiver<Order>,
    notices: SyncSender<Told>,
) -> Result<(), WorkerFailed> {
    let attempts: Arc<dyn Attempts> = Arc::new(Teller { notices: notices.clone() });
    let bindings = Arc::new(Bindings::default());
    let names = Names::new(&settings.dns, {
        let notices = notices.clone();
        move |change| {
            // No room: after a restart the name has another address. `Full` cannot be waited for under the names' lock.
            let _ = notices.try_send(Told::Notice(Notice::Name(change)));
        }
    });
    let dns = Arc::new(Dns::new(bindings.clone(), names.clone(), attempts.clone(), settings.dns.clone()));
    let authz = Authz::new();
    if let Err(error) = authz.set_up(settings.authz) {
        // Names and addresses go on; whatever needs a decision is refused.
        tracing::error!(%error, "there is no decision point");
    }
    let gate_metrics = gate::Metrics::default();
    let gate = Arc::new(Gate {
        settings: settings.gate,
        bindings: bindings.clone(),
        names: HeldNames(names.clone()),
        resolve: Upstreams(Upstream::new(&settings.dns.upstream)?),
        authorizer: authz.clone(),
        attempts,
        open: gate::Open::new(&gate_metrics),
        metrics: gate_metrics,
        original_destination: Box::new(gate::original_destination),
    });
    let mut sandboxes =
        Sandboxes { bindings, dns: dns.clone(), names: names.clone(), authz, gate: gate.clone(), all: HashMap::new() };
    let registry = metrics::registry(&gate.metrics, dns.clone(), names);

    let mut serving = JoinSet::new();
    serving.spawn(dns::serve(dns, dns::Sockets { udp: sockets.dns_udp, tcp: sockets.dns_tcp }));
    for listener in sockets.gate {
        serving.spawn(gate.clone().serve(listener));
    }
    let _ = notices.send(Told::Notice(Notice::Ready)); // nobody to tell: the next order will not come either
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return Ok(()) };
                let notice = sandboxes.carry_out(order, &registry);
                if notices.send(Told::Notice(notice)).is_err() {
                    return Ok(());
                }
            }
            Some(ended) = serving.join_next() => return Err(ended.map_err(io::Error::other)?.err().unwrap_or_else(|| io::Error::other("a listener ended")).into()),
        }
    }
}

/// The sandboxes, as they were ordered to be known.
struct Sandboxes {
    bindings: Arc<Bindings>,
    dns: Arc<Dns>,
    names: Arc<Names>,
    authz: Authz,
    gate: Arc<TheGate>,
    all: HashMap<SandboxKey, Known>,
}

type TheGate = Gate<HeldNames, Upstreams, Authz>;

struct Known {
    binding: Arc<Binding>,
    addresses: Vec<IpAddr>,
    effective: watch::Sender<Option<Arc<Effective>>>,
}

impl Sandboxes {
    fn carry_out(&mut self, order: Order, registry: &Registry) -> Notice {
        match order {
            Order::Begin(_) => Notice::Acknowledged { number: 0, error: Some("it has begun".into()) },
            Order::Names { number, given } => {
                self.names.restore(&given);
                Notice::Acknowledged { number, error: None }
            }
            Order::Bind(bind) => {
                let number = bind.number;
                self.bind(bind);
                Notice::Acknowledged { number, error: None }
            }
            Order::Unbind { number, sandbox } => {
                self.unbind(&sandbox);
                Notice::Acknowledged { number, error: None }
            }
            Order::Revoke { number, sandbox } => {
                self.authz.revoke(&sandbox);
                if let Some(known) = self.all.get(&sandbox) {
                    known.effective.send_modify(|_| ()); // whoever carries a flow asks again
                }
                Notice::Acknowledged { number, error: None }
            }
            Order::Authz { number, setup } => {
                let error = self.authz.set_up(*setup).err().map(|error| error.to_string());
                Notice::Acknowledged { number, error }
            }
            Order::Report { number } => {
                let mut metrics = String::new();
                let _ = encode(&mut metrics, registry); // writing into a string does not fail
                Notice::Report { number, metrics, busy: self.busy() }
            }
        }
    }

    /// The policy first: where it is another one, flows that it does not allow end at once.
    fn bind(&mut self, bind: Bind) {
        let Bind { sandbox, agent, addresses, policy, generation, .. } = bind;
        let policy = CompiledPolicy::new(policy.policy);
        let effective = Some(Arc::new(Effective { policy, generation }));
        let same = |known: &&Known| known.addresses == addresses && known.binding.agent == agent;
        if let Some(known) = self.all.get(&sandbox).filter(same) {
            known.effective.send_replace(effective);
            return;
        }
        if self.all.contains_key(&sandbox) {
            self.unbind(&sandbox);
        }
        let (effective, receiver) = watch::channel(effective);
        let binding = Arc::new(Binding { sandbox: sandbox.clone(), agent, effective: receiver });
        self.bindings.put(&addresses, &binding);
        self.all.insert(sandbox, Known { binding, addresses, effective });
    }

    fn unbind(&mut self, sandbox: &SandboxKey) {
        if let Some(known) = self.all.remove(sandbox) {
            known.effective.send_replace(None);
        }
        self.bindings.remove(sandbox);
        self.dns.forget(sandbox);
        self.authz.revoke(sandbox);
    }

    fn busy(&self) -> Vec<Busy> {
        let mut busy: HashMap<SandboxKey, Busy> = HashMap::new();
        for (sandbox, flows) in self.gate.open.flows() {
            busy.entry(sandbox.clone()).or_insert_with(|| Busy::none(&sandbox)).flows = flows as u64;
        }
        for pending in self.authz.pending() {
            let host = format!("{}:{}", pending.destination, pending.port);
            busy.entry(pending.sandbox.clone()).or_insert_with(|| Busy::none(&pending.sandbox)).pending.push(host);
        }
        busy.into_values().collect()
    }
}

/// The DNS's names, for the gate.
struct HeldNames(Arc<Names>);

impl gate::Names for HeldNames {
    type Held = HeldName;

    fn hold(&self, sandbox: &SandboxKey, address: Ipv4Addr) -> Option<HeldName> {
        self.0.hold(sandbox, address)
    }
}

/// The resolvers that the node trusts, for the gate.
struct Upstreams(Upstream);

impl gate::Resolve for Upstreams {
    async fn resolve(&self, name: &Fqdn, port: u16, effective: &Effective) -> Result<Vec<SocketAddr>, Unresolved> {
        match self.0.resolve(name, port, &effective.policy).await {
            Ok(resolved) => Ok(resolved.addresses.into_iter().map(|address| (address, port).into()).collect()),
            Err(forbidden @ ResolveError::AllForbidden { .. }) => Err(Unresolved::Forbidden(forbidden.to_string())),
            Err(error) => Err(Unresolved::Failed(error.to_string())),
        }
    }
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
}

/// Attempts that found no room since it was last told.
static LOST: AtomicU64 = AtomicU64::new(0);

enum Told {
    Attempt(Attempt),
    Notice(Notice),
}

impl Attempts for Teller {
    fn tell(&self, attempt: Attempt) {
        if let Err(TrySendError::Full(_)) = self.notices.try_send(Told::Attempt(attempt)) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what is to be told, attempts together, until there is nobody to tell.
fn tell(mut control: UnixStream, told: &Receiver<Told>) {
    let mut waiting = None;
    while let Some(first) = waiting.take().or_else(|| told.recv().ok()) {
        let notice = match first {
            Told::Notice(notice) => notice,
            Told::Attempt(attempt) => {
                let mut attempts = vec![attempt];
                while attempts.len() < TOGETHER {
                    match told.try_recv() {
                        Ok(Told::Attempt(attempt)) => attempts.push(attempt),
                        Ok(other) => {
                            waiting = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                Notice::Attempts { attempts, lost: LOST.swap(0, Ordering::Relaxed) }
            }
        };
        let line = serde_json::to_vec(&notice).map(|mut line| {
            line.push(b'\n');
            line
        });
        if line.map_err(io::Error::other).and_then(|line| control.write_all(&line)).is_err() {
            return;
        }
    }
}
