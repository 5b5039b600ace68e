//! The addresses of a name that the gate is about to connect to. Asks the configured resolvers through hickory-resolver, which
//! follows aliases: what counts is the name that was asked for, wherever it leads, and whether each address may be dialled.
//!
//! Everything that hickory would read from files (resolv.conf, hosts, root certificates) is given to it or switched off: the
//! worker has no filesystem.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::settings::{Server, Transport, UpstreamSettings};
use crate::policy::{CompiledPolicy, Fqdn, Reason};

/// How long addresses of one family are waited for once those of the other are there (RFC 8305 §3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Tries, each of every server.
const ATTEMPTS: usize = 2;
/// The most addresses that are handed on.
const MOST: usize = 16;

/// The resolvers that we ask.
pub struct Upstream {
    resolver: TokioResolver,
    deadline: Duration,
    room: Semaphore,
}

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where it may be dialled; one at least. IPv6 and IPv4 alternate, in the order that the resolver gave.
    pub addresses: Vec<IpAddr>,
    /// Until when that is true.
    pub valid_until: Instant,
}

/// What is wrong with the table `[dns.upstream]`.
#[derive(Debug, thiserror::Error)]
pub enum BadUpstream {
    /// Nobody to ask.
    #[error("dns.upstream.servers is empty: name a resolver, such as {{ address = \"192.0.2.53:53\" }}")]
    NoServers,
    /// Not the name of a TLS server.
    #[error("dns.upstream.servers: {0:?} is no name that a certificate could have")]
    ServerName(String),
    /// No certificate that could vouch for a TLS server.
    #[error("dns.upstream.roots_pem holds no certificate, and a server speaks TLS: {0}")]
    Roots(String),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// hickory refuses it.
    #[error("the resolver cannot be set up")]
    Resolver(#[source] NetError),
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It does not exist.
    #[error("there is no such name")]
    NoSuchName,
    /// It exists, without addresses.
    #[error("the name has no addresses")]
    NoAddress,
    /// It has addresses, and none may be dialled.
    #[error("none of the name's addresses may be dialled: {first} is {reason}")]
    AllForbidden {
        /// The first of them.
        first: IpAddr,
        /// What is wrong with it.
        reason: Reason,
    },
    /// No resolver answered in time.
    #[error("no resolver answered in time")]
    Timeout,
    /// A resolver answered that it cannot (SERVFAIL, REFUSED).
    #[error("the resolver answered {0}")]
    Answered(ResponseCode),
    /// The resolvers cannot be reached, or what they send cannot be read.
    #[error("the resolvers cannot be asked")]
    Unreachable(#[source] NetError),
    /// hickory does not take the name.
    #[error("the name cannot be asked for")]
    Name(#[from] ProtoError),
}

impl Upstream {
    /// Reads the table; asks nobody yet.
    pub fn new(settings: &UpstreamSettings) -> Result<Self, BadUpstream> {
        if settings.servers.is_empty() {
            return Err(BadUpstream::NoServers);
        }
        let servers = settings.servers.iter().map(server).collect::<Result<_, _>>()?;
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder =
            Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_tls_config(tls(settings)?);
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.num_concurrent_reqs = 1;
        options.case_randomization = true;
        options.attempts = ATTEMPTS;
        // Over one connection to a server; both families of each name.
        options.max_active_requests = settings.in_flight.get().saturating_mul(2);
        options.timeout = Duration::from_millis(u64::from(settings.try_millis.get()));
        options.cache_size = u64::from(settings.cached);
        let most = Some(Duration::from_secs(u64::from(settings.cached_seconds)));
        (options.positive_max_ttl, options.negative_max_ttl) = (most, most);
        Ok(Self {
            resolver: builder.build().map_err(BadUpstream::Resolver)?,
            deadline: Duration::from_millis(u64::from(settings.deadline_millis.get())),
            room: Semaphore::new(settings.in_flight.get()),
        })
    }

    /// The addresses of a name that may be dialled at a port under a policy. Whether the name itself is allowed is asked before.
    pub async fn resolve(&self, name: &Fqdn, port: u16, policy: &CompiledPolicy) -> Result<Resolved, ResolveError> {
        let asked = Name::from_ascii(format!("{name}."))?;
        let (ipv4, ipv6) = timeout(self.deadline, self.both(asked)).await.map_err(|_| ResolveError::Timeout)?;
        let found = [&ipv6, &ipv4].map(|lookup| lookup.as_ref().map(addresses).unwrap_or_default());
        let Some(valid_until) = [&ipv4, &ipv6].into_iter().flatten().map(Lookup::valid_until).min() else {
            return Err(worst(ipv4.err(), ipv6.err()));
        };
        let (mut addresses, mut forbidden) = (Vec::new(), None);
        for address in alternating(found) {
            match policy.may_dial(address, port) {
                Ok(()) if addresses.len() < MOST => addresses.push(address),
                Ok(()) => {}
                Err(reason) => forbidden = forbidden.or(Some((address, reason))),
            }
        }
        match (addresses.is_empty(), forbidden) {
            (false, _) => Ok(Resolved { addresses, valid_until }),
            (true, Some((first, reason))) => Err(ResolveError::AllForbidden { first, reason }),
            (true, None) => Err(ResolveError::NoAddress), // an alias that leads to none
        }
    }

    /// Asks for both families at once; one that has addresses does not wait long for the other.
    async fn both(&self, name: Name) -> (Result<Lookup, NetError>, Result<Lookup, NetError>) {
        let Ok(_room) = self.room.acquire().await else { return (Err(NetError::Busy), Err(NetError::Busy)) };
        let ipv4 = self.resolver.lookup(name.clone(), RecordType::A);
        let ipv6 = self.resolver.lookup(name, RecordType::AAAA);
        tokio::pin!(ipv4, ipv6);
        tokio::select! {
            first = &mut ipv4 => {
                let second = after(&first, ipv6).await;
                (first, second)
            }
            first = &mut ipv6 => {
                let second = after(&first, ipv4).await;
                (second, first)
            }
        }
    }
}

/// The second of two answers: without a limit of its own where the first brought nothing.
async fn after(
    first: &Result<Lookup, NetError>,
    second: impl Future<Output = Result<Lookup, NetError>>,
) -> Result<Lookup, NetError> {
    match first {
        Ok(lookup) if !addresses(lookup).is_empty() => {
            timeout(RESOLUTION_DELAY, second).await.unwrap_or(Err(NetError::Timeout))
        }
        _ => second.await,
    }
}

fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None, // the aliases that lead there
    };
    lookup.answers().iter().filter_map(|record| address(&record.data)).collect()
}

fn alternating([ipv6, ipv4]: [Vec<IpAddr>; 2]) -> Vec<IpAddr> {
    let (mut ipv6, mut ipv4) = (ipv6.into_iter(), ipv4.into_iter());
    std::iter::from_fn(|| Some([ipv6.next(), ipv4.next()]).filter(|pair| pair.iter().any(Option::is_some)))
        .flatten()
        .flatten()
        .collect()
}

/// What two answers without addresses mean together: what a resolver said, before that it said nothing.
fn worst(ipv4: Option<NetError>, ipv6: Option<NetError>) -> ResolveError {
    let mut errors: Vec<_> = [ipv4, ipv6].into_iter().flatten().map(meaning).collect();
    let rank = |error: &ResolveError| match error {
        ResolveError::NoSuchName => 0,
        ResolveError::Answered(_) => 1,
        ResolveError::Timeout => 2,
        ResolveError::NoAddress => 4,
        _ => 3,
    };
    errors.sort_by_key(rank);
    errors.into_iter().next().unwrap_or(ResolveError::NoAddress)
}

fn meaning(error: NetError) -> ResolveError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => ResolveError::NoSuchName,
            ResponseCode::NoError => ResolveError::NoAddress,
            other => ResolveError::Answered(other),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => ResolveError::Answered(code),
        NetError::Timeout => ResolveError::Timeout,
        other => ResolveError::Unreachable(other),
    }
}

fn server(server: &Server) -> Result<NameServerConfig, BadUpstream> {
    let mut connections = match &server.transport {
        Transport::Udp => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
        Transport::Tcp => vec![ConnectionConfig::tcp()],
        Transport::Tls(name) => {
            ServerName::try_from(name.as_str()).map_err(|_| BadUpstream::ServerName(name.clone()))?;
            vec![ConnectionConfig::tls(name.as_str().into())]
        }
    };
    connections.iter_mut().for_each(|connection| connection.port = server.address.port());
    Ok(NameServerConfig::new(server.address.ip(), true, connections))
}

fn tls(settings: &UpstreamSettings) -> Result<ClientConfig, BadUpstream> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(settings.roots_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| BadUpstream::Roots(e.to_string()))?;
        roots.add(certificate).map_err(|e| BadUpstream::Roots(e.to_string()))?;
    }
    if roots.is_empty() && settings.servers.iter().any(|server| matches!(server.transport, Transport::Tls(_))) {
        return Err(BadUpstream::Roots("give the authority's certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
