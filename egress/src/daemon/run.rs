//! The daemon from its start to SIGTERM. What stands in the kernel goes on standing when it ends.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::utsname::uname;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use trust::audit::{Limits, Spool};
use trust::id::NodeId;

use super::config::{Config, ConfigError};
use super::enforcer::Enforcer;
use super::fence::{FenceError, Fences};
use super::metrics::{self, Metrics, Shown};
use super::names::KeptNames;
use super::nflog::Log;
use super::recorder::Recorder;
use super::ruleset::Settings as FenceSettings;
use super::sandboxes::Sandboxes;
use super::server;
use super::sockets::Sockets;
use super::state::State;
use super::worker::{Start, Worker};
use crate::paths::Paths;
use crate::policy::Policies;
use crate::protocol::Refusal;
use crate::sys;
use crate::worker::Attempt;
use crate::worker::authz::{Authz, BadSetup};

/// The NFLOG group of denied packets.
const LOG_GROUP: u16 = 852;
/// Batches of attempts on their way to the record.
const ATTEMPTS: usize = 1024;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonFailed {
    /// Its settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something of the system's.
    #[error("{doing}: {error}")]
    Io {
        /// What was done.
        doing: String,
        /// What came of it.
        error: io::Error,
    },
    /// The node's name.
    #[error("the host's name cannot be the node's: {0}; set node in egress.toml")]
    Node(trust::id::BadId),
    /// The kernel's tables.
    #[error(transparent)]
    Kernel(#[from] FenceError),
    /// The decision point's files.
    #[error("authz: {0}")]
    Authz(BadSetup),
    /// What stood before.
    #[error("putting up again what stood: {0}")]
    Recover(Refusal),
    /// Policies that cannot be read; each was named.
    #[error("{0} of the policies cannot be read")]
    Policies(usize),
}

fn doing<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, DaemonFailed> {
    result.map_err(|error| DaemonFailed::Io { doing: what.into(), error })
}

/// Reads the settings and all policies, and says what is wrong with them.
pub fn check(root: Option<&Path>) -> Result<(), DaemonFailed> {
    let paths = Paths::new(root);
    let config = Config::read(&paths.config())?;
    let settings = config.worker_settings(&paths)?;
    Authz::new().set_up(settings.authz).map_err(DaemonFailed::Authz)?;
    let policies = Policies::new(paths.policies());
    let names = doing(paths.policies().display().to_string(), policies.names())?;
    let mut bad = 0;
    for name in names {
        if let Err(error) = policies.named(&name) {
            tracing::error!(policy = %name, %error, "refused");
            bad += 1;
        }
    }
    if bad == 0 { Ok(()) } else { Err(DaemonFailed::Policies(bad)) }
}

/// Runs until SIGTERM or SIGINT; SIGHUP reads the policies again.
pub fn run(root: Option<&Path>, debug: bool) -> Result<(), DaemonFailed> {
    let activated = sys::activated(); // before anything else is opened
    let paths = Paths::new(root);
    let config = Config::read(&paths.config())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    doing("starting", runtime)?.block_on(serve(paths, config, activated, debug))
}

async fn serve(paths: Paths, config: Config, activated: Option<UnixListener>, debug: bool) -> Result<(), DaemonFailed> {
    let mut end = doing("signals", signal(SignalKind::terminate()))?;
    let mut interrupt = doing("signals", signal(SignalKind::interrupt()))?;
    let mut reload = doing("signals", signal(SignalKind::hangup()))?;
    let listener = doing(paths.socket().display().to_string(), server::listen(&paths.socket(), activated))?;
    let (state, empty) =
        (State::open(paths.state()), fs::DirBuilder::new().recursive(true).mode(0o755).create(paths.empty()));
    let state = doing(paths.state().display().to_string(), state)?;
    doing(paths.empty().display().to_string(), empty)?;
    let node = node(config.node.clone())?;
    // Others read the public keys that will lie beside it.
    let lib = fs::DirBuilder::new().recursive(true).mode(0o755).create(paths.lib());
    doing(paths.lib().display().to_string(), lib)?;
    let spool = Spool::new(&paths.spool(), "egress", &node.to_string(), Limits::default());
    let spool = spool
        .map_err(|e| DaemonFailed::Io { doing: paths.spool().display().to_string(), error: io::Error::other(e) })?;
    let metrics = Arc::new(Metrics::new());
    let recorder = Arc::new(Recorder::new(spool, metrics.clone()));

    let settings = FenceSettings {
        dns_port: config.ports.dns,
        gate_port: config.ports.gate,
        log_group: Some(LOG_GROUP),
        host_connects: config.host_connects,
    };
    let fences = Fences::open(settings)?; // those of an earlier daemon stand on
    let enforcer = doing("starting a thread", Enforcer::start(fences))?;
    let sockets = doing(format!("listening on {:?}", config.ports), Sockets::bind(config.ports))?;
    let (tell, told) = mpsc::channel(ATTEMPTS);
    tokio::spawn(recorder.clone().run(config.events, told));
    let log = doing(format!("listening to NFLOG group {LOG_GROUP}"), Log::open(LOG_GROUP))?;
    let program = doing("finding its own program", std::env::current_exe())?;
    let settings = config.worker_settings(&paths)?;
    let names = KeptNames::open(paths.names());
    let worker = Worker::keep(Start { program, debug, settings, sockets, names }, tell.clone());
    let policies = Policies::new(paths.policies());
    let sandboxes =
        Sandboxes::new(policies, state, enforcer, worker.clone(), recorder, metrics.clone(), config.authz.clone());
    let sandboxes = Arc::new(sandboxes);
    sandboxes.recover().await.map_err(DaemonFailed::Recover)?;

    let shown = Shown::new(metrics, worker.clone());
    if let Some(address) = config.metrics {
        let reader = doing(format!("metrics at {address}"), TcpListener::bind(address).await)?;
        tokio::spawn(metrics::serve(reader, shown.clone()));
    }
    listen_to_kernel(log, sandboxes.clone(), tell);
    tokio::spawn(server::serve(listener, sandboxes.clone(), shown));
    let auditing = sandboxes.clone();
    tokio::spawn(async move {
        let mut due = tokio::time::interval(config.audit_every);
        loop {
            due.tick().await;
            auditing.audit().await;
        }
    });
    ready();
    tracing::info!(socket = %paths.socket().display(), "creto-egress serves");
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => {
                let reloaded = sandboxes.reload().await;
                tracing::info!(changed = reloaded.changed.len(), "policies were read again");
                reloaded.errors.iter().for_each(|error| tracing::error!(error, "policy"));
            }
        }
    }
    worker.end().await;
    tracing::info!("creto-egress ends; the fences stand, and names fail until it is back");
    Ok(())
}

