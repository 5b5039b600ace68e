//! What the gate costs: bytes a second through it beside a direct connection and beside a CONNECT proxy (tinyproxy, from PATH:
//! `scripts/setup tinyproxy`), and what it adds to a connect. Loopback, one thread for the gate, another for both ends.
//! Goals: docs/benchmarks.md (≥ 60 % of direct; ≤ 1 ms p99 added).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use egress::policy::{Action, CompiledPolicy, Destination, Fqdn, Policy, Rule};
use egress::protocol::SandboxKey;
use egress::worker::gate::{Gate, Metrics, Names, Open, Resolve, Settings, Unresolved};
use egress::worker::{Attempt, Attempts, Authorizable, Authorizer, Binding, Bindings, Effective, Unauthorized};
use tokio::sync::watch;

const NAME: &str = "a.example.com";
const TOTAL: usize = 4 << 30;
const CONNECTS: usize = 2_000;

struct OneName;

struct Held(Fqdn);

impl AsRef<Fqdn> for Held {
    fn as_ref(&self) -> &Fqdn {
        &self.0
    }
}

impl Names for OneName {
    type Held = Held;

    fn hold(&self, _: &SandboxKey, _: Ipv4Addr) -> Option<Held> {
        Fqdn::parse(NAME).ok().map(Held)
    }
}

struct At(SocketAddr);

impl Resolve for At {
    async fn resolve(&self, _: &Fqdn, _: u16, _: &Effective) -> Result<Vec<SocketAddr>, Unresolved> {
        Ok(vec![self.0])
    }
}

struct Nobody;

impl Authorizer for Nobody {
    async fn authorize(&self, _: &Binding, _: Authorizable<'_>, _: u16) -> Result<(), Unauthorized> {
        Err(Unauthorized::Refused)
    }
}

impl Attempts for Nobody {
    fn tell(&self, _: Attempt) {}
}

fn gate_to(host: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let destination = Destination::Name(Fqdn::parse(NAME).unwrap());
        let (id, action) = ("1".to_owned(), Action::Allow);
        let rule = Rule { id, destination, ports: vec![], protocol: None, action, allow_special: false };
        let policy = CompiledPolicy::new(Policy { rules: vec![rule] });
        let (_policies, effective) = watch::channel(Some(Arc::new(Effective { policy, generation: 1 })));
        let sandbox = SandboxKey { namespace: "default".to_owned(), id: "a".to_owned() };
        let bindings = Arc::new(Bindings::default());
        bindings.put(&["127.0.0.1".parse().unwrap()], &Arc::new(Binding { sandbox, agent: None, effective }));
        let gate = Arc::new(Gate {
            settings: Settings::default(),
            bindings,
            names: OneName,
            resolve: At(host),
            authorizer: Nobody,
            attempts: Arc::new(Nobody),
            open: Open::new(&Metrics::default()),
            metrics: Metrics::default(),
            original_destination: Box::new(|_| Ok(SocketAddr::new(Ipv4Addr::new(198, 18, 0, 1).into(), 443))),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(gate.serve(listener)).unwrap();
    });
    address
}

/// A CONNECT proxy, as who filters by name in a proxy would use it.
struct Proxy {
    process: Child,
    address: SocketAddr,
    _files: tempfile::TempDir,
}

impl Proxy {
    fn start(host: SocketAddr) -> Self {
        let files = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 600\nMaxClients 200\nAllow 127.0.0.1\nConnectPort {}\nLogFile \"{}\"\nLogLevel Error\n",
            address.port(),
            host.port(),
            files.path().join("log").display(),
        );
        fs::write(files.path().join("conf"), config).unwrap();
        let started = Command::new("tinyproxy").arg("-d").arg("-c").arg(files.path().join("conf")).spawn();
        let process = started.expect("tinyproxy is not in PATH: scripts/setup tinyproxy installs it");
        while TcpStream::connect(address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        Self { process, address, _files: files }
    }

    fn connect(&self, host: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.0 200") || head.starts_with(b"HTTP/1.1 200"), "{}", head.escape_ascii());
        stream
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Gigabytes a second from a host to a client.
fn throughput(host: &TcpListener, connect: &dyn Fn() -> TcpStream) -> f64 {
    let host = host.try_clone().unwrap();
    let send = thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let block = vec![7; 1 << 18];
        for _ in 0..TOTAL / block.len() {
            stream.write_all(&block).unwrap();
        }
    });
    let mut client = connect();
    client.write_all(&[0]).unwrap();
    let (begun, mut block, mut got) = (Instant::now(), vec![0; 1 << 18], 0);
    while got < TOTAL {
        got += match client.read(&mut block).unwrap() {
            0 => panic!("{got} bytes of {TOTAL}"),
            some => some,
        };
    }
    send.join().unwrap();
    got as f64 / begun.elapsed().as_secs_f64() / 1e9
}

/// From connect to the first byte back, at the median and at p99.
fn connects(host: &TcpListener, connect: &dyn Fn() -> TcpStream) -> (Duration, Duration) {
    let host = host.try_clone().unwrap();
    let answer = thread::spawn(move || {
        for _ in 0..CONNECTS {
            let (mut stream, _) = host.accept().unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(&[1]).unwrap();
        }
    });
    let mut took: Vec<_> = (0..CONNECTS)
        .map(|_| {
            let begun = Instant::now();
            let mut client = connect();
            client.write_all(&[0]).unwrap();
            client.read_exact(&mut [0]).unwrap();
            begun.elapsed()
        })
        .collect();
    answer.join().unwrap();
    took.sort();
    (took[CONNECTS / 2], took[CONNECTS * 99 / 100])
}

fn main() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = host.local_addr().unwrap();
    let (gate, proxy) = (gate_to(to), Proxy::start(to));
    let direct = || TcpStream::connect(to).unwrap();
    let gate = || TcpStream::connect(gate).unwrap();
    let proxied = || proxy.connect(to);
    for round in 1..=3 {
        let [d, g, p] = [&direct as &dyn Fn() -> TcpStream, &gate, &proxied].map(|connect| throughput(&host, connect));
        println!("{round}: direct {d:.2} GB/s, gate {g:.2} GB/s: {:.0} %, tinyproxy {p:.2} GB/s", 100.0 * g / d);
        let [(d50, d99), (g50, g99), (p50, p99)] =
            [&direct as &dyn Fn() -> TcpStream, &gate, &proxied].map(|connect| connects(&host, connect));
        println!(
            "{round}: connect to first byte: direct p50 {d50:?} p99 {d99:?}, gate p50 {g50:?} p99 {g99:?}, tinyproxy p50 {p50:?} p99 {p99:?}"
        );
    }
}
