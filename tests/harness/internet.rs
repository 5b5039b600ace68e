//! An internet of a test's own: a namespace beyond the node's router, in which DNS, TLS, HTTP and other servers answer at
//! every address that a test wants, and count who came.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::netns::Netns;

/// Names that the internet knows, and where they are.
pub const NAMES: &[(&str, &[&str])] = &[
    ("open.creto.net", &["93.184.215.14"]),
    ("shut.creto.net", &["93.184.215.15"]),
    ("asked.creto.net", &["93.184.215.16"]),
    ("a.cdn.creto.net", &["151.101.1.57"]),
    ("b.cdn.creto.net", &["151.101.1.57"]),
    ("metadata.creto.net", &["169.254.169.254"]),
    ("inside.creto.net", &["10.89.0.1"]),
    ("mapped.creto.net", &["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]),
    ("six.creto.net", &["2a02:26f0::1", "93.184.215.17"]),
];
/// What else is there: by address alone.
const OTHERS: &[&str] = &["8.8.8.8", "93.184.215.18", "fd00:ec2::254", "64:ff9b::5db8:d70e", "10.99.0.1"];
/// The resolver that the node asks.
pub const RESOLVER: &str = "9.9.9.9";

/// The internet.
pub struct Internet {
    /// Where it is.
    pub netns: Netns,
    queries: Arc<Mutex<Vec<String>>>,
    visits: Arc<Mutex<Vec<Visit>>>,
    /// What a name answers instead, one answer after the other; the last one stays.
    instead: Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
}

/// Somebody came to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// From where.
    pub from: IpAddr,
    /// To which address and port.
    pub to: SocketAddr,
    /// What was said: TLS's name, HTTP's host, or `udp`.
    pub said: String,
}

impl Internet {
    /// Brings it up; the router is one hop away from `uplink`, the name of the interface in it.
    pub fn new() -> Self {
        let netns = Netns::new("inet");
        let named = NAMES.iter().flat_map(|(_, addresses)| addresses.iter());
        for address in named.chain(OTHERS).chain([&RESOLVER]) {
            let address: IpAddr = address.parse().unwrap();
            if address.is_ipv6() && address.to_canonical().is_ipv4() || address == IpAddr::from([10, 89, 0, 1]) {
                continue; // no interface can have it, or another one has
            }
            let length = if address.is_ipv4() { 32 } else { 128 };
            let options = if address.is_ipv4() { "" } else { "nodad" };
            netns.ip(&format!("addr replace {address}/{length} dev lo {options}"));
        }
        let names: Vec<String> = NAMES.iter().map(|(name, _)| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let (queries, visits, instead) = Default::default();
        let internet = Self { netns, queries, visits, instead };
        internet.serve(Arc::new(tls));
        internet
    }

    /// The names that resolvers were asked for, in order; lower case, without the final dot.
    pub fn queries(&self) -> Vec<String> {
        self.queries.lock().unwrap().clone()
    }

    /// Who came to servers that are no resolvers.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }

    /// Lets a name answer these, one after the other.
    pub fn answer_instead(&self, name: &str, answers: &[&[&str]]) {
        let parsed = answers.iter().map(|answer| answer.iter().map(|a| a.parse().unwrap()).collect()).collect();
        self.instead.lock().unwrap().insert(name.to_owned(), parsed);
    }

    fn serve(&self, tls: Arc<ServerConfig>) {
        let anywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for host in anywhere {
            for port in [22, 25, 80, 443, 853, 8080, 9000] {
                let listener = self.netns.inside(|| listen(SocketAddr::new(host, port)));
                let (visits, tls) = (self.visits.clone(), tls.clone());
                thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let (visits, tls) = (visits.clone(), tls.clone());
                        thread::spawn(move || visit(stream, &visits, tls));
                    }
                });
            }
            let listener = self.netns.inside(|| listen(SocketAddr::new(host, 53)));
            let names = (self.queries.clone(), self.instead.clone());
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        let Ok(()) = stream.read_exact(&mut query) else { break };
                        let Some(reply) = answer(&query, &names.0, &names.1) else { break };
                        let _ = stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat());
                    }
                }
            });
        }
        // An answer must come from where the question went, so a socket for each address.
        let addresses = NAMES.iter().flat_map(|(_, addresses)| addresses.iter()).chain(OTHERS).chain([&RESOLVER]);
        for address in addresses.collect::<std::collections::BTreeSet<_>>() {
            for port in [53, 443, 9000] {
                let at = SocketAddr::new(address.parse().unwrap(), port);
                let Ok(socket) = self.netns.inside(|| UdpSocket::bind(at)) else { continue };
                let (names, visits) = ((self.queries.clone(), self.instead.clone()), self.visits.clone());
                thread::spawn(move || {
                    let mut packet = [0; 1500];
                    while let Ok((length, from)) = socket.recv_from(&mut packet) {
                        let reply = match port {
                            53 => answer(&packet[..length], &names.0, &names.1),
                            _ => {
                                let said = "udp".to_owned();
                                visits.lock().unwrap().push(Visit { from: from.ip(), to: at, said });
                                Some(packet[..length].to_vec())
                            }
                        };
                        let _ = reply.map(|reply| socket.send_to(&reply, from));
                    }
                });
            }
        }
    }
}