/// Tells what the kernel has denied.
fn listen_to_kernel(log: Log, sandboxes: Arc<Sandboxes>, tell: mpsc::Sender<(Vec<Attempt>, u64)>) {
    let (hear, mut heard) = mpsc::channel(ATTEMPTS);
    std::thread::spawn(move || {
        loop {
            match log.next() {
                Ok(denied) => {
                    for denied in denied {
                        let _ = hear.try_send(denied); // no room: the kernel counts it all the same
                    }
                }
                Err(error) => tracing::debug!(%error, "denied packets were not told"), // too many at once
            }
            if hear.is_closed() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(denied) = heard.recv().await {
            if let Some(attempt) = sandboxes.denied(denied) {
                let _ = tell.send((vec![attempt], 0)).await; // nobody records any more
            }
        }
    });
}

fn node(named: Option<NodeId>) -> Result<NodeId, DaemonFailed> {
    match named {
        Some(node) => Ok(node),
        None => {
            let host = doing("asking the kernel its name", uname().map_err(io::Error::from))?;
            host.nodename().to_string_lossy().parse().map_err(DaemonFailed::Node)
        }
    }
}

/// Tells a service manager that waits for it (sd_notify(3)).
fn ready() {
    let Some(at) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) else { return };
    let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", at));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager was not told");
    }
}
