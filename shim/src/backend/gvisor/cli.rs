//! `runsc` by its command line: what the control socket cannot do. What it can do, but not in every build, is in `attached`
//! and `calls`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::control::Target;
use super::inside::Version;
use super::probe::{Features, Known};
use crate::error::TaskError;
use crate::{cgroup, mounts, paths, processes, reaper};

/// How long a killed shim's commands may take to end; containerd gives `delete` 5 s for all.
const SETTLE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);

/// What runsc sets up inside the sandbox when it starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The interfaces of the network namespace.
    Sandbox,
    /// Loopback alone.
    Loopback,
    /// None of its own: its sockets are the host's.
    Host,
}

impl Network {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Sandbox => &[],
            Self::Loopback => &["--network=none"],
            Self::Host => &["--network=host"],
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

    /// Which control groups its sandboxes have inside.
    pub fn inside(&self) -> Version {
        Features::probe(&self.known()).inside()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("runsc.log")
    }

    /// What is remembered of this build.
    pub fn known(&self) -> Known {
        Known::of(&self.chosen().unwrap_or_else(|| PathBuf::from("runsc")), &paths::state_root())
    }

    pub(super) fn command(&self, verb: &str) -> Command {
        self.command_with(&[], verb)
    }

    /// `flags` are runsc's own, which go before the verb.
    fn command_with(&self, flags: &[&str], verb: &str) -> Command {
        self.command_logging(&self.log(), flags, verb)
    }

    pub(super) fn command_logging(&self, log: &Path, flags: &[&str], verb: &str) -> Command {
        let program = self.chosen().unwrap_or_else(|| PathBuf::from("runsc"));
        let features = Features::probe(&self.known());
        let mut command = Command::new(program);
        command.args(flags);
        // --overlay2=none: writes reach the snapshot, so that commit and diff see them.
        command.arg("--root").arg(paths::runsc_root(&self.dir)).arg("--log").arg(log);
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
        network: Network,
    ) -> Result<i32, TaskError> {
        let pid_file = bundle.join("pid");
        let cgroup: &[&str] = if systemd_cgroup { &["--systemd-cgroup"] } else { &[] };
        // What else there will be, only its start finds.
        let network = if network == Network::Host { network.flags() } else { &[] };
        let mut command = self.command_with(&[cgroup, network].concat(), "create");
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

    /// Waits for the commands that a killed shim has left running: what `runsc create` is about to make, `delete` would not
    /// find. One that does not end is killed.
    pub fn settle_blocking(&self) {
        let root = paths::runsc_root(&self.dir);
        let end = Instant::now() + SETTLE;
        loop {
            let left = commands(&root);
            if left.is_empty() {
                return;
            }
            let late = Instant::now() >= end;
            if late {
                for pid in &left {
                    let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "the `delete` action has no other tasks")]
            std::thread::sleep(LOOK);
        }
    }

    /// Kills what is left of a sandbox that nobody else uses any more: one that was killed while it was made has no state that `delete`
    /// would find it by.
    pub fn kill_rest(&self) {
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended meanwhile
        }
    }

    /// All that runs of this sandbox: runsc's own processes, and commands, which join its control group while they make it.
    fn processes(&self) -> Vec<i32> {
        let root = paths::runsc_root(&self.dir);
        [processes::told_in_one_word("root", &root), commands(&root)].concat()
    }

    /// Whether others are in a control group, who have their own life: not our processes, and not those that are about to go, which have no
    /// command line any more.
    pub fn is_shared(&self, group: &Path) -> bool {
        let ours = self.processes();
        let lives = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        let all = cgroup::processes(group).unwrap_or_default();
        all.iter().any(|pid| !ours.contains(pid) && lives(pid))
    }

