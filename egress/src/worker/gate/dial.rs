//! From a permit to a connection, by the addresses that were found and validated here and no others.
//!
//! Source: RFC 8305 (happy eyeballs): families take turns, IPv6 first; the next address starts when the one before it fails or has
//! been tried for a while; the first to connect wins. Not here: resolving and validating (`Resolve`).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::admit::Permit;
use super::{Goal, Resolve};

/// Why a name has no addresses to dial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// It has some, and none of them may be dialled.
    #[error("{0}")]
    Forbidden(String),
    /// It could not be found out, or there is no such name.
    #[error("{0}")]
    Failed(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its addresses may not be dialled.
    #[error("{0}")]
    Forbidden(String),
    /// It has no addresses.
    #[error("the name was not resolved: {0}")]
    Unresolved(String),
    /// None of its addresses answered; the last one's error.
    #[error("no address of it could be connected to")]
    Unreachable(#[source] std::io::Error),
    /// It took too long.
    #[error("not connected in time")]
    TimedOut,
}

impl From<Unresolved> for DialError {
    fn from(unresolved: Unresolved) -> Self {
        match unresolved {
            Unresolved::Forbidden(why) => Self::Forbidden(why),
            Unresolved::Failed(why) => Self::Unresolved(why),
        }
    }
}

/// Connects to where the permit says. `all` bounds resolving and connecting together, `stagger` is how long the next address waits.
pub async fn dial<R: Resolve>(
    permit: &Permit,
    resolve: &R,
    all: Duration,
    stagger: Duration,
) -> Result<TcpStream, DialError> {
    let connected = async {
        let addresses = match permit.goal() {
            Goal::Name(name) => resolve.resolve(name, permit.port(), permit.effective()).await?,
            Goal::Address(address) => vec![SocketAddr::new(*address, permit.port())],
        };
        first_of(in_turns(addresses), stagger).await
    };
    timeout(all, connected).await.unwrap_or(Err(DialError::TimedOut))
}

/// IPv6 and IPv4 in turns, each in the order that it came in (RFC 8305 §4).
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let all = addresses.len();
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    (0..all).flat_map(|_| [v6.next(), v4.next()]).flatten().collect()
}

/// The first that connects; the others are given up.
async fn first_of(addresses: Vec<SocketAddr>, stagger: Duration) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.into_iter();
    let mut trying = JoinSet::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.next() {
            trying.spawn(TcpStream::connect(address));
        }
        let next = Instant::now() + stagger;
        tokio::select! {
            tried = trying.join_next() => match tried {
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(error))) => last = Some(error),
                Some(Err(gone)) => last = Some(gone.into()),
                None => {
                    let none = || std::io::Error::other("it has no address");
                    return Err(DialError::Unreachable(last.unwrap_or_else(none)));
                }
            },
            () = sleep_until(next), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests;