fn listen(at: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    if at.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&at.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

/// What a server does, by its port: 22 speaks first; 443 is TLS; 8080 sends for as long as it is listened to; 9000 sends back
/// what it gets; others are HTTP.
fn visit(mut stream: TcpStream, visits: &Mutex<Vec<Visit>>, tls: Arc<ServerConfig>) {
    let (Ok(from), Ok(to)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let came = |said: &str| {
        let said = said.to_owned();
        visits.lock().unwrap().push(Visit { from: from.ip(), to, said });
    };
    match to.port() {
        22 => {
            came("ssh");
            let _ = stream.write_all(b"SSH-2.0-creto\r\n");
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        }
        443 | 853 => {
            let Ok(connection) = ServerConnection::new(tls) else { return };
            let mut stream = StreamOwned::new(connection, stream);
            let request = head(&mut stream);
            let name = stream.conn.server_name().unwrap_or("none").to_owned();
            came(&name);
            if request.is_some() {
                reply(&mut stream, &format!("tls {name} at {}", to.ip()));
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
        8080 => {
            came("stream");
            let chunk = [b'.'; 1024];
            while stream.write_all(&chunk).is_ok() {
                #[expect(clippy::disallowed_methods, reason = "a server that is slow on purpose")]
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        9000 => {
            came("echo");
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        }
        _ => {
            let Some(request) = head(&mut stream) else { return came("nothing") };
            let host = request.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or("none").to_owned();
            came(&host);
            reply(&mut stream, &format!("http {host} at {}", to.ip()));
        }
    }
}

fn head(stream: &mut impl Read) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 8192 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn reply(stream: &mut impl Write, body: &str) {
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    let _ = stream.flush();
}

type Instead = HashMap<String, Vec<Vec<IpAddr>>>;

fn answer(query: &[u8], queries: &Mutex<Vec<String>>, instead: &Mutex<Instead>) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_ascii().trim_end_matches('.').to_lowercase();
    queries.lock().unwrap().push(name.clone());
    let mut reply = query.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    let mut instead = instead.lock().unwrap();
    let addresses: Option<Vec<IpAddr>> = match instead.get_mut(&name) {
        Some(answers) if answers.len() > 1 => Some(answers.remove(0)),
        Some(answers) => answers.first().cloned(),
        None => NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, addresses)| addresses.iter().map(|a| a.parse().unwrap()).collect()),
    };
    match addresses {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for address in addresses {
                let data = match (question.query_type(), address) {
                    (RecordType::A, IpAddr::V4(v4)) => RData::A(v4.into()),
                    (RecordType::AAAA, IpAddr::V6(v6)) => RData::AAAA(v6.into()),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), 1, data));
            }
        }
    }
    reply.to_vec().ok()
}
