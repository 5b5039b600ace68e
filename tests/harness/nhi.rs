//! A creto-nhi service on loopback, over TLS, with a certificate of its own. Contract: docs/creto-nhi.openapi.json.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The service; gone when it is dropped.
pub struct Nhi {
    address: SocketAddr,
    certificate: String,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Status line and body, by SPIFFE ID.
    answers: Mutex<BTreeMap<String, (&'static str, String)>>,
    asked: AtomicUsize,
    over: AtomicBool,
}

impl Nhi {
    /// Knows nobody.
    pub fn start() -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let (config, theirs) = (Arc::new(config), shared.clone());
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                let _ = theirs.serve(stream.unwrap(), config.clone()); // a client that does not trust us goes away
            }
        });
        Self { address, certificate: certified.cert.pem(), shared, serving: Some(serving) }
    }

    /// runtime.toml for a node that asks it.
    pub fn settings(&self, ca_file: &Path) -> String {
        let (address, ca_file) = (self.address, ca_file.display());
        format!(
            "[identity]\nsource = \"http\"\nnode = \"n1\"\n[identity.http]\nurl = \"https://{address}\"\nca_file = \"{ca_file}\"\n"
        )
    }

    /// What vouches for it, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// From now on it says this of an agent.
    pub fn says(&self, agent: &str, status: &'static str, body: String) {
        self.shared.answers.lock().unwrap().insert(agent.to_owned(), (status, body));
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, tcp: TcpStream, config: Arc<ServerConfig>) -> Result<(), Box<dyn std::error::Error>> {
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = StreamOwned::new(ServerConnection::new(config)?, tcp);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let request = String::from_utf8(request)?;
        let agent = request.strip_prefix("GET /v1/jwks?spiffe_id=").and_then(|rest| rest.split(' ').next());
        let (status, body) = self
            .answers
            .lock()
            .unwrap()
            .get(agent.unwrap_or_default())
            .cloned()
            .unwrap_or(("404 Not Found", String::new()));
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(())
    }
}

impl Drop for Nhi {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes it
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}
