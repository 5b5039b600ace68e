use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::store::contract::PROMISES;

/// The system's, and the newest.
fn programs() -> [PathBuf; 2] {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup");
    let asked = Command::new(setup).args(["--path", "etcd-3.7"]).output().unwrap();
    let newest = Path::new(String::from_utf8_lossy(&asked.stdout).trim()).join("bin/etcd");
    assert!(newest.exists(), "this test needs etcd 3.7: run scripts/setup etcd-3.7");
    ["etcd".into(), newest]
}

/// A real etcd on loopback, whose data goes with it.
struct Server {
    process: Child,
    program: PathBuf,
    data: tempfile::TempDir,
    client: String,
    peer: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    async fn start(program: &Path) -> (Self, Etcd) {
        // Somebody may take the ports before etcd does: then it ends, and others are tried.
        for _ in 0..10 {
            let ports: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let [client, peer] = [&ports[0], &ports[1]].map(|port| format!("http://{}", port.local_addr().unwrap()));
            drop(ports);
            let data = tempfile::tempdir().unwrap();
            let (process, program) = (begin(program, &data, &client, &peer), program.to_owned());
            let mut server = Self { process, program, data, client, peer };
            if let Some(etcd) = server.answers().await {
                return (server, etcd);
            }
        }
        panic!("etcd does not start: see its output above");
    }

    async fn answers(&mut self) -> Option<Etcd> {
        loop {
            if let Ok(etcd) = Etcd::connect(std::slice::from_ref(&self.client)).await {
                return Some(etcd);
            }
            if self.process.try_wait().unwrap().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// With its data, at the same place.
    fn start_again(&mut self) {
        self.process = begin(&self.program, &self.data, &self.client, &self.peer);
    }
}

fn begin(program: &Path, data: &tempfile::TempDir, client: &str, peer: &str) -> Child {
    let started = Command::new(program)
        .args(["--name", "test", "--logger", "zap", "--log-level", "error", "--unsafe-no-fsync"])
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .stdout(Stdio::null())
        .spawn();
    started.expect("this test needs etcd: run scripts/setup system")
}

/// Nothing is there any more.
async fn empty(etcd: &Etcd) {
    let all = etcd_client::DeleteOptions::new().with_prefix();
    etcd.txn(Vec::new(), vec![TxnOp::delete("/creto/", Some(all))]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_every_promise_of_a_store() {
    for program in programs() {
        let (_server, etcd) = Server::start(&program).await;
        for (name, promise) in PROMISES {
            empty(&etcd).await;
            let kept = tokio::spawn(promise(Arc::new(etcd.clone()))).await;
            assert!(kept.is_ok(), "{name} on {}", program.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_down_is_an_error_and_one_that_is_back_has_all_that_was_kept() {
    for program in programs() {
        is_back_with_all_that_was_kept(&program).await;
    }
}

async fn is_back_with_all_that_was_kept(program: &Path) {
    let (mut server, etcd) = Server::start(program).await;
    let drain = Drain { node: "node-1".parse().unwrap(), backend: None };
    etcd.set_drained(&drain, true).await.unwrap();
    server.kill();
    for error in [etcd.health().await.unwrap_err(), etcd.set_drained(&drain, false).await.unwrap_err()] {
        assert!(matches!(&error, StoreError::Unavailable(why) if why.starts_with("etcd")), "{error}");
    }
    let error = Etcd::connect(std::slice::from_ref(&server.client)).await.unwrap_err().to_string();
    assert!(error.contains(&server.client) && error.contains("etcdctl endpoint health"), "{error}");
    server.start_again();
    while etcd.health().await.is_err() {
        assert!(server.process.try_wait().unwrap().is_none(), "etcd has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(etcd.drained(&drain.node).await.unwrap(), [drain]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_longer_than_a_page_is_read_whole_and_nothing_of_a_neighbour() {
    let (_server, etcd) = Server::start("etcd".as_ref()).await;
    let count = PAGE as usize * 2 + 1;
    for n in 0..count {
        etcd.txn(Vec::new(), vec![TxnOp::put(format!("/creto/v1/a/{n:04}"), "", None)]).await.unwrap();
    }
    for neighbour in ["/creto/v1/a", "/creto/v1/a0", "/creto/v1/b/0"] {
        etcd.txn(Vec::new(), vec![TxnOp::put(neighbour, "", None)]).await.unwrap();
    }
    let keys = |kvs: Vec<KeyValue>| kvs.iter().map(|kv| kv.key_str().unwrap().to_owned()).collect::<Vec<_>>();
    let all: Vec<_> = (0..count).map(|n| format!("/creto/v1/a/{n:04}")).collect();
    assert_eq!(keys(etcd.range("/creto/v1/a/", "/creto/v1/a/").await.unwrap()), all);
    assert_eq!(keys(etcd.range("/creto/v1/a/", "/creto/v1/a/0990").await.unwrap()), all[990..]);
}
