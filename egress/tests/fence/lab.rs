//! A node with sandboxes, and an internet beyond it, in network namespaces of their own. Namespaces vanish with the lab.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use egress::daemon::fence::Fences;
use egress::daemon::netns::{self, Network, Port};
use egress::daemon::ruleset::Settings;
use nix::sched::{CloneFlags, setns, unshare};

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long we wait for what must not happen.
pub const SILENCE: Duration = Duration::from_millis(300);

pub const SETTINGS: Settings = Settings { dns_port: 5300, gate_port: 5301, log_group: Some(5), host_connects: true };
pub const BRIDGE_MAC: &str = "02:00:00:00:88:01";

/// The test's thread is the node.
pub struct Lab {
    id: u32,
    names: Vec<String>,
}

/// Runs a command on the node.
pub fn run(command: &str) -> String {
    let words: Vec<_> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Lab {
    /// A node with a bridge (10.88.0.1, fd00:88::1) and an internet (203.0.113.2 to .4, 2001:db8::2).
    pub fn new(bridge_netfilter: bool) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let id = std::process::id() * 100 % 1_000_000 + LABS.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self { id, names: vec![] };
        run("ip link set lo up");
        let flag = if bridge_netfilter { 1 } else { 0 };
        for key in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"] {
            run(&format!("sysctl -qw {key}={flag}"));
        }
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0");
        run(&format!("ip link add br0 address {BRIDGE_MAC} type bridge"));
        run("ip addr add 10.88.0.1/16 dev br0");
        run("ip -6 addr add fd00:88::1/64 dev br0 nodad");
        run("ip link set br0 up");
        let internet = lab.namespace("internet");
        run(&format!("ip link add up0 type veth peer name eth0 netns {internet}"));
        run("ip addr add 203.0.113.1/24 dev up0");
        run("ip -6 addr add 2001:db8::1/64 dev up0 nodad");
        run("ip link set up0 up");
        for address in ["203.0.113.2/24", "203.0.113.3/24", "203.0.113.4/24"] {
            run(&format!("ip -n {internet} addr add {address} dev eth0"));
        }
        run(&format!("ip -n {internet} -6 addr add 2001:db8::2/64 dev eth0 nodad"));
        run(&format!("ip -n {internet} link set eth0 up"));
        run("ip route add default via 203.0.113.2");
        run("ip -6 route add default via 2001:db8::2");
        for route in ["10.0.0.0/8 via 203.0.113.1", "fd00::/16 via 2001:db8::1"] {
            run(&format!("ip -n {internet} route add {route}"));
        }
        lab
    }

    fn namespace(&mut self, name: &str) -> String {
        let full = self.name(name);
        run(&format!("ip netns add {full}"));
        self.names.push(full.clone());
        run(&format!("ip -n {full} link set lo up"));
        full
    }

    pub fn name(&self, name: &str) -> String {
        format!("creto-{}-{name}", self.id)
    }

    /// A sandbox on the bridge, 10.88.0.`number` and fd00:88::`number`.
    pub fn bridged(&mut self, name: &str, number: u32) -> Vec<Port> {
        self.sandbox(name, number, "10.88.0", "fd00:88:", "/16");
        run(&format!("ip link set h{number} master br0"));
        self.look(name)
    }

    /// A sandbox with a wire of its own to the node, 10.`number`.0.2.
    pub fn ptp(&mut self, name: &str, number: u32) -> Vec<Port> {
        self.sandbox(name, number, &format!("10.{number}.0"), &format!("fd00:{number}:"), "/24");
        run(&format!("ip addr add 10.{number}.0.1/24 dev h{number}"));
        run(&format!("ip -6 addr add fd00:{number}::1/64 dev h{number} nodad"));
        self.look(name)
    }

    fn sandbox(&mut self, name: &str, number: u32, v4: &str, v6: &str, length: &str) {
        let full = self.namespace(name);
        run(&format!("ip link add h{number} type veth peer name eth0 netns {full}"));
        run(&format!("ip link set h{number} up"));
        run(&format!("ip -n {full} addr add {v4}.{number}{length} dev eth0"));
        run(&format!("ip -n {full} -6 addr add {v6}:{number}/64 dev eth0 nodad"));
        run(&format!("ip -n {full} link set eth0 up"));
        run(&format!("ip -n {full} route add default via {v4}.1"));
        run(&format!("ip -n {full} -6 route add default via {v6}:1"));
    }

    /// As if of another sandbox: a veth and an address more, and nobody behind it.
    pub fn copies(&self, ports: &[Port], number: u16) -> Vec<Port> {
        let copy = |port: &Port| {
            let mut port = port.clone();
            port.interface.host_name = format!("m{number}");
            run(&format!("ip link add m{number} type veth peer name n{number}"));
            port.interface.addresses = vec![IpAddr::from([10, 77, (number / 250) as u8, (number % 250) as u8 + 1])];
            port
        };
        ports.iter().map(copy).collect()
    }

    pub fn look(&self, name: &str) -> Vec<Port> {
        match netns::look(self.file(name)).unwrap() {
            Network::Wired(ports) => ports,
            Network::Sealed => panic!("{name} is sealed"),
        }
    }

    pub fn file(&self, name: &str) -> File {
        File::open(format!("/run/netns/{}", self.name(name))).unwrap()
    }

    /// Runs in a namespace: sockets that it makes stay there.
    pub fn within<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = self.file(name);
        std::thread::scope(|scope| {
            let work = || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(work).join().unwrap()
        })
    }

    /// A server of the internet that answers whatever it is sent with the address it sees.
    pub fn serve(&self, address: &str) {
        let listener = self.within("internet", || TcpListener::bind(address).unwrap());
        std::thread::spawn(move || answer(&listener));
        let socket = self.within("internet", || UdpSocket::bind(address).unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    pub fn tcp(&self, from: &str, to: &str) -> Reached {
        self.within(from, || tcp(to, PATIENCE))
    }

    /// Where nothing is to be heard.
    pub fn silent(&self, from: &str, to: &str) -> Reached {
        self.within(from, || tcp(to, SILENCE))
    }

    pub fn udp(&self, from: &str, to: &str) -> Reached {
        self.within(from, || udp(to))
    }

    pub fn python(&self, name: &str, program: &str) -> Program {
        let arguments = ["netns", "exec", &self.name(name), "python3", "-c", program];
        let mut child =
            Command::new("ip").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Program { stdin: child.stdin.take().unwrap(), stdout: child.stdout.take().unwrap(), child }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

pub struct Program {
    pub child: Child,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
}

impl Program {
    pub fn finish(mut self) -> String {
        drop(self.stdin);
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }

    pub fn wait_for(&mut self, word: &str) {
        let mut said = String::new();
        while !said.contains(word) {
            let mut byte = [0];
            assert_eq!(self.stdout.read(&mut byte).unwrap(), 1, "ended after {said:?}");
            said.push(byte[0].into());
        }
    }
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// An answer: how the server saw us.
    Yes(IpAddr),
    /// Refused, and we were told.
    Refused,
    /// Nothing was heard.
    Silence,
}

pub fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let mut bytes = [0; 2048];
            while stream.read(&mut bytes).is_ok_and(|length| length > 0) && stream.write_all(peer.as_bytes()).is_ok() {}
        });
    }
}

fn tcp(to: &str, patience: Duration) -> Reached {
    let to: SocketAddr = to.parse().unwrap();
    match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => ask(stream).unwrap_or(Reached::Silence),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Reached::Silence,
        Err(_) => Reached::Refused,
    }
}

pub fn ask(mut stream: TcpStream) -> std::io::Result<Reached> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who am I?")?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes)?;
    Ok(Reached::Yes(seen(&bytes[..length])))
}

fn udp(to: &str) -> Reached {
    let to: SocketAddr = to.parse().unwrap();
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    if socket.send(b"who am I?").is_err() {
        return Reached::Refused;
    }
    let mut bytes = [0; 64];
    match socket.recv(&mut bytes) {
        Ok(length) => Reached::Yes(seen(&bytes[..length])),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Reached::Silence,
        Err(_) => Reached::Refused,
    }
}

fn seen(bytes: &[u8]) -> IpAddr {
    std::str::from_utf8(bytes).unwrap().parse::<IpAddr>().unwrap().to_canonical()
}

pub fn fences() -> Fences {
    Fences::open(SETTINGS).unwrap()
}
