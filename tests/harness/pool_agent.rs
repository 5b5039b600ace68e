//! creto-pool-agent on a node of a test's, as an operator starts it, and asked by the client.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::network::Network;
use super::process::Finished;
use super::{parts, poll, wait_until};

/// The agent of a node.
pub struct PoolAgent<'a> {
    /// Where it runs.
    pub network: &'a Network,
    process: Mutex<Option<Child>>,
}

impl<'a> PoolAgent<'a> {
    /// Starts it, with the network that we ship on another subnet than the harness', and waits until it is healthy.
    pub fn start(network: &'a Network, settings: &str) -> Self {
        let agent = Self::installed(network, settings);
        agent.restart();
        agent
    }

    /// Writes its configuration; nothing runs yet.
    pub fn installed(network: &'a Network, settings: &str) -> Self {
        let node = &network.node;
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/cni/10-creto.conflist");
        let ipam = node.path("ipam").display().to_string();
        let conflist = fs::read_to_string(shipped).unwrap();
        let conflist = conflist.replace("/run/creto/ipam", &ipam).replace("10.89.0.0/16", "10.88.0.0/16");
        let path = node.path("creto/etc/10-creto.conflist");
        fs::write(&path, conflist).unwrap();
        let config = format!(
            "holder = {:?}\n{settings}\n[containerd]\naddress = {:?}\nstate = {:?}\nnamespace = {:?}\nsnapshotter = {:?}\n\
             [network]\nconflist = {path:?}\n",
            parts::hold(),
            node.address(),
            node.path("state"),
            node.namespace(),
            node.snapshotter(),
        );
        fs::write(node.path("creto/etc/pool-agent.toml"), config).unwrap();
        Self { network, process: Mutex::default() }
    }

    /// Starts it, after it has ended, and waits until it is healthy.
    pub fn restart(&self) {
        self.launch();
        let healthy = poll(|| (self.cli(&["health"]).status == 0).then_some(()));
        assert!(healthy.is_some(), "creto-pool-agent is not healthy; its log:\n{}", self.log());
    }

    /// Starts it, and does not wait for it.
    pub fn launch(&self) {
        let node = &self.network.node;
        let log = fs::File::options().create(true).append(true).open(node.path("agent.log")).unwrap();
        let mut command = self.network.host.command(parts::pool_agent().to_str().unwrap());
        command.arg("--root").arg(node.path("creto")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        *self.process.lock().unwrap() = Some(command.spawn().unwrap());
    }

    /// Starts it where it has ended by itself, as a service manager does.
    pub fn revive(&self) {
        let ended = self.process.lock().unwrap().as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.launch();
        }
    }

    /// Sends it a signal that it outlives.
    pub fn signal(&self, signal: Signal) {
        let pid = self.process.lock().unwrap().as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid as i32), signal).unwrap();
    }

    /// Ends it by this signal, and waits for its end.
    pub fn stop(&self, signal: Signal) {
        let mut child = self.process.lock().unwrap().take().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
    }

    /// How many callers it has at its socket.
    pub fn connections(&self) -> usize {
        let socket = self.network.node.path("creto/run/pool-agent.sock").display().to_string();
        // The kernel makes both ends of a connection in the client's namespace: this one.
        let all = fs::read_to_string("/proc/thread-self/net/unix").unwrap();
        // Num RefCount Protocol Flags Type St Inode Path: one that listens is of state 01, one that is connected of 03 (unix(7)).
        let is_connected = |line: &&str| line.ends_with(&*socket) && line.split_whitespace().nth(5) == Some("03");
        all.lines().filter(is_connected).count()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.network.node.path("agent.log")).unwrap_or_default()
    }

    /// The client to its end.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Finished {
        self.network.node.cli(args)
    }

    /// The same, where it must succeed; with the agent's log where it does not.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let done = self.cli(&[args, &["--json"]].concat());
        assert_eq!(done.status, 0, "{args:?}: {}\n{}", done.stderr, self.log());
        serde_json::from_slice(&done.stdout).unwrap()
    }

    /// Waits until so many members of a pool are ready.
    #[track_caller]
    pub fn wait_ready(&self, pool: &str, members: u64) {
        let ready = poll(|| (self.json(&["pool", "stats", pool])["ready"] == members).then_some(()));
        assert!(
            ready.is_some(),
            "{members} members of {pool} are not ready: {}\n{}",
            self.json(&["pool", "stats", pool]),
            self.log()
        );
    }

    /// Takes all away that it has made, and waits until it is gone.
    #[track_caller]
    pub fn clear(&self) {
        for pool in self.json(&["pool", "list"]).as_array().unwrap() {
            self.cli(&["pool", "delete", pool["pool"].as_str().unwrap()]).ok();
        }
        self.cli(&["terminate", "--all", "--force"]).ok();
        wait_until("no sandbox is left", || self.cli(&["list"]).ok().is_empty());
        self.stop(Signal::SIGTERM);
        self.network.node.assert_nothing_left();
    }
}

impl Drop for PoolAgent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "what a failing test needs to be understood")]
            {
                eprintln!("creto-pool-agent's log:\n{}", self.log());
            }
        }
        if let Some(mut child) = self.process.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
