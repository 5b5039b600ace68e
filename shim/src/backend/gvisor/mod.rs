//! gVisor: `runsc` by its command line for a sandbox's life, by its control socket for all that happens in it.

pub mod capabilities;
pub mod cli;
pub mod control;
pub mod probe;
pub mod urpc;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::task::{Exit, KILLED};
use crate::{paths, reaper};

use cli::{Network, Runsc};
use control::Control;
pub use control::Target;
use urpc::CallError;

/// One pod's sandbox.
pub struct Gvisor {
    dir: PathBuf,
    root_id: String,
    runsc: Runsc,
    control: OnceLock<Control>,
    pid: OnceLock<i32>,
}

impl Gvisor {
    /// Nothing is made yet; `group` names the container that the sandbox is made for.
    pub fn new(dir: PathBuf, group: &str) -> Self {
        Self {
            runsc: Runsc::new(&dir),
            root_id: paths::runsc_id(group),
            dir,
            control: OnceLock::new(),
            pid: OnceLock::new(),
        }
    }

    /// Where runsc finds a container's spec.
    pub fn bundle(&self, id: &str) -> PathBuf {
        paths::bundle(&self.dir, id)
    }

    /// runsc's name for the container that the sandbox was made for.
    pub fn root_id(&self) -> &str {
        &self.root_id
    }

    /// Whether the sandbox lives and dies with this container.
    pub fn is_root(&self, id: &str) -> bool {
        paths::runsc_id(id) == self.root_id
    }

    /// The sandbox is, or will be, one of this runsc.
    pub fn choose(&self, id: &str, runsc: Option<&Path>) -> Result<(), TaskError> {
        if self.is_root(id) {
            return self.runsc.choose(runsc).map_err(|e| TaskError::host("keeping which runsc to use", e));
        }
        match (runsc, self.runsc.chosen()) {
            (Some(asked), Some(has)) if asked == has => Ok(()),
            (None, _) => Ok(()),
            (Some(asked), has) => {
                let (asked, has) = (asked.display(), has.unwrap_or_else(|| "the runsc in PATH".into()));
                let why =
                    format!("runsc {asked}: the pod's sandbox was made with {}; give both the same", has.display());
                Err(TaskError::Invalid(why))
            }
        }
    }

    fn control(&self) -> Result<&Control, TaskError> {
        if let Some(control) = self.control.get() {
            return Ok(control);
        }
        let socket = self.runsc.control_socket(&self.root_id)?;
        Ok(self.control.get_or_init(|| Control::new(&socket)))
    }

    /// Makes a container, and with the first one the sandbox. Its init gets these descriptors, or a terminal whose
    /// primary is sent to the console socket. Returns the sandbox's pid on the host.
    pub async fn create(
        &self,
        id: &str,
        stdio: Option<[OwnedFd; 3]>,
        console_socket: Option<&Path>,
        systemd_cgroup: bool,
    ) -> Result<i32, TaskError> {
        if !paths::has_room(&self.dir) {
            let dir = self.dir.display();
            return Err(TaskError::Invalid(format!(
                "{dir} is too long for a socket's name: choose a shorter CRETO_ROOT"
            )));
        }
        let pid =
            self.runsc.create(&self.bundle(id), &paths::runsc_id(id), stdio, console_socket, systemd_cgroup).await?;
        Ok(*self.pid.get_or_init(|| pid))
    }

    /// Runs the container's init, from a checkpoint where one is named. A further container of a pod takes its
    /// descriptors only here.
    pub async fn start(
        &self,
        id: &str,
        checkpoint: Option<&Path>,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<(), TaskError> {
        let network = if self.has_interface() { Network::Sandbox } else { Network::Loopback };
        let id = paths::runsc_id(id);
        match checkpoint {
            None => self.runsc.start(&id, network, stdio).await,
            Some(image) => self.runsc.restore(&id, network, image).await,
        }
    }

    /// Whether the sandbox's network namespace has more than a loopback. Where it has not, there is nothing to copy,
    /// and runsc would copy not even a loopback that nobody brought up.
    fn has_interface(&self) -> bool {
        let Some(pid) = self.pid.get() else { return true };
        let interfaces = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        // Two lines of headings, then `name: counters`.
        interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).any(|name| name.trim() != "lo")
    }

    /// Saves the sandbox's state into a directory; without `leave_running` the sandbox ends.
    pub async fn checkpoint(&self, id: &str, image: &Path, leave_running: bool) -> Result<(), TaskError> {
        self.runsc.checkpoint(&paths::runsc_id(id), image, leave_running).await
    }

    /// Removes a container and, with the first one, the sandbox. Idempotent.
    pub async fn delete(&self, id: &str) {
        if let Err(error) = self.runsc.delete(&paths::runsc_id(id)).await {
            tracing::warn!(sandbox = id, %error, "runsc left something");
        }
        let _ = std::fs::remove_dir_all(self.bundle(id));
    }

    /// Resolves with the end of a container's init, whose sandbox has this pid.
    pub async fn exit(&self, id: &str, pid: i32) -> Exit {
        if self.is_root(id) {
            return reaper::exit_of(pid).await; // the sandbox process ends with its root container's status
        }
        match self.control() {
            Ok(control) => exit(control.wait(&paths::runsc_id(id)).await),
            Err(_) => exit(Ok(KILLED)),
        }
    }

    /// Starts a process in a container; returns its pid inside the sandbox.
    pub async fn exec(&self, id: &str, p: &ExecProcess, pty: bool, fds: &[OwnedFd; 3]) -> Result<i32, TaskError> {
        let started = self.control()?.exec(&paths::runsc_id(id), p, pty, fds).await;
        started.map_err(|why| TaskError::host(format!("exec of {:?} in the sandbox", p.program()), why))
    }

    /// Resolves with the end of an exec.
    pub async fn exec_exit(&self, id: &str, inner_pid: i32) -> Exit {
        match self.control() {
            Ok(control) => exit(control.wait_pid(&paths::runsc_id(id), inner_pid).await),
            Err(_) => exit(Ok(KILLED)),
        }
    }

    /// Sends a signal.
    pub async fn signal(&self, id: &str, target: Target, signal: u32) -> Result<(), TaskError> {
        match self.control()?.signal(&paths::runsc_id(id), target, signal).await {
            Ok(()) => Ok(()),
            // The number was checked before; what is left is that nobody is there.
            Err(CallError::Refused(why)) => Err(TaskError::NotFound(format!("process: {why}"))),
            Err(CallError::Gone(_)) => Err(TaskError::NotFound("the sandbox's process".into())),
            Err(error) => Err(TaskError::host("signalling the sandbox", error)),
        }
    }

    /// The host's processes of a container beside the sandbox itself, which all share.
    pub fn gofer(&self, id: &str) -> Option<u32> {
        self.runsc.gofer(&self.root_id, &paths::runsc_id(id))
    }

    /// Freezes or thaws the whole sandbox.
    pub async fn pause(&self, pause: bool) -> Result<(), TaskError> {
        self.control()?.pause(pause).await.map_err(|e| TaskError::host("freezing or thawing the sandbox", e))
    }

    /// Removes what is left on disk; the sandbox must be gone.
    pub fn forget(&self) {
        self.runsc.forget();
    }
}

/// A sandbox that cannot say how a process ended is gone, and the process with it.
fn exit(status: Result<u32, CallError>) -> Exit {
    let status = status.unwrap_or_else(|error| {
        tracing::debug!(%error, "no exit status from the sandbox");
        KILLED
    });
    Exit { status, at: SystemTime::now() }
}
