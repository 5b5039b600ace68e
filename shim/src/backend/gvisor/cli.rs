//! `runsc` by its command line: what the control socket cannot do.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::probe::Features;
use crate::error::TaskError;
use crate::{mounts, paths, reaper};

/// What runsc sets up inside the sandbox when it starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The interfaces of the network namespace.
    Sandbox,
    /// Loopback alone.
    Loopback,
}

impl Network {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Sandbox => &[],
            Self::Loopback => &["--network=none"],
        }
    }
}

/// One sandbox's runsc: its own `--root`, for runsc matches ids by prefix within one.
#[derive(Clone, Debug)]
pub struct Runsc {
    dir: PathBuf,
}

impl Runsc {
    /// Keeps its state and log under `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Makes the sandbox one of this runsc, or of the one in PATH. On disk, for `delete` needs the same.
    pub fn choose(&self, program: Option<&Path>) -> io::Result<()> {
        let link = paths::program(&self.dir);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => program.map_or(Ok(()), |program| symlink(program, link)),
        }
    }

    /// What `choose` chose.
    pub fn chosen(&self) -> Option<PathBuf> {
        fs::read_link(paths::program(&self.dir)).ok()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("runsc.log")
    }

    fn command(&self, verb: &str) -> Command {
        self.command_with(&[], verb)
    }

    /// `flags` are runsc's own, which go before the verb.
    fn command_with(&self, flags: &[&str], verb: &str) -> Command {
        let program = self.chosen().unwrap_or_else(|| PathBuf::from("runsc"));
        let features = Features::probe(&program, &paths::state_root());
        let mut command = Command::new(program);
        command.args(flags);
        // --overlay2=none: writes reach the snapshot, so that commit and diff see them.
        command.arg("--root").arg(paths::runsc_root(&self.dir)).arg("--log").arg(self.log());
        command.args(["--log-format=json", "--overlay2=none"]).args(features.args()).arg(verb);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `runsc create`; the sandbox keeps `stdio`. Returns the host pid.
    pub async fn create(
        &self,
        bundle: &Path,
        id: &str,
        stdio: Option<[OwnedFd; 3]>,
        console_socket: Option<&Path>,
        systemd_cgroup: bool,
    ) -> Result<i32, TaskError> {
        let pid_file = bundle.join("pid");
        let flags: &[&str] = if systemd_cgroup { &["--systemd-cgroup"] } else { &[] };
        let mut command = self.command_with(flags, "create");
        command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        if let Some(socket) = console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(id);
        give(&mut command, stdio);
        self.run(command, "runsc create").await?;
        let text = fs::read_to_string(&pid_file).map_err(|e| TaskError::host("reading runsc's pid file", e))?;
        text.trim().parse().map_err(|e| TaskError::host("reading runsc's pid file", e))
    }

    /// `runsc start`.
    pub async fn start(&self, id: &str, network: Network, stdio: Option<[OwnedFd; 3]>) -> Result<(), TaskError> {
        let mut command = self.command_with(network.flags(), "start");
        command.arg(id);
        give(&mut command, stdio);
        self.run(command, "runsc start").await
    }

    /// `runsc restore` of a container that was created and not started.
    pub async fn restore(&self, id: &str, network: Network, image: &Path) -> Result<(), TaskError> {
        let mut command = self.command_with(network.flags(), "restore");
        command.arg("--detach").arg("--image-path").arg(image).arg(id);
        self.run(command, "runsc restore").await
    }

    /// `runsc checkpoint`.
    pub async fn checkpoint(&self, id: &str, image: &Path, leave_running: bool) -> Result<(), TaskError> {
        let mut command = self.command("checkpoint");
        command.arg("--image-path").arg(image);
        if leave_running {
            command.arg("--leave-running");
        }
        command.arg(id);
        self.run(command, "runsc checkpoint").await
    }

    /// `runsc delete --force`; idempotent.
    pub async fn delete(&self, id: &str) -> Result<(), TaskError> {
        let mut command = self.command("delete");
        command.args(["--force", id]);
        self.run(command, "runsc delete").await
    }

    /// The same without an async runtime, for the shim's `delete` action.
    pub fn delete_blocking(&self, id: &str) -> io::Result<()> {
        self.command("delete").args(["--force", id]).status().map(drop)
    }

    /// Removes the sandbox's directory. runsc keeps an empty network namespace mounted in its root.
    pub fn forget(&self) {
        mounts::unmount_all(&paths::runsc_root(&self.dir).join("null-netns"));
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "the sandbox's directory stays");
        }
    }

    async fn run(&self, mut command: Command, what: &str) -> Result<(), TaskError> {
        // Only this call's part of the log explains this call's failure.
        let _ = OpenOptions::new().create(true).append(true).open(self.log());
        let before = fs::metadata(self.log()).map_or(0, |meta| meta.len());
        let exit = reaper::run_to_end(&mut command).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                TaskError::host(what, "there is no runsc in PATH; install gVisor (scripts/setup runsc)")
            }
            _ => TaskError::host(what, error),
        })?;
        if exit.status == 0 {
            return Ok(());
        }
        let why = last_error(&self.log(), before).unwrap_or_else(|| format!("exit status {}", exit.status));
        Err(TaskError::host(what, why))
    }

    /// Where the sandbox listens; runsc writes it into its state file.
    pub fn control_socket(&self, root_id: &str) -> Result<PathBuf, TaskError> {
        let state = self.state(root_id, root_id)?;
        let path = find(&state, "controlSocketPath").and_then(|v| v.as_str()).map(PathBuf::from);
        path.ok_or_else(|| TaskError::host("reading runsc's state", "it names no controlSocketPath"))
    }

    /// How the sandbox intercepts system calls, by its own word; `unknown` where the build does not say.
    pub fn platform(&self, root_id: &str) -> Result<String, TaskError> {
        let state = self.state(root_id, root_id)?;
        let metadata = find(&state, "metricMetadata").and_then(|metadata| metadata.get("platform")?.as_str());
        Ok(metadata.unwrap_or("unknown").to_owned())
    }

    /// The host process that opens a container's files; none where runsc runs without.
    pub fn gofer(&self, root_id: &str, id: &str) -> Option<u32> {
        let pid = self.state(root_id, id).ok()?.get("goferPid")?.as_u64()?;
        u32::try_from(pid).ok().filter(|pid| *pid != 0)
    }

    fn state(&self, root_id: &str, id: &str) -> Result<serde_json::Value, TaskError> {
        let path = paths::runsc_root(&self.dir).join(format!("{id}_sandbox:{root_id}.state"));
        let text = fs::read(path).map_err(|e| TaskError::host("reading runsc's state", e))?;
        serde_json::from_slice(&text).map_err(|e| TaskError::host("reading runsc's state", e))
    }
}

fn give(command: &mut Command, stdio: Option<[OwnedFd; 3]>) {
    if let Some([stdin, stdout, stderr]) = stdio {
        command.stdin(stdin).stdout(stdout).stderr(stderr);
    }
}

fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    let object = value.as_object()?;
    object.get(key).or_else(|| object.values().find_map(|v| find(v, key)))
}

/// The last error that runsc logged after this offset.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let bytes = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(bytes.get(from as usize..)?).into_owned();
    text.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let bad = matches!(entry.get("level")?.as_str()?, "error" | "fatal" | "warning");
        bad.then(|| entry.get("msg").and_then(|m| m.as_str()).map(str::to_owned)).flatten()
    })
}
