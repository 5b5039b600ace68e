//! Serving on sockets that somebody else opened. Own loops rather than hickory-server's: a reply must come from the address
//! that was asked, and every message, connection and wait must be bounded for each sandbox.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Dns, tcp, udp};

/// Where questions arrive: one or more sockets, of either family.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Bound.
    pub udp: Vec<UdpSocket>,
    /// Bound and listening.
    pub tcp: Vec<TcpListener>,
}

/// Answers until a socket cannot be served at all (what goes wrong with one message or connection ends only that). Dropped, it
/// ends all that it began.
pub async fn serve(dns: Arc<Dns>, sockets: Sockets) -> io::Result<()> {
    let mut serving = JoinSet::new();
    for socket in sockets.udp {
        serving.spawn(udp::serve(dns.clone(), socket));
    }
    let connections = Arc::new(tcp::Connections::default());
    for listener in sockets.tcp {
        serving.spawn(tcp::serve(dns.clone(), listener, connections.clone()));
    }
    while let Some(ended) = serving.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}
