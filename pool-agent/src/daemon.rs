//! creto-pool-agent from its start to SIGTERM: the API over a [`Runtime`]. Sandboxes outlive it: the next one adopts them.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use trust::chain::chain;

use crate::api::tls::BadTls;
use crate::api::{self, Api};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::node::{Node, Root};
use crate::runtime::{OpenFailed, Runtime};
use crate::telemetry::{BadTelemetry, Telemetry};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonFailed {
    /// The node is not opened.
    #[error(transparent)]
    Open(#[from] OpenFailed),
    /// Its certificate, or the key of that.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// Where its spans are to go.
    #[error(transparent)]
    Telemetry(#[from] BadTelemetry),
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

/// Runs until SIGTERM or SIGINT, and logs from this level on; SIGHUP reads pools.d and the certificate again.
pub fn run(root: Option<&Path>, level: Level) -> Result<(), DaemonFailed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    doing("starting", runtime)?.block_on(async {
        let root = Root::new(root);
        let config = Config::read(&root.agent_config()).map_err(OpenFailed::from)?;
        let node = Node::read(&root).map_err(OpenFailed::from)?.id;
        let metrics = Metrics::new();
        let telemetry = Telemetry::start(&config.tracing, &node, level, metrics.spans.clone())?;
        let served = serve(root, config, metrics).await;
        telemetry.end().await;
        served
    })
}

async fn serve(root: Root, config: Config, metrics: Metrics) -> Result<(), DaemonFailed> {
    let mut end = doing("signals", signal(SignalKind::terminate()))?;
    let mut interrupt = doing("signals", signal(SignalKind::interrupt()))?;
    let mut reload = doing("signals", signal(SignalKind::hangup()))?;
    let _alone = alone(&root)?;
    let runtime = Runtime::open_with(root, config, metrics).await?;
    let ports = runtime.ports();
    let listeners = api::listen(ports).await?;
    let tls = listeners.tls();
    runtime.recover().await;
    tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.run().await }
    });
    let socket = ports.root.agent_socket();
    api::serve(listeners, Api::new(&runtime));
    tracing::info!(node = %ports.node, socket = %socket.display(), "creto-pool-agent serves");
    ready();
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => {
                if let Err(error) = runtime.pools.read_files().await {
                    tracing::error!(%error, "pools.d is not read");
                }
                match tls.as_ref().map(|tls| tls.reload()) {
                    Some(Err(error)) => tracing::error!(error = chain(&error), "the certificate of before goes on"),
                    Some(Ok(())) => tracing::info!("the certificate is read again"),
                    None => {}
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

/// Tells a service manager that waits for it (sd_notify(3)).
fn ready() {
    let Some(at) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) else { return };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", at));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager was not told");
    }
}
