//! The network around a node of a test's own: the node in a namespace, an internet beyond it, sandboxes' namespaces on its
//! bridge, and creto-egress between them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::internet::{Internet, RESOLVER};
use super::netns::Netns;
use super::wire::Wire;
use super::{Node, Setup, parts, poll};

/// The bridge's address: what sandboxes have for a router.
pub const ROUTER: &str = "10.89.0.1";
/// The node's address on its way to the internet.
pub const NODE: &str = "81.2.69.1";

/// A node with a network.
pub struct Network {
    /// The node; its containerd runs in `host`.
    pub node: Node,
    /// All packets at the internet's end of the node's uplink.
    pub wire: Wire,
    /// The namespace of the node.
    pub host: Netns,
    /// What is beyond.
    pub internet: Internet,
    egress: Mutex<Option<Child>>,
}

impl Network {
    /// A node made of `setup`, with these policies (a name and TOML each) and this egress.toml.
    pub fn with(setup: Setup, policies: &[(&str, &str)], egress: &str) -> Self {
        let (host, internet) = (Netns::new("node"), Internet::new());
        host.ip(&format!("link add uplink type veth peer name downlink netns {}", internet.netns.name()));
        for (netns, link, v4, v6) in [
            (&host, "uplink", "81.2.69.1/24", "2a01:db9::1/64"),
            (&internet.netns, "downlink", "81.2.69.2/24", "2a01:db9::2/64"),
        ] {
            netns.ip(&format!("addr add {v4} dev {link}"));
            netns.ip(&format!("addr add {v6} dev {link} nodad"));
            netns.ip(&format!("link set {link} up"));
        }
        host.ip("link add br0 type bridge");
        host.ip("link set br0 address 02:00:00:00:00:01");
        host.ip(&format!("addr add {ROUTER}/24 dev br0"));
        host.ip("addr add fd89::1/64 dev br0 nodad");
        host.ip("link set br0 up");
        host.ip("route add default via 81.2.69.2");
        host.ip("-6 route add default via 2a01:db9::2");
        internet.netns.ip("route add 10.89.0.0/24 via 81.2.69.1");
        internet.netns.ip("-6 route add fd89::/64 via 2a01:db9::1");
        host.sysctl("net.ipv4.ip_forward", "1");
        host.sysctl("net.ipv6.conf.all.forwarding", "1");
        let node = Node::with(Setup { netns: Some(host.path()), ..setup });
        let dir = node.path("creto/etc/policies.d");
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in policies {
            fs::write(dir.join(format!("{name}.toml")), text).unwrap();
        }
        let config = format!("{egress}\n[dns.upstream]\nservers = [{{ address = \"{RESOLVER}:53\" }}]\n");
        fs::write(node.path("creto/etc/egress.toml"), config).unwrap();
        let wire = Wire::tap(&internet.netns);
        let network = Self { node, wire, host, internet, egress: Mutex::default() };
        network.start_egress();
        network
    }

