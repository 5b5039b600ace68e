//! An upstream resolver that counts what it is asked, by UDP, TCP and TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use egress::worker::dns::{Server, Transport};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::node::udp_and_tcp;

/// What it answers.
#[derive(Clone, Debug)]
pub enum Says {
    /// These addresses, of the kind that is asked for.
    Addresses(Vec<IpAddr>),
    /// That the name is another's, and that one's addresses.
    Alias(&'static str, Vec<IpAddr>),
    /// That there is no such name.
    NoSuchName,
    /// That something is wrong.
    Failure,
    /// By UDP, that it does not fit; by TCP, these addresses.
    TooLong(Vec<IpAddr>),
    /// Nothing.
    Nothing,
}

/// What it was asked: name, kind, and by what.
pub type Asked = (String, RecordType, &'static str);
/// Decides by the name (in lower case, without the final dot), the kind, and how often that has been asked already.
type Script = dyn Fn(&str, RecordType, usize) -> Says + Send + Sync;

pub struct CountingResolver {
    pub udp_and_tcp: SocketAddr,
    pub tls: SocketAddr,
    /// The certificate of `dns.test`.
    pub certificate_pem: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _serving: JoinSet<()>,
}

impl CountingResolver {
    pub async fn start(script: impl Fn(&str, RecordType, usize) -> Says + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) = udp_and_tcp(Ipv4Addr::LOCALHOST);
        let address = udp.local_addr().unwrap();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let udp = tokio::net::UdpSocket::from_std(udp).unwrap();
        let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
        let tls = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tls_address = tls.local_addr().unwrap();
        let issued = rcgen::generate_simple_self_signed(vec!["dns.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
        let config =
            ServerConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![issued.cert.der().clone()], key)
                .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let mut serving = JoinSet::new();
        let (by_udp, record) = (script.clone(), asked.clone());
        serving.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&by_udp, &record, &buffer[..length], "udp") {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let (by_tcp, record) = (script.clone(), asked.clone());
        serving.spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(carry(by_tcp.clone(), record.clone(), stream, "tcp"));
            }
        });
        let record = asked.clone();
        serving.spawn(async move {
            while let Ok((stream, _)) = tls.accept().await {
                let (acceptor, script, record) = (acceptor.clone(), script.clone(), record.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        carry(script, record, stream, "tls").await;
                    }
                });
            }
        });
        let certificate_pem = issued.cert.pem();
        Self { udp_and_tcp: address, tls: tls_address, certificate_pem, asked, _serving: serving }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn by(&self, transport: Transport) -> Server {
        let address = if matches!(transport, Transport::Tls(_)) { self.tls } else { self.udp_and_tcp };
        Server { address, transport }
    }
}

async fn carry(
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    by: &'static str,
) {
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        if let Some(answer) = answer(&script, &asked, &message, by) {
            let framed = [&u16::try_from(answer.len()).unwrap().to_be_bytes(), &answer[..]].concat();
            stream.write_all(&framed).await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

fn answer(script: &Arc<Script>, asked: &Arc<Mutex<Vec<Asked>>>, bytes: &[u8], by: &'static str) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_lowercase().to_ascii().trim_end_matches('.').to_owned();
    let before = {
        let mut asked = asked.lock().unwrap();
        let before = asked.iter().filter(|(n, kind, _)| *n == name && *kind == query.query_type()).count();
        asked.push((name.clone(), query.query_type(), by));
        before
    };
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_available = true;
    message.add_query(query.clone());
    let mut add = |owner: Name, addresses: Vec<IpAddr>| {
        for address in addresses {
            let data = RData::from(address);
            if data.record_type() == query.query_type() {
                message.add_answer(Record::from_rdata(owner.clone(), 0, data));
            }
        }
    };
    match script(&name, query.query_type(), before) {
        Says::Addresses(addresses) => add(query.name().clone(), addresses),
        Says::Alias(to, addresses) => {
            let to = Name::from_ascii(format!("{to}.")).unwrap();
            add(to.clone(), addresses);
            let alias = Record::from_rdata(query.name().clone(), 0, RData::CNAME(CNAME(to)));
            message.answers.insert(0, alias);
        }
        Says::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
        Says::Failure => message.metadata.response_code = ResponseCode::ServFail,
        Says::TooLong(_) if by == "udp" => message.metadata.truncation = true,
        Says::TooLong(addresses) => add(query.name().clone(), addresses),
        Says::Nothing => return None,
    }
    Some(message.to_vec().unwrap())
}
