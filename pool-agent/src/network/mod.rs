//! Sandboxes' networks, by standard CNI plugins: a named network namespace, the plugins' chain in it, and what was done on record, so that it is
//! undone after a crash, too. Who may connect where is creto-egress' business (docs/egress.md): these wire, and nothing more.
//!
//! Top-down: [`Cni`] attach and detach · [`conflist`] the configured chain, and what plugins say, pure · [`plugin`] runs one · [`netns`].
//! Source: CNI specification 1.0.0.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use trust::id::SandboxId;

pub mod conflist;
pub mod netns;
mod plugin;

pub use conflist::{BadConflist, Conflist};
use conflist::{Verb, addresses};
pub use plugin::PluginError;

/// The interface in a sandbox.
const INTERFACE: &str = "eth0";
/// What is on record of an attached sandbox.
const RECORD: &str = "record.json";

/// Wires sandboxes.
#[async_trait]
pub trait Networks: Send + Sync {
    /// A network namespace for a sandbox, wired. All of it is there afterwards, or nothing.
    async fn attach(&self, id: &SandboxId) -> Result<Attached, NetworkError>;

    /// Takes it all back. What is gone already is no error. The sandbox must have ended.
    async fn detach(&self, id: &SandboxId) -> Result<(), NetworkError>;

    /// All sandboxes that something is on record of, attached or half so.
    fn attached(&self) -> Result<BTreeSet<SandboxId>, NetworkError>;
}

/// A sandbox's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The path of its namespace.
    pub netns: PathBuf,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// For its `/etc/resolv.conf`. Whichever server that names, it is creto-egress that answers.
    pub resolv_conf: PathBuf,
    /// For its `/etc/hosts`.
    pub hosts: PathBuf,
}

/// Why a sandbox was not wired, or not taken off the wire.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It is wired already, or was left so.
    #[error("sandbox {0} has a network already: detach it first")]
    AlreadyAttached(SandboxId),
    /// A plugin failed, or there is none.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A plugin's answer gives no address to the sandbox.
    #[error("the network {network} gives no address to {interface}: check `ipam` in its configuration")]
    NoAddress {
        /// The configuration's name.
        network: String,
        /// The sandbox's interface.
        interface: &'static str,
    },
    /// A step on the host failed.
    #[error("cannot {doing} {path}: {source}")]
    Host {
        /// What was to be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn host<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> NetworkError + use<'a> {
    move |source| NetworkError::Host { doing, path: path.to_owned(), source }
}

/// Networks by CNI plugins.
#[derive(Clone, Debug)]
pub struct Cni {
    conflist: Conflist,
    plugins: Vec<PathBuf>,
    run: PathBuf,
    within: Duration,
}

/// What is kept of an attached sandbox: enough to take it back with another configuration in force.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    conflist: Conflist,
    /// What the chain's last plugin answered; none until it has.
    result: Option<Value>,
}

impl Cni {
    /// Where distributions and Kubernetes put plugins.
    pub const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

    /// With this configuration, plugins of these directories, and state below `run` (`/run/creto`): `netns/ID`, `networks/ID/`.
    pub fn new(conflist: Conflist, plugins: Vec<PathBuf>, run: &Path, within: Duration) -> Self {
        Self { conflist, plugins, run: run.to_owned(), within }
    }

    /// The path of a sandbox's namespace.
    pub fn netns(&self, id: &SandboxId) -> PathBuf {
        self.run.join("netns").join(id.to_string())
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.run.join("networks").join(id.to_string())
    }

    /// Takes back what none of `alive` has; those that fail stay on record, and are named with their error.
    pub async fn sweep(&self, alive: &BTreeSet<SandboxId>) -> Result<Vec<(SandboxId, NetworkError)>, NetworkError> {
        let mut left = Vec::new();
        for id in self.attached()?.difference(alive) {
            if let Err(error) = self.detach(id).await {
                left.push((id.clone(), error));
            }
        }
        Ok(left)
    }

