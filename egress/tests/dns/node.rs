//! A node with our DNS on it, and its sandboxes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress::policy::{Action, CompiledPolicy, Destination, Fqdn, Policy, Rule};
use egress::protocol::SandboxKey;
use egress::worker::dns::{Dns, DnsSettings, Names, Sockets, serve};
use egress::worker::{Attempt, Attempts, Binding, Bindings, Effective, Outcome};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// The sandboxes' addresses.
pub const OURS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
pub const THEIRS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);
/// An address of no sandbox.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 13);
/// Longer than anything here takes, so that waiting for it means that something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn fqdn(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

pub fn sandbox(address: Ipv4Addr) -> SandboxKey {
    SandboxKey { namespace: "k8s.io".to_owned(), id: format!("sandbox-{address}") }
}

/// Allows api.example.com and all below example.net, but secret.example.net.
pub fn policy() -> CompiledPolicy {
    let rule = |id: &str, destination, action| Rule {
        id: id.to_owned(),
        destination,
        ports: Vec::new(),
        protocol: None,
        action,
        allow_special: false,
    };
    CompiledPolicy::new(Policy {
        rules: vec![
            rule("api", Destination::Name(fqdn("api.example.com")), Action::Allow),
            rule("zone", Destination::Zone(fqdn("example.net")), Action::Allow),
            rule("never", Destination::Name(fqdn("secret.example.net")), Action::Deny),
        ],
    })
}

/// Keeps what it is told.
#[derive(Default)]
pub struct Told(Mutex<Vec<Attempt>>);

impl Attempts for Told {
    fn tell(&self, attempt: Attempt) {
        self.0.lock().unwrap().push(attempt);
    }
}

impl Told {
    /// Destination and reason of each, in order.
    pub fn all(&self) -> Vec<(String, String)> {
        let why = |outcome: &Outcome| match outcome {
            Outcome::Denied(why) => why.clone(),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().iter().map(|a| (a.destination.clone(), why(&a.outcome))).collect()
    }
}

pub struct Node {
    pub dns: Arc<Dns>,
    pub names: Arc<Names>,
    pub told: Arc<Told>,
    /// Where it answers, by UDP and TCP; bound to all addresses of the host.
    pub port: u16,
    policies: Vec<watch::Sender<Option<Arc<Effective>>>>,
    serving: AbortHandle,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Two sockets of one free port.
pub fn udp_and_tcp(address: Ipv4Addr) -> (UdpSocket, std::net::TcpListener) {
    loop {
        let udp = UdpSocket::bind((address, 0)).unwrap();
        if let Ok(tcp) = std::net::TcpListener::bind((address, udp.local_addr().unwrap().port())) {
            return (udp, tcp);
        }
    }
}

impl Node {
    pub fn start(settings: DnsSettings) -> Self {
        Self::start_on(udp_and_tcp(Ipv4Addr::UNSPECIFIED), [OURS, THEIRS], settings)
    }

    pub fn start_on(
        (udp, tcp): (UdpSocket, std::net::TcpListener),
        sandboxes: [Ipv4Addr; 2],
        settings: DnsSettings,
    ) -> Self {
        let bindings = Arc::new(Bindings::default());
        let mut policies = Vec::new();
        for address in sandboxes {
            let (sender, effective) = watch::channel(Some(Arc::new(Effective { policy: policy(), generation: 1 })));
            let binding = Arc::new(Binding { sandbox: sandbox(address), agent: None, effective });
            bindings.put(&[IpAddr::V4(address)], &binding);
            policies.push(sender);
        }
        let (names, told) = (Names::new(&settings, |_| ()), Arc::new(Told::default()));
        let dns = Arc::new(Dns::new(bindings, names.clone(), told.clone(), settings));
        let port = udp.local_addr().unwrap().port();
        let serving = tokio::spawn(serve(dns.clone(), Sockets { udp: vec![udp], tcp: vec![tcp] })).abort_handle();
        Self { dns, names, told, port, policies, serving }
    }

    /// Gives both sandboxes another policy, or none: detached.
    pub fn set(&self, policy: Option<CompiledPolicy>) {
        let effective = policy.map(|policy| Arc::new(Effective { policy, generation: 2 }));
        self.policies.iter().for_each(|sender| drop(sender.send_replace(effective.clone())));
    }

    /// A connected socket: it hears only what comes from the address that it asks.
    pub async fn socket(&self, from: Ipv4Addr, at: Ipv4Addr) -> tokio::net::UdpSocket {
        let socket = tokio::net::UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect((at, self.port)).await.unwrap();
        socket
    }

    /// Asks by UDP, and again where the question may have been lost in a flood.
    pub async fn ask(&self, from: Ipv4Addr, name: &str, kind: RecordType) -> Message {
        let socket = self.socket(from, Ipv4Addr::LOCALHOST).await;
        let question = question(name, kind);
        let mut buffer = [0; 4096];
        let asking = async {
            loop {
                socket.send(&question.to_vec().unwrap()).await.unwrap();
                if let Ok(length) = timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
                    return length.unwrap();
                }
            }
        };
        let length = timeout(PATIENCE, asking).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    pub async fn connect(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).await.unwrap()
    }
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub async fn hear(socket: &tokio::net::UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

pub async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(u16::try_from(message.len()).unwrap()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

/// The next answer; none once the other side has closed.
pub async fn receive(stream: &mut TcpStream) -> Option<Message> {
    let read = async {
        let length = usize::from(stream.read_u16().await.ok()?);
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await.ok()?;
        Some(Message::from_vec(&message).unwrap())
    };
    timeout(PATIENCE, read).await.unwrap()
}
