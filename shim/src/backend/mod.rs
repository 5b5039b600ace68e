//! What isolates a pod: one trait over gVisor and over other shims, and the making of the one that was chosen.

mod delegate;
pub mod gvisor;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::Value;

use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::harden::Build;
use crate::options::TaskOptions;
use crate::request::Maker;
use crate::settings::Settings;
use crate::task::{Exit, Phase};
use crate::tasks::Key;
use crate::{paths, run_dir, stdio};

use delegate::Delegate;
use gvisor::Gvisor;
use gvisor::cli::Runsc;

/// Which pod a backend is for.
#[derive(Clone, Debug)]
pub struct Place {
    /// All that must be found again after a crash is in here.
    pub dir: PathBuf,
    /// containerd's gRPC socket.
    pub address: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container that the sandbox is made for, and that it lives and dies with.
    pub group: String,
}

/// A container to be made.
pub struct NewContainer<'a> {
    /// containerd's id.
    pub id: &'a str,
    /// What config.json says, with an absolute root and without the hooks that we run.
    pub spec: Value,
    /// A directory for the backend's own config.json; it exists.
    pub bundle: &'a Path,
    /// Where its init's bytes go.
    pub stdio: &'a stdio::Request,
    /// What the client's options ask for.
    pub options: &'a TaskOptions,
    /// Restore from what is in this directory instead of running from the beginning.
    pub checkpoint: Option<&'a Path>,
}

/// A process that a backend has made.
pub struct Made {
    /// What containerd calls its pid, on the host.
    pub pid: i32,
    /// What the shim holds of its stdio.
    pub io: stdio::Io,
}

/// What made a sandbox.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The file that was executed.
    pub program: PathBuf,
    /// How it isolates, as it says itself.
    pub platform: String,
}

/// The sandbox of one pod. Phases are checked before a call comes here.
#[async_trait]
pub trait Backend: Send + Sync {
    /// What the build that makes its sandboxes can do.
    fn build(&self) -> Build {
        Build::default()
    }

    /// Makes a container, and with the first one the sandbox. Nothing of the workload runs.
    async fn create(&self, new: NewContainer<'_>) -> Result<Made, TaskError>;

    /// Runs a container's init; `checkpoint` as it was in Create.
    async fn start(&self, id: &str, checkpoint: Option<&Path>) -> Result<(), TaskError>;

    /// Runs a further process in a container.
    async fn exec(&self, key: &Key, process: &ExecProcess, stdio: &stdio::Request) -> Result<Made, TaskError>;

    /// Resolves with the end of a process: an init's from its Create on, an exec's from its start on.
    async fn exit(&self, key: &Key) -> Exit;

    /// Signals a process that is in this phase, or all of its container.
    async fn signal(&self, key: &Key, phase: Phase, signal: u32, all: bool) -> Result<(), TaskError>;

    /// Freezes or thaws a container.
    async fn freeze(&self, id: &str, pause: bool) -> Result<(), TaskError>;

    /// Saves a container's state into a directory that exists; without `leave_running` it ends.
    async fn checkpoint(&self, id: &str, image: &Path, leave_running: bool) -> Result<(), TaskError>;

    /// A container's processes by their pids on the host; `init` is what Create returned.
    async fn pids(&self, id: &str, init: u32) -> Result<Vec<u32>, TaskError>;

    /// A container's metrics, in a type of the host's version of cgroups.
    async fn stats(&self, id: &str) -> Result<Any, TaskError>;

    /// New limits: `linux.resources` of the OCI spec as JSON, in containerd's wrapping.
    async fn update(&self, id: &str, resources: &Any) -> Result<(), TaskError>;

    /// Connects a stream with a TCP port of the sandbox's loopback, in the name of a container that runs.
    async fn connect(&self, id: &str, port: u16, stream: OwnedFd) -> Result<(), TaskError>;

    /// A process's terminal has this size now, in characters.
    async fn resized(&self, key: &Key, columns: u32, rows: u32) -> Result<(), TaskError>;

    /// What made the sandbox, which is there.
    fn ran(&self) -> Result<Ran, TaskError>;

    /// How often something of the sandbox was killed for want of memory.
    fn oom_kills(&self) -> u64;

    /// Whether a container was killed because it had more memory than it may have, by itself and not by the sandbox.
    fn is_over_its_limit(&self, _: &str) -> bool {
        false
    }

    /// Forgets an exec that has ended.
    async fn delete_exec(&self, key: &Key);

    /// Removes a container and, with the last one, the sandbox. Idempotent, and all there is to undo of Create.
    async fn delete(&self, id: &str);

    /// Kills all that runs in the sandbox.
    async fn end(&self);
}

/// The backend that was chosen for a pod. Nothing is made yet.
pub fn open(maker: &Maker, place: Place, settings: &Settings) -> Result<Arc<dyn Backend>, TaskError> {
    match maker {
        Maker::Gvisor(runsc) => Ok(Arc::new(Gvisor::open(place, runsc.as_deref(), settings.gvisor.control)?)),
        Maker::Delegate(name, settings) => Ok(Arc::new(Delegate::open(place, name, settings)?)),
    }
}

/// Removes what a pod has left on disk; its sandbox is gone.
pub fn forget(dir: &Path) {
    Runsc::new(dir).forget();
}

/// Removes what a killed shim has left of one container, from disk alone: `theirs` is containerd's bundle of it. Idempotent.
pub fn sweep(place: &Place, id: &str, theirs: &Path) -> io::Result<()> {
    // First: whatever else does not let go, no secret stays.
    let run_dirs = paths::run_dir(&place.dir);
    match id == place.group {
        true => run_dir::wipe_all(&run_dirs),
        false => run_dir::wipe(&run_dirs.join(id)),
    }
    match delegate::Shim::of(place) {
        Some(shim) => delegate::sweep(&shim, id)?,
        None => gvisor::sweep::all(place, id, theirs)?,
    }
    let _ = fs::remove_dir_all(paths::bundle(&place.dir, id));
    if id == place.group || is_forgotten(&place.dir) {
        forget(&place.dir);
    }
    Ok(())
}

/// A shim that ends as it should has removed all of it, while a runsc of ours ran that makes the directory of its log anew.
fn is_forgotten(dir: &Path) -> bool {
    let left: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    left == ["runsc.log"]
}