    /// Starts creto-egress as a service manager does that has opened its socket, and waits until it answers.
    pub fn start_egress_activated(&self) {
        let script = "import os, socket, sys
path = sys.argv[3] + '/run/egress.sock'
os.path.exists(path) and os.unlink(path)
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen()
s.fileno() == 3 or os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])";
        let mut command = self.host.command("/usr/bin/python3");
        command.args(["-c", script]).arg(parts::egress());
        self.start_egress_by(command);
    }

    /// Starts creto-egress, and waits until it answers.
    pub fn start_egress(&self) {
        self.start_egress_by(self.host.command(parts::egress().to_str().unwrap()));
    }

    fn start_egress_by(&self, mut command: Command) {
        let log = fs::File::options().create(true).append(true).open(self.node.path("egress.log")).unwrap();
        command.arg("--root").arg(self.node.path("creto")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        *self.egress.lock().unwrap() = Some(command.spawn().unwrap());
        let answers = poll(|| self.node.cli(&["network-policy", "list", "--sandboxes"]).status.eq(&0).then_some(()));
        assert!(answers.is_some(), "creto-egress does not answer; its log:\n{}", self.egress_log());
    }

    /// Ends it by this signal, and waits for its end.
    pub fn stop_egress(&self, signal: Signal) {
        let mut child = self.egress.lock().unwrap().take().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
    }

    /// What it has logged.
    pub fn egress_log(&self) -> String {
        fs::read_to_string(self.node.path("egress.log")).unwrap_or_default()
    }

    /// A namespace for a sandbox, wired to the bridge; its address ends in `number`, and it has a MAC to match.
    pub fn join(&self, number: u8) -> Netns {
        let netns = Netns::new("sb");
        self.host.ip(&format!("link add sb{number} type veth peer name eth0 netns {}", netns.name()));
        self.host.ip(&format!("link set sb{number} master br0 up"));
        netns.ip(&format!("link set eth0 address {}", mac(number)));
        netns.ip(&format!("addr add {}/24 dev eth0", address(number)));
        netns.ip(&format!("addr add fd89::{number:x}/64 dev eth0 nodad"));
        netns.ip("link set eth0 up");
        netns.ip(&format!("route add default via {ROUTER}"));
        netns.ip("-6 route add default via fd89::1");
        netns
    }

    /// Starts a sandbox in a namespace, under a policy; it sleeps, and has Python and the probe.
    #[track_caller]
    pub fn run_in(&self, netns: &Netns, id: &str, policy: &str) {
        self.node.run_detached(id, &refs(&self.options(netns, policy)), &["sleep", "1000"]);
    }

    /// What `ctr run` needs for that.
    pub fn options(&self, netns: &Netns, policy: &str) -> Vec<String> {
        let network = ["--with-ns".to_owned(), format!("network:{}", netns.path().display())];
        network.into_iter().chain(self.options_without_network(policy)).collect()
    }

    /// The same for a sandbox whose network somebody else wires.
    pub fn options_without_network(&self, policy: &str) -> Vec<String> {
        let mut options = vec!["--annotation".to_owned(), format!("creto.dev/network-policy={policy}")];
        options.extend(probe_mounts());
        options
    }

    /// Tries something from inside a sandbox: the probe's answers, one for each line of words.
    #[track_caller]
    pub fn probe(&self, id: &str, tries: &[Value]) -> Vec<Value> {
        static EXECS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let exec = format!("p{}", EXECS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let words: Vec<String> = tries.iter().map(Value::to_string).collect();
        let command: Vec<&str> =
            ["/usr/bin/python3", "/probe.py"].into_iter().chain(words.iter().map(String::as_str)).collect();
        answers(&self.node.exec(id, &exec, &command).ok(), tries)
    }

    /// The same as root in a sandbox's namespace, as if nothing of the sandbox held any more.
    #[track_caller]
    pub fn probe_as_root(&self, netns: &Netns, tries: &[Value]) -> Vec<Value> {
        let mut command = netns.command("/usr/bin/python3");
        command.arg(probe()).args(tries.iter().map(Value::to_string)).stdin(Stdio::null());
        let output = command.output().unwrap();
        answers(&String::from_utf8_lossy(&output.stdout), tries)
    }

    /// All packets that got out from where sandboxes are.
    pub fn leaked(&self) -> Vec<super::wire::Packet> {
        self.wire.saw(|packet| is_sandbox(packet.from))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "what a failing test needs to be understood")]
            {
                eprintln!("creto-egress's log:\n{}", self.egress_log());
            }
        }
        if let Some(mut child) = self.egress.lock().unwrap().take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

/// Borrowed.
pub fn refs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// A sandbox's address, by its number.
pub fn address(number: u8) -> String {
    format!("10.89.0.{number}")
}

/// A sandbox's MAC address, by its number.
pub fn mac(number: u8) -> String {
    format!("02:00:00:00:01:{number:02x}")
}

fn is_sandbox(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [10, 89, 0] && v4.octets()[3] != 1,
        IpAddr::V6(v6) => v6.segments()[0] == 0xfd89 && v6.segments()[7] != 1,
    }
}

fn answers(printed: &str, tries: &[Value]) -> Vec<Value> {
    let all: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), tries.len(), "{printed} for {tries:?}");
    all
}

fn probe() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/probe.py"))
}

/// The host's Python, read-only, in an image that has none.
fn probe_mounts() -> Vec<String> {
    let option = |(from, to): (PathBuf, &str)| format!("type=bind,src={},dst={to},options=rbind:ro", from.display());
    probe_files().into_iter().flat_map(|file| ["--mount".to_owned(), option(file)]).collect()
}

/// What of the host the probe needs, and where.
pub fn probe_files() -> Vec<(PathBuf, &'static str)> {
    let python = Command::new("/usr/bin/python3").arg("--version").output();
    assert!(python.is_ok_and(|output| output.status.success()), "python3 is not installed: run scripts/setup system");
    let mut files = vec![(PathBuf::from("/usr"), "/usr")];
    files.extend(["/lib", "/lib64"].into_iter().filter_map(|link| Some((fs::canonicalize(link).ok()?, link))));
    files.push((probe().to_owned(), "/probe.py"));
    files
}
