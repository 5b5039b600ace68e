//! Questions by TCP (RFC 7766): messages with their length before them, answered in order. Connections are few, short and
//! never waited for: each next question must be whole within the idle time, however slowly its bytes drip in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::counters::Counters;
use super::question::LONGEST;
use super::{Dns, Reply};
use crate::policy::Protocol;
use crate::protocol::SandboxKey;
use crate::worker::Binding;

/// Between two failures to accept (no descriptors left), so that they do not fill the log or the processor.
const PAUSE: Duration = Duration::from_millis(100);

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    of: HashMap<SandboxKey, usize>,
}

/// One of them.
struct Connection {
    connections: Arc<Connections>,
    binding: Arc<Binding>,
}

/// Answers who connects, for ever.
pub(super) async fn serve(dns: Arc<Dns>, listener: TcpListener, connections: Arc<Connections>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut carried = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = carried.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(connection) = connections.open(&dns, peer.ip().to_canonical()) else {
            Counters::add(&dns.counters.turned_away);
            continue;
        };
        carried.spawn(carry(dns.clone(), stream, peer.ip(), connection));
    }
}

/// Answers the questions of a connection until it ends, idles or misbehaves.
async fn carry(dns: Arc<Dns>, mut stream: TcpStream, peer: IpAddr, connection: Connection) {
    let idle = Duration::from_secs(u64::from(dns.settings.tcp.idle_seconds.get()));
    let mut buffer = [0; LONGEST];
    let mut effective = connection.binding.effective.clone();
    while let Ok(Ok(length)) = timeout(idle, receive(&mut stream, &mut buffer)).await {
        // Detached: whoever sends from this address now is somebody else.
        if effective.borrow_and_update().is_none() {
            return;
        }
        let Reply::Send(reply) = dns.answer(peer, &buffer[..length], Protocol::Tcp) else { return };
        let Ok(Ok(())) = timeout(idle, send(&mut stream, &reply)).await else { return };
    }
}

async fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(stream.read_u16().await?);
    let message = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(message).await
}

async fn send(stream: &mut TcpStream, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), reply].concat()).await
}

impl Connections {
    /// Room for one more connection of the sandbox behind an address.
    fn open(self: &Arc<Self>, dns: &Dns, peer: IpAddr) -> Option<Connection> {
        let binding = dns.bindings.of(peer)?;
        let settings = &dns.settings.tcp;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of = open.of.get(&binding.sandbox).copied().unwrap_or(0);
        if open.all >= settings.connections.get() || of >= settings.connections_per_sandbox.get() {
            return None;
        }
        open.all += 1;
        open.of.insert(binding.sandbox.clone(), of + 1);
        Some(Connection { connections: self.clone(), binding })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        match open.of.get_mut(&self.binding.sandbox) {
            Some(of) if *of > 1 => *of -= 1,
            _ => {
                open.of.remove(&self.binding.sandbox);
            }
        }
    }
}
