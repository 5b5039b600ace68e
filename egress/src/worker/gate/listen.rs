//! Takes connections, and learns whose each is and where it was to go. One that must not be is reset here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use prometheus_client::metrics::gauge::Gauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::flow::Incoming;
use super::refusal::Refusal;
use super::{Authorizer, Gate, Goal, Metrics, Names, Resolve};
use crate::policy::Protocol;
use crate::protocol::SandboxKey;
use crate::worker::{Attempt, Outcome};

/// How long accepting rests when there are no descriptors or no memory left: flows that end give some back.
const SHORT_OF: Duration = Duration::from_millis(50);

/// How it is found out where a connection was to go; an error means that it was brought here by nobody.
pub type OriginalDestination = Box<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// By SO_ORIGINAL_DST, which netfilter answers for connections that its nat has brought here.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port()); // a listener on [::] takes IPv4 too
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    let Some(original) = original.as_socket() else { return Err(io::ErrorKind::InvalidData.into()) };
    // Meant for the gate's own port, which is no way into it: dialled again, it would come back here for ever.
    match (original.ip(), original.port()) == (local.ip(), local.port()) {
        true => Err(io::ErrorKind::AddrNotAvailable.into()),
        false => Ok(original),
    }
}

/// Whether an address stands for a name: 198.18.0.0/15 (RFC 2544).
fn is_synthetic(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 18 | 19, ..])
}

/// Ends a connection so that its peer's next call fails, instead of waiting.
pub fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger(); // at worst it ends in an orderly way
}

/// Connections that are open, by sandbox.
#[derive(Debug)]
pub struct Open {
    shown: Gauge,
    all: Mutex<(usize, HashMap<SandboxKey, usize>)>,
}

/// One of them.
#[derive(Debug)]
pub struct Place {
    open: Arc<Open>,
    sandbox: SandboxKey,
}

impl Open {
    /// None yet; `shown` is their number.
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self { shown: metrics.open.clone(), all: Mutex::default() })
    }

    /// How many each sandbox has.
    pub fn flows(&self) -> Vec<(SandboxKey, usize)> {
        self.lock().1.iter().map(|(sandbox, flows)| (sandbox.clone(), *flows)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<SandboxKey, usize>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, where there is one.
    fn take(self: &Arc<Self>, sandbox: &SandboxKey, per_sandbox: usize, total: usize) -> Option<Place> {
        let mut open = self.lock();
        let of_sandbox = open.1.get(sandbox).copied().unwrap_or(0);
        if open.0 >= total || of_sandbox >= per_sandbox {
            return None;
        }
        open.0 += 1;
        self.shown.inc();
        open.1.insert(sandbox.clone(), of_sandbox + 1);
        Some(Place { open: self.clone(), sandbox: sandbox.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.0 -= 1;
        self.open.shown.dec();
        if let Entry::Occupied(mut of_sandbox) = open.1.entry(self.sandbox.clone()) {
            *of_sandbox.get_mut() -= 1;
            if *of_sandbox.get() == 0 {
                of_sandbox.remove();
            }
        }
    }
}

impl<N: Names, R: Resolve, A: Authorizer + 'static> Gate<N, R, A> {
    /// Carries what comes to a listener, which has been made and handed over. Ends only if the listener is unusable; when it is
    /// dropped, all flows end with it.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let mut flows = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, peer)) => {
                        if let Some(incoming) = self.identify(client, peer) {
                            flows.spawn(self.clone().carry(incoming));
                        }
                    }
                    Err(error) if is_shortage(&error) => {
                        tracing::warn!(%error, "the gate takes no connections for a moment");
                        self.metrics.accept_errors.inc();
                        tokio::time::sleep(SHORT_OF).await;
                    }
                    Err(error) if is_connections(&error) => tracing::debug!(%error, "gone before it was taken"),
                    Err(error) => return Err(error),
                },
                Some(_) = flows.join_next(), if !flows.is_empty() => {}
            }
        }
    }

    /// Whose it is, and where it goes; resets it where that is not known, or where it is one too many.
    fn identify(&self, client: TcpStream, peer: SocketAddr) -> Option<Incoming<N::Held>> {
        let accepted = Instant::now();
        let Some(binding) = self.bindings.of(peer.ip().to_canonical()) else {
            tracing::debug!(%peer, "{}", Refusal::NoSandbox);
            self.metrics.count(Refusal::NoSandbox.code());
            reset(client);
            return None;
        };
        let refuse = |client, destination: String, port, refusal: Refusal| {
            self.metrics.count(refusal.code());
            self.attempts.tell(Attempt {
                sandbox: binding.sandbox.clone(),
                destination,
                port,
                protocol: Protocol::Tcp,
                outcome: Outcome::Denied(refusal.to_string()),
                rule: None,
                generation: binding.effective.borrow().as_ref().map_or(0, |effective| effective.generation),
            });
            reset(client);
            None
        };
        let Ok(original) = (self.original_destination)(&client) else {
            return refuse(client, "the gate itself".to_owned(), 0, Refusal::NoDestination);
        };
        let port = original.port();
        let (goal, held) = match original.ip().to_canonical() {
            IpAddr::V4(address) if is_synthetic(address) => match self.names.hold(&binding.sandbox, address) {
                Some(held) => (Goal::Name(held.as_ref().clone()), Some(held)),
                None => return refuse(client, address.to_string(), port, Refusal::NoName),
            },
            address => (Goal::Address(address), None),
        };
        let Some(place) = self.open.take(&binding.sandbox, self.settings.per_sandbox, self.settings.total) else {
            return refuse(client, goal.to_string(), port, Refusal::TooMany);
        };
        Some(Incoming { client, binding, goal, port, accepted, _held: held, _place: place })
    }

    /// What every carried socket has: no delay, and a question now and then whether its peer is still there.
    pub(super) fn tune(&self, stream: &TcpStream) {
        let asks = TcpKeepalive::new().with_time(self.settings.keep_alive).with_interval(Duration::from_secs(10));
        let tuned = stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_keepalive(&asks));
        if let Err(error) = tuned {
            tracing::debug!(%error, "a socket was not tuned"); // it is gone, which its reader will see
        }
    }
}

/// Whether an accept failed for want of something that comes back.
fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// Whether an accept failed for what had happened to that connection alone (accept(2)).
fn is_connections(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    !matches!(errno, None | Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EFAULT | Errno::EOPNOTSUPP))
}

#[cfg(test)]
mod tests;