    /// Removes the sandbox's directory. runsc keeps an empty network namespace mounted in its root.
    pub fn forget(&self) {
        mounts::unmount_all(&paths::runsc_root(&self.dir).join("null-netns"));
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "the sandbox's directory stays");
        }
    }

    /// `runsc kill` of a container's init, of all its processes or, by its pid inside the sandbox, of one.
    pub async fn kill(&self, id: &str, target: Target, signal: u32) -> Result<(), TaskError> {
        let mut command = self.command("kill");
        match target {
            Target::Init => {}
            Target::All => drop(command.arg("--all")),
            // The command line cannot ask who is in the foreground.
            Target::Process(pid) | Target::Foreground(pid) => drop(command.arg("--pid").arg(pid.to_string())),
        }
        command.arg(id).arg(signal.to_string());
        self.run(command, "runsc kill").await
    }

    /// `runsc pause` or `runsc resume`: the whole sandbox, in the name of one of its containers.
    pub async fn pause(&self, id: &str, pause: bool) -> Result<(), TaskError> {
        let (verb, what) = if pause { ("pause", "runsc pause") } else { ("resume", "runsc resume") };
        let mut command = self.command(verb);
        command.arg(id);
        self.run(command, what).await
    }

    async fn run(&self, mut command: Command, what: &str) -> Result<(), TaskError> {
        // Only this call's part of the log explains this call's failure.
        let _ = OpenOptions::new().create(true).append(true).open(self.log());
        let before = fs::metadata(self.log()).map_or(0, |meta| meta.len());
        let exit = reaper::run_to_end(&mut command).await.map_err(|error| not_run(what, &error))?;
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

/// runsc itself could not be started.
pub(super) fn not_run(what: &str, error: &io::Error) -> TaskError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            TaskError::host(what, "there is no runsc in PATH; install gVisor (scripts/setup runsc)")
        }
        _ => TaskError::host(what, error),
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
    said(fs::read(log).ok()?.get(from as usize..)?, &["error", "fatal", "warning"])
}

/// The last message of these levels in a log of runsc's, which has several on a line: it ends no line after an error.
pub(super) fn said(log: &[u8], levels: &[&str]) -> Option<String> {
    let message = |entry: serde_json::Value| {
        let level = entry.get("level")?.as_str()?;
        levels.contains(&level).then(|| entry.get("msg")?.as_str().map(str::to_owned))?
    };
    let last_of = |line: &[u8]| {
        let entries = serde_json::Deserializer::from_slice(line).into_iter::<serde_json::Value>();
        entries.map_while(Result::ok).filter_map(message).last()
    };
    log.rsplit(|byte| *byte == b'\n').find_map(last_of)
}

/// The pids of our own commands of one root. runsc's own processes have it in one word, `--root=…`.
fn commands(root: &Path) -> Vec<i32> {
    processes::told("root", root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_error_is_found_whether_or_not_it_has_a_line_of_its_own() {
        let entry = |level: &str, msg: &str| format!(r#"{{"msg":"{msg}","level":"{level}","time":"2026"}}"#);
        for (log, expected) in [
            (entry("error", "a") + &entry("error", "b"), Some("b")),
            (entry("error", "a") + "\n" + &entry("info", "b") + "\n", Some("a")),
            (entry("error", "a") + r#"{"msg":"cut"#, Some("a")),
            ("panic: oh\n".to_owned() + &entry("error", "a") + "\ngoroutine 1", Some("a")),
            (entry("debug", "a"), None),
            (String::new(), None),
            ("[]17 \"\"".into(), None),
        ] {
            assert_eq!(said(log.as_bytes(), &["error"]).as_deref(), expected, "{log}");
        }
    }

    proptest! {
        #[test]
        fn the_last_error_is_found_among_whatever_stands_before_and_behind_it(
            before in crate::arbitrary::bytes(),
            (message, behind) in (crate::arbitrary::text(), crate::arbitrary::text()),
        ) {
            let entry = serde_json::json!({"msg": message, "level": "error"}).to_string();
            let log = [&before[..], b"\n", entry.as_bytes(), b"}", behind.as_bytes()].concat();
            prop_assert_eq!(said(&log, &["error"]), Some(message));
            prop_assert_eq!(said(&log, &[]), None);
        }
    }

    #[test]
    fn a_running_command_is_told_by_its_root_and_a_sandbox_is_none() {
        let _alone = reaper::ALONE.blocking_lock();
        let root = tempfile::tempdir().unwrap();
        let spawn = |args: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", "read forever", "runsc"]).args(args).stdin(Stdio::piped()).spawn().unwrap()
        };
        let path = root.path().to_str().unwrap();
        let (mut command, mut sandbox) =
            (spawn(&["--root", path, "create"]), spawn(&[&format!("--root={path}"), "boot"]));
        // A child has its parent's command line until it is what it will be.
        while commands(root.path()).is_empty() {}
        assert_eq!(commands(root.path()), [command.id() as i32]);
        while processes::told_in_one_word("root", root.path()).is_empty() {}
        assert_eq!(processes::told_in_one_word("root", root.path()), [sandbox.id() as i32]);
        for child in [&mut command, &mut sandbox] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}
