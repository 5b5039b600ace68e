//! pool-agent.toml: what the node's operator decides about the node agent. `configs/pool-agent.toml` documents each key.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trust::https::ServiceUrl;

/// pool-agent.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The holder's program, which waits in members until they are claimed; beside the agent's own where none is named.
    pub holder: Option<PathBuf>,
    /// The table `[containerd]`.
    pub containerd: Containerd,
    /// The table `[network]`.
    pub network: Network,
    /// The table `[store]`.
    pub store: Store,
    /// The table `[api]`.
    pub api: Api,
    /// The table `[tracing]`.
    pub tracing: Tracing,
    /// The table `[limits]`.
    pub limits: Limits,
}

/// The table `[containerd]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// Its socket.
    pub address: PathBuf,
    /// Its state directory, where its tasks' bundles lie.
    pub state: PathBuf,
    /// Where all sandboxes of the agent live.
    pub namespace: String,
    /// What keeps their root file systems.
    pub snapshotter: String,
    /// The shim, by the name or the path that containerd finds it by.
    pub runtime: String,
}

/// The table `[network]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The CNI configuration list that sandboxes are wired by.
    pub conflist: PathBuf,
    /// Where the plugins are.
    pub plugins: Vec<PathBuf>,
}

/// The table `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum Store {
    /// `creto.db` in the node's directory.
    Sqlite {},
    /// A cluster.
    Etcd {
        /// `http://HOST:PORT`, each.
        endpoints: Vec<String>,
    },
}

/// The table `[api]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where HTTP is spoken beside the socket; nowhere where it is empty.
    #[serde(deserialize_with = "address_or_none")]
    pub listen: Option<SocketAddr>,
    /// Requests at the same time over TCP; more are told to come again.
    pub concurrent: usize,
    /// Of these so many from one address (of IPv6: its /64) but loopback; as many as there are where it is 0.
    pub concurrent_of_address: usize,
    /// The largest body, in bytes.
    pub body_bytes: usize,
    /// How long a request's head may take, or a handshake of TLS.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// How long a body may take.
    #[serde(with = "humantime_serde")]
    pub body: Duration,
    /// A caller over TCP that takes nothing of its answer for so long is cut off.
    #[serde(with = "humantime_serde")]
    pub stall: Duration,
    /// The table `[api.rate]`.
    pub rate: Rates,
    /// The table `[api.tls]`: TLS over TCP.
    pub tls: Option<Tls>,
}

/// The table `[api.rate]`: how often something may be asked over TCP, a second in the long run and at once after a rest. 0: as often as
/// one likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// By one address (of IPv6: its /64), without a token that counts.
    pub anonymous: u32,
    /// The same at once.
    pub anonymous_burst: u32,
    /// By one agent, with its tokens.
    pub agent: u32,
    /// The same at once.
    pub agent_burst: u32,
}

/// The table `[api.tls]`. Read anew at SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificates (PEM), the node's own first.
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// The table `[tracing]`: where spans go ([`crate::telemetry`]).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// A collector that takes OTLP over HTTP, without `/v1/traces`; none where it is empty.
    #[serde(deserialize_with = "text_or_none")]
    pub otlp_endpoint: Option<String>,
    /// Certificates (PEM) of whoever may vouch for an https collector; the system's own are not asked.
    pub ca: Option<PathBuf>,
    /// Of traces that begin here so many in a hundred. One that a caller has begun goes by what that has decided.
    pub sample_percent: u8,
}

/// The table `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sandboxes on this node, members of pools among them.
    pub sandboxes: usize,
    /// No sandbox is made while the node has less memory than this to give, in bytes.
    pub free_memory_bytes: u64,
    /// Members of pools that are made at the same time.
    pub warming: usize,
    /// Sandboxes that somebody waits for, made at the same time; others wait for their turn.
    pub spawning: usize,
    /// How long one may take to be made.
    #[serde(with = "humantime_serde")]
    pub spawn: Duration,
    /// A sandbox's output is kept up to this, in bytes: of more the end.
    pub log_bytes: u64,
    /// The output of a sandbox that is gone is kept so long.
    #[serde(with = "humantime_serde")]
    pub keep_logs: Duration,
    /// Between SIGTERM and SIGKILL when a sandbox is ended.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// It says what it must not.
    #[error("{}: {why}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Which key, and what is wrong.
        why: String,
    },
}

