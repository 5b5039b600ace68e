//! `Runtime`: a node, opened: the four services over one set of ports, and the work that keeps on beside them. The daemon is a shell
//! around it; whoever embeds the node agent opens the same. One at a time on a node: two would both keep its pools.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use egress::policy::Policies;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use trust::clock::SystemClock;

use crate::attestations::AttestationService;
use crate::audit::Drain;
use crate::config::{self, Config, ConfigError};
use crate::containerd::grpc::BadNamespace;
use crate::containerd::{self, Containerd};
use crate::egress_controller::EgressController;
use crate::events::Events;
use crate::idle::{Idle, Sessions};
use crate::logs::{self, Logs};
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
use crate::store::told::Told;
use crate::store::{Filter, Store, StoreError};

/// What has expired is looked for so often.
const EXPIRE: Duration = Duration::from_secs(1);
/// A CNI plugin may take so long.
const PLUGIN: Duration = Duration::from_secs(30);
/// The holder, beside this program.
const HOLDER: &str = "creto-hold";

/// A node. Clones share it.
#[derive(Clone)]
pub struct Runtime {
    /// Sandboxes, whoever they were made for.
    pub sandboxes: SandboxManager,
    /// Pools, and claims of their members.
    pub pools: WarmPoolManager,
    /// What sandboxes may connect to.
    pub egress: EgressController,
    /// The statements about them.
    pub attestations: AttestationService,
    ports: Arc<Ports>,
}

/// Why a node is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFailed {
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

fn doing<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, OpenFailed> {
    result.map_err(|error| OpenFailed::Io { doing: what.into(), error })
}

impl Runtime {
    /// Opens the node whose files lie below `root`, as pool-agent.toml says. Nothing is done before [`Self::recover`] and [`Self::run`].
    pub async fn open(root: Root) -> Result<Self, OpenFailed> {
        let config = Config::read(&root.agent_config())?;
        Self::open_with(root, config, Metrics::new()).await
    }

    /// The same, by settings that were read already.
    pub(crate) async fn open_with(root: Root, config: Config, metrics: Metrics) -> Result<Self, OpenFailed> {
        let ports = Arc::new(open(root, config, metrics).await?);
        Ok(Self {
            sandboxes: SandboxManager::new(ports.clone()),
            pools: WarmPoolManager::new(ports.clone()),
            egress: EgressController::new(ports.clone()),
            attestations: AttestationService::new(ports.clone()),
            ports,
        })
    }

    /// What all of it works with.
    pub fn ports(&self) -> &Arc<Ports> {
        &self.ports
    }

    /// Before anybody asks: reads pools.d, adopts what runs and what waits, and ends what ended while nobody looked, for that is nobody's
    /// to claim. What fails is loud, and goes on with [`Self::run`].
    pub async fn recover(&self) {
        if let Err(error) = self.pools.read_files().await {
            tracing::error!(%error, "pools.d is not read");
        }
        if let Err(error) = recovery::agree(&self.pools).await {
            tracing::error!(%error, "records and containers may not agree");
        }
    }

    /// Keeps pools warm, hears of sandboxes that end, ends those whose time is over or that nobody uses, and drains the audit spools, for as long as it
    /// is awaited.
    pub async fn run(&self) {
        let mut work = JoinSet::new(); // ends with us
        work.spawn(recovery::listen(self.pools.clone()));
        let pools = self.pools.clone();
        work.spawn(async move { pools.run().await });
        work.spawn(expire(self.ports.clone(), self.sandboxes.clone()));
        let ports = self.ports.clone();
        work.spawn(async move { ports.audit.clone().run(&ports.metrics).await });
        while let Some(ended) = work.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a bug: a part of the agent's work has ended");
            }
        }
    }
}

async fn open(root: Root, config: Config, metrics: Metrics) -> Result<Ports, OpenFailed> {
    let node = Node::read(&root)?.id;
    for dir in [root.lib().to_owned(), root.run().to_owned()] {
        doing(dir.display().to_string(), std::fs::create_dir_all(&dir))?;
    }
    let store: Arc<dyn Store> = match &config.store {
        config::Store::Sqlite {} => Arc::new(Sqlite::open(&root.database())?),
        config::Store::Etcd { endpoints } => Arc::new(Etcd::connect(endpoints).await?),
    };
    let mut run = [0; 4];
    doing("a random number", getrandom::fill(&mut run).map_err(io::Error::other))?;
    let events = Arc::new(Events::new(u32::from_ne_bytes(run)));
    let store = Arc::new(Told::new(store, events.clone()));
    let settings = containerd::Settings {
        namespace: config.containerd.namespace.clone(),
        snapshotter: config.containerd.snapshotter.clone(),
        address: config.containerd.address.clone(),
        ..containerd::Settings::default()
    };
    let network = &config.network;
    let path = network.conflist.clone();
    let text = doing(path.display().to_string(), std::fs::read_to_string(&path))?;
    let conflist = Conflist::parse(&text).map_err(|error| OpenFailed::Network { path, error })?;
    let cni = Cni::new(conflist, network.plugins.clone(), root.run(), PLUGIN);
    let maker = spawn::Node {
        containers: Arc::new(Containerd::new(settings)?),
        networks: Arc::new(cni),
        namespace: config.containerd.namespace.clone(),
    };
    Ok(Ports {
        audit: Arc::new(Drain::new(&root, &node)),
        node,
        policies: Policies::new(root.policies()),
        store,
        maker,
        clock: Arc::new(SystemClock),
        metrics,
        holder: holder(config.holder.clone())?,
        hands: Arc::new(Hands::default()),
        sessions: Arc::new(Sessions::default()),
        exits: Exits::default(),
        turns: Semaphore::new(config.limits.spawning),
        events,
        logs: Arc::new(Logs::new(root.lib().join("logs"))),
        root,
        config,
    })
}

/// As the settings say, else beside this program.
fn holder(named: Option<PathBuf>) -> Result<PathBuf, OpenFailed> {
    let holder = match named {
        Some(holder) => holder,
        None => doing("finding its own program", std::env::current_exe())?.with_file_name(HOLDER),
    };
    match holder.exists() {
        true => Ok(holder),
        false => Err(OpenFailed::Io {
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
    let mut idle = Idle::default();
    loop {
        due.tick().await;
        let all = match ports.store.sandboxes(&Filter::of_node(&ports.node)).await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "what has expired, is idle or is gone is not known");
                continue;
            }
        };
        if let Err(error) = idle.look(&ports, &all).await {
            tracing::warn!(%error, "what is idle is not known");
        }
        recovery::expire(&ports, &all);
        if let Err(error) = logs::tidy(&ports, &all).await {
            tracing::warn!(%error, "the sandboxes' output is not tidied");
        }
        sandboxes.count(&all);
    }
}
