//! Behind the fence's nat redirect, in network namespaces of the test's own (as root): an answer must find its way back through
//! conntrack, also where the route back prefers another source address than the one that the question arrived at.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use egress::worker::dns::DnsSettings;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use nix::sched::{CloneFlags, setns};

use super::node::{Node, hear, question, receive, send, udp_and_tcp};

const SANDBOX: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// A host and a sandbox, joined by a veth; both are gone with it.
struct Link {
    host: String,
    sandbox: String,
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in [&self.host, &self.sandbox] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

impl Link {
    /// `port` is where the sandbox's port 53 leads.
    fn new() -> Self {
        let link = Self {
            host: format!("creto-dns-h{}", std::process::id()),
            sandbox: format!("creto-dns-s{}", std::process::id()),
        };
        let Self { host, sandbox } = &link;
        for command in [
            format!("ip netns add {host}"),
            format!("ip netns add {sandbox}"),
            format!("ip -n {host} link add veth0 type veth peer name eth0 netns {sandbox}"),
            format!("ip -n {host} link set lo up"),
            format!("ip -n {host} address add 10.88.0.1/32 dev lo"),
            format!("ip -n {host} address add 10.77.0.1/32 dev veth0"),
            format!("ip -n {host} link set veth0 up"),
            format!("ip -n {host} route add {SANDBOX}/32 dev veth0 src 10.88.0.1"),
            format!("ip -n {sandbox} address add {SANDBOX}/24 dev eth0"),
            format!("ip -n {sandbox} link set eth0 up"),
            format!("ip -n {sandbox} route add default via 10.77.0.1"),
        ] {
            run(&command);
        }
        link
    }

    fn redirect(&self, port: u16) {
        let host = &self.host;
        for rule in [
            "add table ip redirected".to_owned(),
            "add chain ip redirected pre { type nat hook prerouting priority dstnat ; }".to_owned(),
            format!("add rule ip redirected pre meta l4proto {{ tcp, udp }} th dport 53 redirect to :{port}"),
        ] {
            run(&format!("ip netns exec {host} nft {rule}"));
        }
    }
}

/// Does something in a network namespace; what sockets it makes stay there.
fn within<T: Send + 'static>(namespace: &str, make: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let there = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        make()
    };
    std::thread::spawn(there).join().unwrap()
}

#[tokio::test]
async fn an_answer_finds_its_way_back_through_the_redirect() {
    let link = Link::new();
    let sockets = within(&link.host, || udp_and_tcp(Ipv4Addr::UNSPECIFIED));
    let node = Node::start_on(sockets, [SANDBOX, Ipv4Addr::LOCALHOST], DnsSettings::default());
    link.redirect(node.port);
    // Whichever resolver the sandbox believes in, ours answers, in that one's name.
    for asked in [Ipv4Addr::new(10, 77, 0, 1), ELSEWHERE] {
        let socket = within(&link.sandbox, move || {
            let socket = UdpSocket::bind((SANDBOX, 0)).unwrap();
            socket.connect((asked, 53)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
        socket.send(&question("api.example.com.", RecordType::A).to_vec().unwrap()).await.unwrap();
        assert_eq!(hear(&socket).await.metadata.response_code, ResponseCode::NoError, "{asked}");
    }
    let sandbox = link.sandbox.clone();
    let connecting = move || {
        let stream = std::net::TcpStream::connect((ELSEWHERE, 53)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let stream = tokio::task::spawn_blocking(move || within(&sandbox, connecting)).await.unwrap();
    let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
    send(&mut stream, &question("evil.example.org.", RecordType::A).to_vec().unwrap()).await;
    assert_eq!(receive(&mut stream).await.unwrap().metadata.response_code, ResponseCode::Refused);
}