impl Config {
    /// The file's settings; all defaults where there is none.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { path: path.to_owned(), why };
        let config = match fs::read_to_string(path) {
            Ok(text) => toml::from_str::<Self>(&text).map_err(|e| invalid(e.to_string().trim_end().to_owned()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(why) => return Err(ConfigError::Unreadable { path: path.to_owned(), why }),
        };
        config.check().map_err(invalid)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let positive = [
            ("api.concurrent", self.api.concurrent),
            ("limits.sandboxes", self.limits.sandboxes),
            ("limits.warming", self.limits.warming),
            ("limits.spawning", self.limits.spawning),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key}: 0 would let nothing happen; give 1 or more"));
        }
        if let Some(Err(why)) = self.tracing.otlp_endpoint.as_deref().map(ServiceUrl::parse) {
            return Err(format!("tracing.otlp_endpoint: {why}"));
        }
        if self.tracing.sample_percent > 100 {
            return Err("tracing.sample_percent: give 0 to 100".into());
        }
        match &self.store {
            Store::Etcd { endpoints } if endpoints.is_empty() => {
                Err("store.endpoints: name at least one, e.g. \"http://127.0.0.1:2379\"".into())
            }
            _ => Ok(()),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            state: "/run/containerd".into(),
            namespace: "creto".into(),
            snapshotter: "overlayfs".into(),
            runtime: "io.containerd.creto.v2".into(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            conflist: "/etc/creto/cni/10-creto.conflist".into(),
            plugins: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::Sqlite {}
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
            concurrent: 256,
            concurrent_of_address: 64,
            body_bytes: 1 << 20,
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            rate: Rates::default(),
            tls: None,
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self { anonymous: 200, anonymous_burst: 400, agent: 500, agent_burst: 1000 }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self { otlp_endpoint: None, ca: None, sample_percent: 100 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sandboxes: 1000,
            free_memory_bytes: 512 << 20,
            warming: 4,
            spawning: 4,
            spawn: Duration::from_secs(120),
            log_bytes: 16 << 20,
            keep_logs: Duration::from_secs(24 * 3600),
            grace: Duration::from_secs(10),
        }
    }
}

fn text_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Some(String::deserialize(deserializer)?).filter(|text| !text.is_empty()))
}

fn address_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" => Ok(None),
        address => address.parse().map(Some).map_err(|_| {
            serde::de::Error::custom(format!("{address:?} is no address: write HOST:PORT, or \"\" for none"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("c.toml"), text).unwrap();
        Config::read(&dir.path().join("c.toml"))
    }

    #[test]
    fn the_documented_file_says_what_holds_without_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/pool-agent.toml");
        assert_eq!(Config::read(&path).unwrap(), Config::default());
        assert_eq!(read("").unwrap(), Config::default());
        assert_eq!(Config::read(Path::new("/nonexistent/c.toml")).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_named_by_its_key() {
        for (text, why) in [
            ("limit = 1", "limit"),
            ("[limits]\nsandboxes = 0", "limits.sandboxes"),
            ("[limits]\nspawn = \"soon\"", "soon"),
            ("[store]\nkind = \"etcd\"\nendpoints = []", "store.endpoints"),
            ("[store]\nkind = \"redis\"", "redis"),
            ("[api]\nlisten = \"8080\"", "HOST:PORT"),
            ("[api.tls]\nkey = \"/k\"", "certificate"),
            ("[api.rate]\nagent = -1", "agent"),
            ("[tracing]\notlp_endpoint = \"http://10.0.0.1:4318\"", "use https"),
            ("[tracing]\notlp_endpoint = \"127.0.0.1:4318\"", "tracing.otlp_endpoint"),
            ("[tracing]\nsample_percent = 101", "tracing.sample_percent"),
        ] {
            let error = read(text).expect_err(why).to_string();
            assert!(error.contains(why) && error.contains("c.toml"), "{error}");
        }
        assert_eq!(read("[api]\nlisten = \"\"").unwrap().api.listen, None);
    }
}
