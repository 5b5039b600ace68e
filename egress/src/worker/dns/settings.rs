//! What the operator decides about names: the table `[dns]` of egress.toml. Its keys are explained in docs/egress.md.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trust::rate::Rate;

use crate::policy::Fqdn;

/// The table `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSettings {
    /// How long a sandbox may keep an answer, in seconds.
    pub ttl_seconds: u32,
    /// How long a synthetic address keeps its name beyond that, in seconds, since it was last answered or connected to. For
    /// clients that keep addresses longer than they may.
    pub grace_seconds: u32,
    /// How long nobody gets an address that lost its name, in seconds.
    pub rest_seconds: u32,
    /// How a denied name is answered.
    pub denied: DeniedAs,
    /// The domains of the sandboxes' search lists (such as `cluster.local`): what is denied below one of them is answered
    /// NXDOMAIN, so that the resolver goes on with its list.
    pub search: Vec<Fqdn>,
    /// What one sandbox may ask.
    pub limits: Limits,
    /// Connections of the sandboxes to our TCP port.
    pub tcp: TcpSettings,
    /// Who resolves the names that are connected to.
    pub upstream: UpstreamSettings,
}

/// How a denied name is answered; either way with the reason, where the client speaks EDNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeniedAs {
    /// REFUSED: the truth. musl's resolver takes it for no answer at all and waits for its time-out (5 s).
    #[default]
    Refused,
    /// NXDOMAIN: every resolver gives up at once.
    NxDomain,
}

/// The table `[dns.limits]`: what one sandbox may ask. What leaves by the names themselves is bounded by these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Questions a second, in the long run.
    pub questions_per_second: NonZeroU32,
    /// Questions at once.
    pub questions_burst: NonZeroU32,
    /// Names that it did not have an address for, a minute, in the long run.
    pub new_names_per_minute: NonZeroU32,
    /// Such names at once.
    pub new_names_burst: NonZeroU32,
    /// Names with an address, at any time.
    pub names: NonZeroUsize,
    /// The longest name, in bytes.
    pub name_bytes: usize,
    /// The longest label, in bytes.
    pub label_bytes: usize,
    /// The most labels of a name.
    pub labels: usize,
}

/// The table `[dns.tcp]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpSettings {
    /// Connections of one sandbox.
    pub connections_per_sandbox: NonZeroUsize,
    /// Connections of all of them.
    pub connections: NonZeroUsize,
    /// How long a connection may take to bring its next question whole, or to take an answer, in seconds.
    pub idle_seconds: NonZeroU32,
}

/// The table `[dns.upstream]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSettings {
    /// Whom to ask; in this order.
    pub servers: Vec<Server>,
    /// Who may vouch for those that speak TLS: certificates as PEM, themselves and not a path, as the worker reads no files.
    pub roots_pem: String,
    /// How long one try may take, in milliseconds.
    pub try_millis: NonZeroU32,
    /// How long a name may take in all, in milliseconds.
    pub deadline_millis: NonZeroU32,
    /// Answers that are kept.
    pub cached: u32,
    /// How long an answer is kept at most, whatever its TTL, in seconds.
    pub cached_seconds: u32,
    /// Names that are being resolved at any time; further ones wait within their deadline.
    pub in_flight: NonZeroUsize,
}

/// A resolver that we ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Where: `192.0.2.53:53`, `[2001:db8::53]:853`.
    pub address: SocketAddr,
    /// How.
    #[serde(default)]
    pub transport: Transport,
}

/// How a resolver is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP, and TCP where an answer is cut short.
    #[default]
    Udp,
    /// TCP.
    Tcp,
    /// DNS over TLS (RFC 7858), to a server that proves to be the one of this name.
    Tls(String),
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            ttl_seconds: 30,
            grace_seconds: 600,
            rest_seconds: 60,
            denied: DeniedAs::default(),
            search: Vec::new(),
            limits: Limits::default(),
            tcp: TcpSettings::default(),
            upstream: UpstreamSettings::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            questions_per_second: many(100),
            questions_burst: many(400),
            new_names_per_minute: many(60),
            new_names_burst: many(200),
            names: NonZeroUsize::MIN.saturating_add(1023),
            name_bytes: 128,
            label_bytes: 63,
            labels: 12,
        }
    }
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            connections_per_sandbox: NonZeroUsize::MIN.saturating_add(7),
            connections: NonZeroUsize::MIN.saturating_add(511),
            idle_seconds: many(10),
        }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            roots_pem: String::new(),
            try_millis: many(2000),
            deadline_millis: many(5000),
            cached: 4096,
            cached_seconds: 300,
            in_flight: NonZeroUsize::MIN.saturating_add(255),
        }
    }
}

impl DnsSettings {
    /// How long an address keeps its name after it was last used.
    pub fn hold(&self) -> Duration {
        Duration::from_secs(u64::from(self.ttl_seconds) + u64::from(self.grace_seconds))
    }
}

impl Limits {
    /// Questions.
    pub fn questions(&self) -> Rate {
        Rate::new(self.questions_per_second, Duration::from_secs(1), self.questions_burst)
    }

    /// New names.
    pub fn new_names(&self) -> Rate {
        Rate::new(self.new_names_per_minute, Duration::from_secs(60), self.new_names_burst)
    }
}

const fn many(n: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(n - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_and_what_it_leaves_out_is_the_default() {
        let read: DnsSettings = toml::from_str(
            r#"
            denied = "nxdomain"
            search = ["cluster.local"]
            [limits]
            names = 5
            [[upstream.servers]]
            address = "192.0.2.53:53"
            [[upstream.servers]]
            address = "[2001:db8::53]:853"
            transport = { tls = "dns.example.net" }
            "#,
        )
        .unwrap();
        assert_eq!(read.denied, DeniedAs::NxDomain);
        assert_eq!((read.limits.names.get(), read.limits.labels), (5, 12));
        let transports: Vec<_> = read.upstream.servers.iter().map(|s| s.transport.clone()).collect();
        assert_eq!(transports, [Transport::Udp, Transport::Tls("dns.example.net".to_owned())]);
        assert_eq!(read.hold(), Duration::from_secs(630));
    }

    #[test]
    fn what_would_stop_everything_or_is_unknown_is_refused() {
        for table in
            ["[limits]\nquestions_per_second = 0", "[limits]\nnames = 0", "tlt_seconds = 1", "denied = \"drop\""]
        {
            assert!(toml::from_str::<DnsSettings>(table).is_err(), "{table}");
        }
    }
}
