//! A node of the test's own: a private containerd with the shim under test and a runsc in its PATH, in a directory
//! that vanishes with it. Dropping it checks that nothing was left behind (`leaks`).

mod config;
mod disks;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::{Finished, Running};
use super::{Containerd, Runsc, images, leaks, parts, poll};

/// The runtime's name, as users write it.
pub const RUNTIME: &str = "io.containerd.creto.v2";

/// What a node is made of; the default is the newest of everything.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Which containerd.
    pub containerd: Containerd,
    /// Which runsc.
    pub runsc: Runsc,
    /// Stands in for runsc: `Some` script, or an empty one for no runsc at all.
    pub instead_of_runsc: Option<&'static str>,
    /// A method of the sandbox's control socket that this runsc has under another name, of the same length.
    pub renamed: Option<[&'static str; 2]>,
    /// A tmpfs of so many KiB under containerd's state, where the bundles are.
    pub bundles_kib: Option<u32>,
    /// A tmpfs of so many KiB where the node's own state is that a reboot empties, as /run is.
    pub run_kib: Option<u32>,
    /// An ext4 of so many MiB, with a journal, where what outlives a reboot is kept: whatever the machine's own disk is.
    pub lib_mib: Option<u32>,
    /// runtime.toml; none where it is empty.
    pub settings: String,
    /// What else is in containerd's environment, and so in its shims'.
    pub env: Vec<(&'static str, String)>,
    /// The network namespace that containerd, its shims and `ctr` run in; the host's without.
    pub netns: Option<PathBuf>,
    /// containerd's snapshotter; overlayfs where the file system can carry it, else native.
    pub snapshotter: Option<&'static str>,
    /// With the CRI plugin: then the node's containers are in Kubernetes' namespace.
    pub cri: bool,
}

/// A private containerd and what it runs.
pub struct Node {
    setup: Setup,
    dir: tempfile::TempDir,
    name: String,
    snapshotter: &'static str,
    daemon: Mutex<Option<Child>>,
    ids: Mutex<BTreeSet<String>>,
}

impl Node {
    /// The newest containerd over the newest runsc, with the test image.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// A node made of `setup`, with the test image.
    pub fn with(setup: Setup) -> Self {
        static NODES: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "containerd and runsc need root: run the tests as root");
        // Short, for runsc puts sockets into it; 755, for runsc's gofer walks through it as nobody.
        let dir = tempfile::Builder::new().prefix("cr-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["bin", "cni", "creto/etc", "fifos", "state", "lower", "upper", "work", "merged"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        disks::mount_all(&setup, dir.path());
        let name = format!("t{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let snapshotter = setup.snapshotter.unwrap_or_else(|| images::snapshotter(dir.path()));
        let (daemon, ids) = Default::default();
        let node = Self { setup, dir, name, snapshotter, daemon, ids };
        node.put_runsc();
        if !node.setup.settings.is_empty() {
            fs::write(node.path("creto/etc/runtime.toml"), &node.setup.settings).unwrap();
        }
        node.start_containerd();
        node.import(images::archive());
        node
    }

    /// Has containerd take an OCI archive in.
    pub fn import(&self, image: &[u8]) {
        let archive = self.path("image.tar");
        fs::write(&archive, image).unwrap();
        let archive = archive.to_str().unwrap();
        // containerd 2's own import unpacks for one snapshotter, its client's for any.
        let local = self.setup.snapshotter.map(|_| "--local");
        let import = ["image", "import", "--snapshotter", self.snapshotter].into_iter().chain(local).chain([archive]);
        self.ctr(&import.collect::<Vec<_>>()).ok();
    }

    fn put_runsc(&self) {
        let place = self.path("bin/runsc");
        match self.setup.instead_of_runsc {
            None => match self.setup.renamed {
                None => std::os::unix::fs::symlink(self.setup.runsc.bin().join("runsc"), place).unwrap(),
                Some(names) => put_program(&place, &parts::renamed(self.setup.runsc, names)),
            },
            Some("") => {}
            Some(script) => put_program(&place, script.as_bytes()),
        }
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&self) {
        let cri = self.setup.cri.then_some(self.snapshotter);
        fs::write(self.containerd_config(), config::text(self.dir.path(), self.setup.containerd, cri)).unwrap();
        let log = File::options().create(true).append(true).open(self.path("containerd.log")).unwrap();
        let mut command = self.command(&self.setup.containerd.bin().join("containerd"));
        command.arg("--config").arg(self.containerd_config());
        command.env("PATH", self.containerd_path()).env("CRETO_ROOT", self.path("creto"));
        command.envs(self.setup.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.daemon.lock().unwrap() = Some(command.spawn().unwrap());
        let answers = poll(|| (self.ctr(&["version"]).status == 0).then_some(()));
        assert!(answers.is_some(), "containerd does not answer; its log:\n{}", self.log());
    }

    /// containerd's configuration, once it has been started.
    pub fn containerd_config(&self) -> PathBuf {
        self.path("containerd.toml")
    }

    /// The PATH by which containerd finds the shim, and the shim runsc. `mount` and friends come from the system; a runsc of the
    /// system's does not.
    pub fn containerd_path(&self) -> OsString {
        let own = [self.path("bin"), parts::shim_dir().to_owned(), self.containerd_bin()];
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        std::env::join_paths(own.into_iter().chain(system)).unwrap()
    }

    /// Where its containerd and `ctr` are.
    pub fn containerd_bin(&self) -> PathBuf {
        self.setup.containerd.bin()
    }

    /// Stops containerd as a service manager would; the tasks run on.
    pub fn stop_containerd(&self) {
        if let Some(mut daemon) = self.daemon.lock().unwrap().take() {
            let _ = kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM);
            let ended = poll(|| daemon.try_wait().unwrap());
            if ended.is_none() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }

    /// Kills containerd as a lack of memory would; the tasks run on.
    pub fn kill_containerd(&self) {
        if let Some(mut daemon) = self.daemon.lock().unwrap().take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// The snapshotter that its images are unpacked for.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    /// A program in the node's network namespace; its mounts are the host's.
    fn command(&self, program: &Path) -> Command {
        match &self.setup.netns {
            None => Command::new(program),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.display())).arg(program);
                command
            }
        }
    }

    /// A path in the node's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// What containerd, and the shims in its name, have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("containerd.log")).unwrap_or_default()
    }

    /// The bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.path("state/io.containerd.runtime.v2.task").join(self.namespace()).join(id)
    }

    /// containerd's socket.
    pub fn address(&self) -> PathBuf {
        self.path("c.sock")
    }

    /// The containerd namespace that the node's containers are in.
    pub fn namespace(&self) -> &str {
        if self.setup.cri { "k8s.io" } else { &self.name }
    }

    /// The control group above those of its containers; no two nodes share one.
    pub fn cgroup(&self) -> &str {
        &self.name
    }

    /// All container ids that were ever run here.
    pub fn ids(&self) -> BTreeSet<String> {
        self.ids.lock().unwrap().clone()
    }

    /// `ctr` with these arguments, not yet started.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.setup.containerd.bin().join("ctr"));
        command.arg("--address").arg(self.address()).args(["--namespace", self.namespace()]).args(args);
        command
    }

    /// `ctr` to its end, without input.
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Finished {
        let mut command = self.ctr_command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start_as_is(command).finish()
    }

    /// Remembers an id that a test uses without [`Node::run_args`], so that leaks are looked for under it too.
    pub fn note(&self, id: &str) {
        self.ids.lock().unwrap().insert(id.to_owned());
    }

    /// The command line of `ctr run` for a container of the test image.
    pub fn run_args<'a>(&'a self, id: &'a str, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        self.note(id);
        let mut args = vec!["run", "--runtime", RUNTIME, "--snapshotter", self.snapshotter];
        args.extend(options);
        args.extend([images::BUSYBOX, id]);
        args.extend(command);
        args
    }

    /// `ctr run --rm` to its end.
    #[track_caller]
    pub fn run(&self, id: &str, options: &[&str], command: &[&str]) -> Finished {
        let options: Vec<&str> = [&["--rm"], options].concat();
        self.ctr(&self.run_args(id, &options, command))
    }

    /// `ctr run --rm` with pipes, still running.
    #[track_caller]
    pub fn run_piped(&self, id: &str, options: &[&str], command: &[&str]) -> Running {
        let options: Vec<&str> = [&["--rm"], options].concat();
        Running::start(self.ctr_command(&self.run_args(id, &options, command)))
    }

    /// `ctr run --detach`; the container runs on when this returns. Its output goes to the returned file.
    #[track_caller]
    pub fn run_detached(&self, id: &str, options: &[&str], command: &[&str]) -> PathBuf {
        let output = self.path(&format!("{id}.out"));
        let uri = format!("file://{}", output.display());
        let options: Vec<&str> = [&["--detach", "--log-uri", &uri], options].concat();
        self.ctr(&self.run_args(id, &options, command)).ok();
        output
    }

    /// `ctr task exec` to its end.
    #[track_caller]
    pub fn exec(&self, id: &str, exec_id: &str, command: &[&str]) -> Finished {
        self.ctr(&[&["task", "exec", "--exec-id", exec_id, id], command].concat())
    }

    /// The host pid and the status of a task, as `ctr task ls` prints them.
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let table = self.ctr(&["task", "ls"]).ok();
        let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row[0] == id)?;
        Some((row[1].parse().unwrap(), row[2].to_owned()))
    }

    /// Waits until containerd says that a task is `status`.
    #[track_caller]
    pub fn wait_for_task(&self, id: &str, status: &str) {
        let mut last = None;
        let reached = poll(|| {
            last = self.task(id);
            last.as_ref().is_some_and(|(_, now)| now == status).then_some(())
        });
        assert!(reached.is_some(), "{id} never became {status}: {last:?}");
    }

    /// Kills a task where it still runs, waits for its end, and deletes it and its container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        if self.task(id).is_some_and(|(_, status)| status != "STOPPED") {
            self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
            self.wait_for_task(id, "STOPPED");
        }
        if self.task(id).is_some() {
            self.ctr(&["task", "rm", id]); // its status is the task's
        }
        self.ctr(&["container", "rm", id]).ok();
    }

    /// Host pids of the node's shims.
    pub fn shims(&self) -> Vec<i32> {
        self.processes("containerd-shim-creto-v2")
    }

    /// Host pids of the node's sandboxes.
    pub fn sandboxes(&self) -> Vec<i32> {
        self.processes("runsc-sandbox")
    }

    /// Host pids of the node's processes of one program.
    pub fn processes(&self, program: &str) -> Vec<i32> {
        let of = |p: &leaks::Process| p.command.split(' ').next().is_some_and(|first| first.ends_with(program));
        leaks::processes_of(self.dir.path()).into_iter().filter(of).map(|p| p.pid).collect()
    }

    /// The host pid of the process that was told a path in this directory by a flag.
    #[track_caller]
    pub fn told(&self, flag: &str, directory: &Path) -> i32 {
        let told = format!("{flag} {}", directory.display());
        let all = leaks::processes_of(self.dir.path());
        all.iter().find(|p| p.command.contains(&told)).unwrap_or_else(|| panic!("no {told} in {all:?}")).pid
    }

    /// Checks that, of all containers so far, nothing is left on the machine. They must have been removed.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        let clean = poll(|| {
            left = leaks::of(self);
            left.is_empty().then_some(())
        });
        let (log, named) = (self.log(), left.iter().filter_map(|what| what.rsplit('/').next()));
        let of_it = |line: &&str| named.clone().any(|name| line.contains(name));
        let told: Vec<_> = log.lines().filter(of_it).collect();
        assert!(clean.is_some(), "left behind: {left:#?}\nof these: {told:#?}\ncontainerd's log:\n{}", tail(&log));
    }

    fn sweep(&self) {
        for id in self.ctr(&["container", "ls", "-q"]).text().lines() {
            self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
            poll(|| self.task(id).is_none_or(|(_, status)| status == "STOPPED").then_some(()));
            self.ctr(&["task", "rm", "--force", id]);
            self.ctr(&["container", "rm", id]);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            #[expect(clippy::print_stderr, reason = "what a failing test needs to be understood")]
            {
                eprintln!("containerd's log ({}):\n{}", self.name, tail(&self.log()));
            }
        } else if self.daemon.lock().unwrap().is_none() {
            self.start_containerd();
        }
        // A failing test may leave anything, a hanging shim too: it is cleared away by force, without asking anyone.
        let left = if failing {
            Vec::new()
        } else {
            self.sweep();
            let mut left = Vec::new();
            poll(|| {
                left = leaks::of(self);
                left.is_empty().then_some(())
            });
            left
        };
        self.stop_containerd();
        leaks::clear(self);
        disks::unmount_all(self.dir.path());
        assert!(left.is_empty(), "the test left behind: {left:#?}\ncontainerd's log:\n{}", tail(&self.log()));
    }
}

fn put_program(place: &Path, program: &[u8]) {
    fs::write(place, program).unwrap();
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
}

fn tail(log: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("level=info")).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
