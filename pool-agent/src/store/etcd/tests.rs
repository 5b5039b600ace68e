use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::store::contract::PROMISES;

/// A real etcd on loopback, whose data goes with it.
struct Server {
    process: Child,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start() -> (Self, Etcd) {
        // Somebody may take the ports before etcd does: then it ends, and others are tried.
        for _ in 0..10 {
            let server = Self::begin();
            if let Some(started) = server.answers().await {
                return started;
            }
        }
        panic!("etcd does not start: see its output above");
    }

    fn begin() -> Self {
        let data = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [client, peer] = [&ports[0], &ports[1]].map(|port| format!("http://{}", port.local_addr().unwrap()));
        drop(ports);
        let started = Command::new("etcd")
            .args(["--name", "test", "--log-level", "error", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdout(Stdio::null())
            .spawn();
        let process = started.expect("this test needs etcd: run scripts/setup system");
        Self { process, endpoint: client, _data: data }
    }

    async fn answers(mut self) -> Option<(Self, Etcd)> {
        loop {
            if let Ok(etcd) = Etcd::connect(std::slice::from_ref(&self.endpoint)).await {
                return Some((self, etcd));
            }
            if self.process.try_wait().unwrap().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Nothing is there any more.
async fn empty(etcd: &Etcd) {
    let all = etcd_client::DeleteOptions::new().with_prefix();
    etcd.txn(Vec::new(), vec![TxnOp::delete("/creto/", Some(all))]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_every_promise_of_a_store() {
    let (_server, etcd) = Server::start().await;
    for (name, promise) in PROMISES {
        println!("{name}");
        empty(&etcd).await;
        promise(Arc::new(etcd.clone())).await;
    }
}
