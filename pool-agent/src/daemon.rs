//! creto-pool-agent from its start to SIGTERM. Sandboxes outlive it: the next one adopts them.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use egress::policy::Policies;
use tokio::signal::unix::{SignalKind, signal};
use trust::clock::SystemClock;

use crate::api::{self, Api};
use crate::config::{self, Config, ConfigError};
use crate::containerd::grpc::BadNamespace;
use crate::containerd::{self, Containerd};
use crate::logs;
use crate::metrics::Metrics;
use crate::network::Cni;
use crate::network::conflist::{BadConflist, Conflist};
use crate::node::{Node, NodeError, Root};
use crate::pools::WarmPoolManager;
use crate::ports::{Exits, Hands, Ports};
use crate::recovery;
use crate::sandboxes::SandboxManager;
use crate::spawn;
use crate::store::etcd::Etcd;
use crate::store::sqlite::Sqlite;
use crate::store::{Store, StoreError};

/// What has expired is looked for so often.
const EXPIRE: Duration = Duration::from_secs(1);
/// A CNI plugin may take so long.
const PLUGIN: Duration = Duration::from_secs(30);
/// The holder, beside this program.
const HOLDER: &str = "creto-hold";

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonFailed {
    /// Its settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's name.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The CNI configuration.
    #[error("{}", path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: BadConflist,
    },
    /// containerd's namespace.
    #[error(transparent)]
    Namespace(#[from] BadNamespace),
    /// Its records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something of the system's.
    #[error("{doing}")]
    Io {
        /// What was done.
        doing: String,
        /// What came of it.
        #[source]
        error: io::Error,
    },
}

pub(crate) fn doing<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, DaemonFailed> {
    result.map_err(|error| DaemonFailed::Io { doing: what.into(), error })
}

/// Runs until SIGTERM or SIGINT; SIGHUP reads pools.d again.
pub fn run(root: Option<&Path>) -> Result<(), DaemonFailed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    doing("starting", runtime)?.block_on(serve(Root::new(root)))
}

async fn serve(root: Root) -> Result<(), DaemonFailed> {
    let mut end = doing("signals", signal(SignalKind::terminate()))?;
    let mut interrupt = doing("signals", signal(SignalKind::interrupt()))?;
    let mut reload = doing("signals", signal(SignalKind::hangup()))?;
    let _alone = alone(&root)?;
    let ports = Arc::new(open(root).await?);
    let pools = WarmPoolManager::new(ports.clone());
    let sandboxes = SandboxManager::new(ports.clone());
    let listeners = api::listen(&ports).await?;
    if let Err(error) = pools.read_files().await {
        tracing::error!(%error, "pools.d is not read");
    }
    // Before anybody asks: what ended while no agent looked is nobody's to claim.
    if let Err(error) = recovery::agree(&pools).await {
        tracing::error!(%error, "records and containers may not agree");
    }
    tokio::spawn(recovery::listen(pools.clone()));
    tokio::spawn({
        let pools = pools.clone();
        async move { pools.run().await }
    });
    tokio::spawn(expire(ports.clone(), sandboxes.clone()));
    let socket = ports.root.agent_socket();
    api::serve(listeners, Api::new(pools.clone(), sandboxes));
    tracing::info!(node = %ports.node, socket = %socket.display(), "creto-pool-agent serves");
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => {
                if let Err(error) = pools.read_files().await {
                    tracing::error!(%error, "pools.d is not read");
                }
            }
        }
    }
    tracing::info!("creto-pool-agent ends; its sandboxes go on");
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Two agents of one root would take each other's sandboxes for leftovers. The kernel lets go of the lock when its holder ends, however
/// that ends.
fn alone(root: &Root) -> Result<File, DaemonFailed> {
    let path = root.agent_lock();
    doing(root.run().display().to_string(), std::fs::create_dir_all(root.run()))?;
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = doing(path.display().to_string(), lock)?;
    let locked = lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(io::ErrorKind::AddrInUse, "another creto-pool-agent runs here"),
        TryLockError::Error(error) => error,
    });
    doing(path.display().to_string(), locked)?;
    Ok(lock)
}

async fn open(root: Root) -> Result<Ports, DaemonFailed> {
    let config = Config::read(&root.agent_config())?;
    let node = Node::read(&root)?.id;
    for dir in [root.lib().to_owned(), root.run().to_owned()] {
        doing(dir.display().to_string(), std::fs::create_dir_all(&dir))?;
    }
    let store: Arc<dyn Store> = match &config.store {
        config::Store::Sqlite {} => Arc::new(Sqlite::open(&root.database())?),
        config::Store::Etcd { endpoints } => Arc::new(Etcd::connect(endpoints).await?),
    };
    let settings = containerd::Settings {
        namespace: config.containerd.namespace.clone(),
        snapshotter: config.containerd.snapshotter.clone(),
        address: config.containerd.address.clone(),
        ..containerd::Settings::default()
    };
    let network = &config.network;
    let path = network.conflist.clone();
    let text = doing(path.display().to_string(), std::fs::read_to_string(&path))?;
    let conflist = Conflist::parse(&text).map_err(|error| DaemonFailed::Network { path, error })?;
    let cni = Cni::new(conflist, network.plugins.clone(), root.run(), PLUGIN);
    let maker = spawn::Node {
        containers: Arc::new(Containerd::new(settings)?),
        networks: Arc::new(cni),
        namespace: config.containerd.namespace.clone(),
    };
    Ok(Ports {
        node,
        policies: Policies::new(root.policies()),
        store,
        maker,
        clock: Arc::new(SystemClock),
        metrics: Metrics::new(),
        holder: holder(config.holder.clone())?,
        hands: Arc::new(Hands::default()),
        exits: Exits::default(),
        root,
        config,
    })
}

/// As the settings say, else beside this program.
fn holder(named: Option<PathBuf>) -> Result<PathBuf, DaemonFailed> {
    let holder = match named {
        Some(holder) => holder,
        None => doing("finding its own program", std::env::current_exe())?.with_file_name(HOLDER),
    };
    match holder.exists() {
        true => Ok(holder),
        false => Err(DaemonFailed::Io {
            doing: format!(
                "the holder {}: install it there, or name it by `holder` in pool-agent.toml",
                holder.display()
            ),
            error: io::ErrorKind::NotFound.into(),
        }),
    }
}

async fn expire(ports: Arc<Ports>, sandboxes: SandboxManager) {
    let mut due = tokio::time::interval(EXPIRE);
    loop {
        due.tick().await;
        if let Err(error) = recovery::expire(&ports).await {
            tracing::warn!(%error, "what has expired is not known");
        }
        if let Err(error) = logs::tidy(&ports).await {
            tracing::warn!(%error, "the sandboxes' output is not tidied");
        }
        if let Err(error) = sandboxes.count().await {
            tracing::warn!(%error, "sandboxes are not counted");
        }
    }
}
