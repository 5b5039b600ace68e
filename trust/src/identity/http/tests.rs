//! Against a real HTTP server on loopback.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::*;

const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const AGENT: &str = "spiffe://example.org/agents/a";

/// Answers every request with `answer`, as often as `gate` lets it; counts them, and keeps the last one's first line.
struct Nhi {
    url: String,
    asked: AtomicUsize,
    line: Mutex<String>,
    answer: Mutex<String>,
    gate: Semaphore,
}

impl Nhi {
    async fn start() -> Arc<Self> {
        let (listener, nhi) = Self::listen("http").await;
        let serving = nhi.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        nhi
    }

    async fn listen(scheme: &str) -> (TcpListener, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (asked, line) = Default::default();
        let (answer, gate) = (Mutex::new(good()), Semaphore::new(Semaphore::MAX_PERMITS));
        (listener, Arc::new(Self { url, asked, line, answer, gate }))
    }

    async fn serve(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            request.push(byte);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        *locked(&self.line) = String::from_utf8(request).unwrap().lines().next().unwrap().to_owned();
        self.gate.acquire().await.unwrap().forget();
        let answer = locked(&self.answer).clone();
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    fn answers(&self, answer: impl Into<String>) {
        *locked(&self.answer) = answer.into();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn good_set() -> serde_json::Value {
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": X, "kid": "k", "alg": "EdDSA", "use": "sig", "more": 1});
    json!({"creto.dev/agent": AGENT, "creto.dev/backends": ["gvisor"], "keys": [{"kty": "RSA"}, key]})
}

fn good() -> String {
    answer("200 OK", &good_set().to_string())
}

#[test]
fn the_contract_is_what_is_spoken() {
    let contract = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/creto-nhi.openapi.json"));
    let contract: serde_json::Value = serde_json::from_str(contract).unwrap();
    let operation = &contract["paths"]["/v1/jwks"]["get"];
    assert_eq!(operation["parameters"][0]["name"], "spiffe_id");
    for status in ["200", "403", "404", "410", "default"] {
        assert!(operation["responses"][status].is_object(), "{status}");
    }
    let schema = jsonschema::validator_for(&contract["components"]["schemas"]["AgentKeys"]).unwrap();
    assert!(schema.is_valid(&good_set()));
    let id = AGENT.parse().unwrap();
    for (pointer, value) in [
        ("/creto.dev~1agent", json!(1)),
        ("/creto.dev~1backends", json!("gvisor")),
        ("/keys/1/x", json!("AAAA")),
        ("/keys/1/alg", json!("RS256")),
        ("/keys/1/use", json!("enc")),
        ("/keys/1", json!({"kty": "OKP", "crv": "Ed25519"})),
        ("/keys/0", json!({"kty": "RSA", "d": "AQAB"})),
        ("/keys", json!({})),
    ] {
        let mut set = good_set();
        *set.pointer_mut(pointer).unwrap() = value;
        assert!(!schema.is_valid(&set), "{pointer}: the contract allows it");
        assert!(agent(&id, set.to_string().as_bytes()).is_err(), "{pointer}: we allow it");
    }
}

/// A source whose clock the test moves.
struct Subject {
    source: Arc<HttpSource>,
    seconds: Arc<AtomicU64>,
}

impl Subject {
    fn of(nhi: &Nhi, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(&nhi.url, None);
        change(&mut settings);
        let (start, seconds) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let moved = seconds.clone();
        let now = Box::new(move || start + Duration::from_secs(moved.load(Ordering::SeqCst)));
        Self { source: Arc::new(HttpSource::with_time(settings, now).unwrap()), seconds }
    }

    async fn ask(&self) -> Result<Agent, SourceError> {
        self.source.agent(&AGENT.parse().unwrap()).await
    }

    fn later(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_answer_counts_for_its_time_and_a_revocation_after_it() {
    let nhi = Nhi::start().await;
    let subject = Subject::of(&nhi, |_| ());
    let agent = subject.ask().await.unwrap();
    assert_eq!((agent.keys.len(), agent.keys[0].kid.as_str()), (1, "k"));
    assert_eq!(agent.backends, Some(vec!["gvisor".parse().unwrap()]));
    assert_eq!(*locked(&nhi.line), format!("GET /v1/jwks?spiffe_id={AGENT} HTTP/1.1"));
    nhi.answers(answer("410 Gone", ""));
    subject.later(59);
    subject.ask().await.unwrap();
    assert_eq!(nhi.asked(), 1);
    subject.later(1);
    assert!(matches!(subject.ask().await, Err(SourceError::Revoked(..))));
    subject.later(4);
    assert!(matches!(subject.ask().await, Err(SourceError::Revoked(..))));
    assert_eq!(nhi.asked(), 2, "a refusal counts for a while, too");
    nhi.answers(good());
    subject.later(1);
    subject.ask().await.unwrap();
    assert_eq!(nhi.asked(), 3);
}

#[tokio::test]
async fn fifty_that_ask_at_once_ask_once() {
    let nhi = Nhi::start().await;
    nhi.gate.forget_permits(Semaphore::MAX_PERMITS);
    for (round, reply) in [good(), answer("500 Internal Server Error", "")].into_iter().enumerate() {
        nhi.answers(reply);
        let subject = Subject::of(&nhi, |settings| settings.timeout = Duration::from_secs(60));
        let mut asking = JoinSet::new();
        for _ in 0..50 {
            let source = subject.source.clone();
            asking.spawn(async move { source.agent(&AGENT.parse().unwrap()).await.is_ok() });
        }
        while nhi.asked() == round {
            tokio::task::yield_now().await;
        }
        nhi.gate.add_permits(1); // a second request would wait for ever
        assert_eq!(asking.join_all().await, [round == 0; 50]);
        assert_eq!(nhi.asked(), round + 1);
    }
}

#[tokio::test]
async fn whatever_is_no_answer_is_a_refusal() {
    let nhi = Nhi::start().await;
    let body = |set: serde_json::Value| answer("200 OK", &set.to_string());
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": X});
    let private = json!({"kty": "OKP", "crv": "Ed25519", "x": X, "d": X});
    for (reply, why) in [
        (answer("404 Not Found", ""), "is not known"),
        (answer("403 Forbidden", ""), "is disabled"),
        (answer("410 Gone", ""), "is revoked"),
        (answer("500 Internal Server Error", ""), "answered 500"),
        (answer("204 No Content", ""), "answered 204"),
        (answer("302 Found\r\nLocation: http://127.0.0.1:1/", ""), "answered 302"),
        (answer("200 OK", "<html>"), "JWK Set"),
        (body(json!({"keys": []})), "creto.dev/agent"),
        (
            body(json!({"creto.dev/agent": "spiffe://example.org/agents/b", "keys": []})),
            "is about spiffe://example.org/agents/b",
        ),
        (body(json!({"creto.dev/agent": AGENT, "keys": [private]})), "private key"),
        (body(json!({"creto.dev/agent": AGENT, "keys": [key, key]})), "already"),
        (body(json!({"creto.dev/agent": AGENT, "creto.dev/backends": ["../x"], "keys": []})), "backend"),
        (answer("200 OK", &format!(r#"{{"creto.dev/agent":"{AGENT}","keys":[],"keys":[]}}"#)), "twice"),
        (answer("200 OK", &" ".repeat(MAX_SET_BYTES + 1)), "length limit"),
        (good()[..good().len() - 10].to_owned(), "cannot be looked up"),
        ("HTTP/1.1 200 OK\r\n".into(), "cannot be looked up"),
        ("x\r\n\r\n".into(), "cannot be looked up"),
    ] {
        nhi.answers(reply);
        let error = Subject::of(&nhi, |_| ()).ask().await.expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    nhi.gate.forget_permits(Semaphore::MAX_PERMITS);
    let silent = Subject::of(&nhi, |settings| settings.timeout = Duration::from_millis(20));
    assert!(silent.ask().await.unwrap_err().to_string().contains("no answer within 20ms"));
    let nobody = Subject::of(&nhi, |settings| settings.url = "http://127.0.0.1:1".into());
    assert!(matches!(nobody.ask().await, Err(SourceError::Unreachable(..))));
}

#[tokio::test]
async fn a_stale_answer_is_served_where_that_is_wanted_and_not_for_ever() {
    let nhi = Nhi::start().await;
    let strict = Subject::of(&nhi, |_| ());
    let lenient = Subject::of(&nhi, |settings| settings.stale = Duration::from_secs(30));
    strict.ask().await.unwrap();
    lenient.ask().await.unwrap();
    nhi.answers(answer("503 Service Unavailable", ""));
    strict.later(60);
    lenient.later(60);
    assert!(matches!(strict.ask().await, Err(SourceError::Unreachable(..))));
    lenient.ask().await.unwrap();
    while nhi.asked() < 4 {
        tokio::task::yield_now().await; // the new answer is being fetched behind the caller's back
    }
    lenient.later(30);
    assert!(matches!(lenient.ask().await, Err(SourceError::Unreachable(..))));

    nhi.answers(good());
    lenient.later(5);
    lenient.ask().await.unwrap();
    nhi.answers(answer("410 Gone", ""));
    lenient.later(60);
    lenient.ask().await.unwrap();
    while lenient.ask().await.is_ok() {
        tokio::task::yield_now().await; // until the refusal has come
    }
}

#[tokio::test]
async fn https_is_believed_under_the_given_certificate_alone() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let [ours, theirs] = [("ours", &certified), ("theirs", &stranger)].map(|(name, certificate)| {
        let path = dir.path().join(name);
        std::fs::write(&path, certificate.cert.pem()).unwrap();
        path
    });
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, nhi) = Nhi::listen("https").await;
    let serving = nhi.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serving.clone().serve(stream));
            }
        }
    });
    Subject::of(&nhi, |settings| settings.ca_file = Some(ours)).ask().await.unwrap();
    let error = Subject::of(&nhi, |settings| settings.ca_file = Some(theirs)).ask().await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(nhi.asked(), 1);
}

#[test]
fn a_service_that_anybody_could_pose_as_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for (url, ca_file, why) in [
        ("http://nhi.example.org", None, "use https"),
        ("http://10.0.0.1", None, "use https"),
        ("http://localhost", None, "use https"), // a name, and whoever resolves it decides
        ("https://nhi.example.org", None, "ca_file is missing"),
        ("https://nhi.example.org", Some("/nonexistent".into()), "ca_file /nonexistent"),
        ("https://nhi.example.org", Some(empty), "no certificate"),
        ("ftp://127.0.0.1", None, "give https"),
        ("/v1", None, "give https"),
        ("http://127.0.0.1/?a=b", None, "without query"),
    ] {
        let error = HttpSource::new(Settings::new(url, ca_file)).err().expect(why).to_string();
        assert!(error.contains(why), "{url}: {error}");
    }
    for good in ["http://127.0.0.1:8080/nhi/", "http://[::1]:8080"] {
        HttpSource::new(Settings::new(good, None)).unwrap();
    }
}
