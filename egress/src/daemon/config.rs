//! egress.toml: what the node's operator decides. `configs/egress.toml` documents each key.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trust::id::NodeId;

use super::events::Allowed;
use crate::paths::Paths;
use crate::worker::control::Settings;
use crate::worker::dns::{DnsSettings, Server, Transport};
use crate::worker::{authz, gate};

/// egress.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The node's name in the record; the host's without.
    pub node: Option<NodeId>,
    /// Where `/metrics` is answered over HTTP; nowhere without.
    pub metrics: Option<SocketAddr>,
    /// The ports that sandboxes' packets are brought to.
    pub ports: Ports,
    /// How names are answered.
    pub dns: DnsSettings,
    /// How connections are carried.
    pub gate: gate::Settings,
    /// Who decides where a rule says RequireAuthz.
    pub authz: authz::settings::Settings,
    /// Whether the host's own processes may connect to sandboxes: probes, ports that are published.
    pub host_connects: bool,
    /// What is recorded.
    pub events: Events,
    /// How often the rules in the kernel are compared with what they should be.
    #[serde(with = "humantime_serde")]
    pub audit_every: Duration,
    /// Who the unprivileged half is.
    pub worker: Worker,
}

/// The table `[ports]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// Of the policy DNS, UDP and TCP.
    pub dns: u16,
    /// Of the gate, TCP.
    pub gate: u16,
}

/// The table `[events]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Attempts that are alike are counted for so long.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Whether those that were let through are recorded.
    pub allowed: Allowed,
}

/// The table `[worker]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// Its user id; not root.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It says what it must not.
    #[error("{path}: {why}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Which key, and what is wrong.
        why: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            metrics: None,
            ports: Ports::default(),
            dns: DnsSettings::default(),
            gate: gate::Settings::default(),
            authz: authz::settings::Settings::default(),
            host_connects: true,
            events: Events::default(),
            audit_every: Duration::from_secs(30),
            worker: Worker::default(),
        }
    }
}

impl Default for Ports {
    /// Below 1024, so that no user of the host can take one while the daemon is down.
    fn default() -> Self {
        Self { dns: 852, gate: 854 }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self { window: Duration::from_secs(10), allowed: Allowed::default() }
    }
}

impl Default for Worker {
    /// `nobody`.
    fn default() -> Self {
        Self { uid: 65534, gid: 65534 }
    }
}

impl Config {
    /// Reads the file; defaults where there is none.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|why| ConfigError::Invalid { path: path.to_owned(), why }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ConfigError::Unreadable { path: path.to_owned(), error }),
        }
    }

    /// What the worker serves with: it reads no file, so what stands in files is read here.
    pub fn worker_settings(&self, paths: &Paths) -> Result<Settings, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { path: paths.config(), why };
        let authz = self.authz.read().map_err(|e| invalid(format!("authz: {e}")))?;
        let mut dns = self.dns.clone();
        if dns.upstream.servers.is_empty() {
            dns.upstream.servers = of_the_host()?;
        }
        let Worker { uid, gid } = self.worker;
        Ok(Settings { uid, gid, root: paths.empty(), dns, gate: self.gate.clone(), authz })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        let Ports { dns, gate } = config.ports;
        if dns == 0 || gate == 0 || dns == gate {
            return Err(format!("ports: dns = {dns}, gate = {gate}: give two different ports, none of them 0"));
        }
        if config.worker.uid == 0 || config.worker.gid == 0 {
            return Err("worker: uid and gid must not be root's: the worker reads what sandboxes send".into());
        }
        if config.audit_every.is_zero() || config.events.window.is_zero() {
            return Err("audit_every and events.window must be more than nothing".into());
        }
        Ok(config)
    }
}

/// The resolvers that the host asks.
fn of_the_host() -> Result<Vec<Server>, ConfigError> {
    const RESOLV_CONF: &str = "/etc/resolv.conf";
    let path = PathBuf::from(RESOLV_CONF);
    let text = fs::read_to_string(&path).map_err(|error| ConfigError::Unreadable { path: path.clone(), error })?;
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<std::net::IpAddr>().ok();
    let server = |address| Server { address: SocketAddr::new(address, 53), transport: Transport::Udp };
    let servers: Vec<_> = text.lines().filter_map(address).map(server).collect();
    match servers.is_empty() {
        false => Ok(servers),
        true => Err(ConfigError::Invalid {
            path,
            why: "it names no resolver: set dns.upstream.servers in egress.toml".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_named() {
        for (text, names) in [
            ("colour = 1", "colour"),
            ("[ports]\ndns = 0", "dns = 0"),
            ("[ports]\ndns = 5\ngate = 5", "gate = 5"),
            ("[worker]\nuid = 0", "root"),
            ("audit_every = \"0s\"", "audit_every"),
            ("audit_every = 3", "audit_every"),
        ] {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(names), "{text}: {why}");
        }
    }

    #[test]
    fn the_example_is_the_default() {
        let example = Config::parse(include_str!("../../../configs/egress.toml")).unwrap();
        assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()));
    }
}