    async fn wire(&self, id: &SandboxId, record: &mut Record) -> Result<Attached, NetworkError> {
        let netns = self.netns(id);
        netns::make(&netns).await.map_err(host("make network namespace", &netns))?;
        let call = |interface| plugin::Call { id, netns: &netns, interface, dirs: &self.plugins, within: self.within };
        let lo = Conflist::loopback();
        call("lo").chain(Verb::Add, &lo, None).await?;
        record.result = call(INTERFACE).chain(Verb::Add, &self.conflist, None).await?;
        self.keep(id, record)?;
        let wired = addresses(record.result.as_ref().unwrap_or(&Value::Null));
        if wired.addresses.is_empty() {
            let network = self.conflist.name().to_owned();
            return Err(NetworkError::NoAddress { network, interface: INTERFACE });
        }
        let (resolv_conf, hosts) = (self.dir(id).join("resolv.conf"), self.dir(id).join("hosts"));
        put(&resolv_conf, wired.resolv_conf().as_bytes())?;
        put(&hosts, wired.hosts(&id.to_string()).as_bytes())?;
        Ok(Attached { netns, addresses: wired.addresses, resolv_conf, hosts })
    }

    fn keep(&self, id: &SandboxId, record: &Record) -> Result<(), NetworkError> {
        let path = self.dir(id).join(RECORD);
        let bytes = serde_json::to_vec(record).map_err(|error| host("write", &path)(error.into()))?;
        put(&path, &bytes)
    }

    fn kept(&self, id: &SandboxId) -> Result<Option<Record>, NetworkError> {
        let path = self.dir(id).join(RECORD);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| host("read", &path)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(host("read", &path)(error)),
        }
    }
}

#[async_trait]
impl Networks for Cni {
    async fn attach(&self, id: &SandboxId) -> Result<Attached, NetworkError> {
        let (cni, id) = (self.clone(), id.clone());
        let name = id.to_string();
        // In a task of its own: a caller that goes away leaves nothing half-made.
        let done = tokio::spawn(async move {
            let dir = cni.dir(&id);
            let above = cni.run.join("networks");
            fs::create_dir_all(&above).map_err(host("make", &above))?;
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(NetworkError::AlreadyAttached(id));
                }
                other => other.map_err(host("make", &dir))?,
            }
            // The sandbox's user reads two files of it, and runsc's gofer walks through it as nobody.
            let open = fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(host("open", &dir));
            let mut record = Record { conflist: cni.conflist.clone(), result: None };
            let wired = match open.and_then(|()| cni.keep(&id, &record)) {
                Ok(()) => cni.wire(&id, &mut record).await,
                Err(error) => Err(error),
            };
            if wired.is_err()
                && let Err(left) = cni.detach(&id).await
            {
                tracing::error!(%id, error = %left, "a network that was half-wired is left; it goes with the next sweep");
            }
            wired
        });
        let panicked = |error| host("wire", Path::new(&name))(io::Error::other(error));
        done.await.map_err(panicked)?
    }

    async fn detach(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let (netns, dir) = (self.netns(id), self.dir(id));
        if let Some(record) = self.kept(id)? {
            let dirs = &self.plugins;
            let call = plugin::Call { id, netns: &netns, interface: INTERFACE, dirs, within: self.within };
            call.chain(Verb::Del, &record.conflist, record.result.as_ref()).await?;
        }
        netns::remove(&netns).map_err(host("remove network namespace", &netns))?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(host("remove", &dir)(error)),
            _ => Ok(()),
        }
    }

    fn attached(&self) -> Result<BTreeSet<SandboxId>, NetworkError> {
        let dir = self.run.join("networks");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            other => other.map_err(host("list", &dir))?,
        };
        let mut ids = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(host("list", &dir))?.file_name();
            // What is no sandbox's id is not ours.
            ids.extend(name.to_str().and_then(|name| name.parse::<SandboxId>().ok()));
        }
        Ok(ids)
    }
}

/// A file that everybody may read; whole or not there.
fn put(path: &Path, bytes: &[u8]) -> Result<(), NetworkError> {
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.persist(path).map_err(io::Error::from)
    };
    write().map(drop).map_err(host("write", path))
}
