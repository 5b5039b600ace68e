//! The node that is measured, and its agent over the socket: requests whose answers are timed before they are read.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::etcd::{ENDPOINT, Etcd};
use crate::harness::Setup;
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::Agent;

/// The pool that is measured.
pub const POOL: &str = "bench";
/// What claims ask for: a rule by address and one by name.
const POLICY: &str = "[[rules]]\ndestination = \"93.184.215.18\"\nports = [9000]\naction = \"Allow\"\n
[[rules]]\ndestination = \"open.creto.net\"\nports = [443]\naction = \"Allow\"\n";
/// Hundreds of sandboxes are gone within.
const CLEARED: Duration = Duration::from_secs(600);
/// For whom.
const AGENT: &str = "bench";

/// A network with a node in it, whose files are where a machine has them: what a reboot empties in memory, as /run is, and the rest on
/// an ext4 with a journal. (To make a file on one without costs the more the more were removed in the last minutes.)
pub fn network() -> Network {
    let (room, lib_mib) = (Some(4 << 20), Some(2048));
    let setup = Setup { bundles_kib: room, run_kib: room, lib_mib, ..Setup::default() };
    Network::with(setup, &[("web", POLICY)], "")
}

/// A node with its agent, and a client of it.
pub struct Bench<'a> {
    pub agent: PoolAgent<'a>,
    owner: Agent,
    _etcd: Option<Etcd>,
}

/// An answer, and when it came.
pub struct Answer {
    pub took: Duration,
    pub at: Instant,
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body, of an answer that is a good one.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert!((200..300).contains(&self.status), "{}: {text}", self.status);
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

impl<'a> Bench<'a> {
    /// Starts the agent over this store, with an agent to claim for and an empty pool.
    pub fn start(network: &'a Network, store: &str, sandboxes: usize) -> Self {
        let limits = format!("[api.rate]\nanonymous = 0\n[limits]\nsandboxes = {sandboxes}"); // read as often as one likes
        let (etcd, settings) = match store {
            "etcd" => {
                let etcd = Etcd::start(&network.host, &network.node.path("etcd"));
                (Some(etcd), format!("{limits}\n[store]\nkind = \"etcd\"\nendpoints = [{ENDPOINT:?}]"))
            }
            _ => (None, limits),
        };
        let owner = Agent::register(&network.node, AGENT, 1);
        let agent = PoolAgent::start(network, &settings);
        let bench = Self { agent, owner, _etcd: etcd };
        let scaling = json!({"minReady": 0, "maxReady": sandboxes, "maxWarming": 4});
        let pool = json!({"name": POOL, "template": {"spec": {"image": BUSYBOX}}, "scaling": scaling});
        bench.client().ask("POST", "/v1/warm-pools", &pool).json();
        bench
    }

    /// A connection of its own.
    pub fn client(&self) -> Client {
        let path = self.agent.network.node.path("creto/run/pool-agent.sock");
        Client { stream: BufReader::new(UnixStream::connect(path).unwrap()) }
    }

    /// What a claim asks for: an identity, a policy, and a command that speaks and stays.
    pub fn claim(&self, on_empty: &str) -> Value {
        json!({
            "agent": self.owner.id, "networkPolicy": "web", "onEmpty": on_empty, "timeout": "60s",
            "command": ["/bin/sh", "-c", "echo first; exec sleep 1000"],
        })
    }

    /// So many members are to wait; how long until they do. Fewer where `enough` says so first.
    pub fn fill(&self, members: usize, mut enough: impl FnMut() -> bool) -> (usize, Duration) {
        let (mut client, began) = (self.client(), Instant::now());
        self.keep(members);
        loop {
            let ready = client.ask("GET", &format!("/v1/warm-pools/{POOL}/stats"), &Value::Null).json()["ready"]
                .as_u64()
                .unwrap() as usize;
            if ready >= members || enough() {
                return (ready, began.elapsed());
            }
            pause(Duration::from_millis(100));
        }
    }

    /// So many are kept from here on. Those that wait already stay for a minute.
    pub fn keep(&self, members: usize) {
        self.client().ask("PATCH", &format!("/v1/warm-pools/{POOL}"), &json!({"minReady": members})).json();
    }

    /// Ends what was claimed.
    pub fn end(&self, ids: &[String]) {
        let mut client = self.client();
        for id in ids {
            let ended = client.ask("DELETE", &format!("/v1/sandboxes/{id}?force=true"), &Value::Null);
            assert!([200, 404].contains(&ended.status), "{id}: {}", String::from_utf8_lossy(&ended.body));
        }
    }

    /// Nothing of what was made is left.
    pub fn clear(&self) {
        let mut client = self.client();
        client.ask("DELETE", &format!("/v1/warm-pools/{POOL}"), &Value::Null);
        client.ask("DELETE", "/v1/sandboxes?force=true", &Value::Null);
        let mut left =
            || client.ask("GET", "/v1/sandboxes", &Value::Null).json()["sandboxes"].as_array().map_or(0, Vec::len);
        let began = Instant::now();
        while left() > 0 {
            assert!(began.elapsed() < CLEARED, "{} sandboxes are left", left());
            pause(Duration::from_millis(500));
        }
    }

    /// Where a sandbox's output goes.
    pub fn log(&self, id: &str) -> PathBuf {
        self.agent.network.node.path(&format!("creto/lib/logs/{id}.log"))
    }
}

/// HTTP/1.1 over the agent's socket, kept open.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Asks, and times the whole answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let kind = "Content-Type: application/json\r\n";
        let asked = format!("{method} {path} HTTP/1.1\r\nHost: creto\r\n{kind}Content-Length: {length}\r\n\r\n{body}");
        let began = Instant::now();
        self.stream.get_mut().write_all(asked.as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the agent hung up");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { took: began.elapsed(), at: Instant::now(), status, body }
    }
}

#[expect(clippy::disallowed_methods, reason = "each thread of the bench is its own")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
