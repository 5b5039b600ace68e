//! etcd on a node of a test's: one server on the loopback of its network namespace, whose data outlives its kills.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use super::network::Network;
use super::{parts, wait_until};

/// An etcd that `scripts/setup` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's.
    V3_4,
    /// The newest.
    V3_7,
}

/// A server.
pub struct Etcd<'a> {
    network: &'a Network,
    program: PathBuf,
    process: Mutex<Option<Child>>,
}

impl<'a> Etcd<'a> {
    /// What pool-agent.toml says of it.
    pub const SETTINGS: &'static str = "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";

    /// Starts one, and waits until it answers.
    pub fn start(network: &'a Network, version: Version) -> Self {
        let etcd = Self { network, program: parts::etcd(version), process: Mutex::default() };
        etcd.start_again();
        etcd
    }

    /// Starts it again, with its data, and waits until it answers.
    pub fn start_again(&self) {
        let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
        let mut command = self.network.host.command(self.program.to_str().unwrap());
        command.args(["--name", "test", "--log-level", "error", "--unsafe-no-fsync"]);
        command.arg("--data-dir").arg(self.network.node.path("etcd"));
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *self.process.lock().unwrap() = Some(command.spawn().unwrap());
        wait_until("etcd answers", || self.is_healthy());
    }

    fn is_healthy(&self) -> bool {
        let asked = self.network.host.inside(|| {
            let mut stream = TcpStream::connect("127.0.0.1:2379")?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        asked.is_ok_and(|answer| answer.contains("\"health\":\"true\""))
    }

    /// Kills it, and waits for its end.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
