//! etcd for a node, with its data in the node's directory; it syncs as etcd does.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::netns::Netns;

/// Where it listens, in the node's own network namespace.
pub const ENDPOINT: &str = "http://127.0.0.1:2379";

/// A server; it ends with this.
pub struct Etcd(Child);

impl Etcd {
    /// Starts one inside a namespace.
    pub fn start(host: &Netns, dir: &Path) -> Self {
        let program = ["/usr/bin/etcd", "/usr/local/bin/etcd"].into_iter().find(|path| Path::new(path).exists());
        let mut command: Command = host.command(program.expect("etcd is not installed: run scripts/setup system"));
        command.arg("--data-dir").arg(dir).args(["--logger", "zap", "--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().unwrap());
        let answers = crate::harness::poll(|| {
            host.inside(|| std::net::TcpStream::connect("127.0.0.1:2379").is_ok()).then_some(())
        });
        answers.expect("etcd does not answer");
        server
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
