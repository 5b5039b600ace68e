//! Against a decision point of the tests' own, on loopback, which answers what it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time;

use super::authzen::Service;
use super::cedar::Texts;
use super::question::tests::question;
use super::setup::Token;
use super::*;
use crate::policy::{CompiledPolicy, Fqdn, Policy};
use crate::worker::Effective;

/// Answers every question with `answer`, as often as `gate` lets it; an answer that is empty cuts the connection.
struct Pdp {
    url: String,
    connected: AtomicUsize,
    asked: AtomicUsize,
    question: Mutex<(String, Value)>,
    answer: Mutex<String>,
    gate: Semaphore,
}

impl Pdp {
    async fn start() -> Arc<Self> {
        let (listener, pdp) = Self::listen("http", "127.0.0.1").await;
        let serving = pdp.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connected.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        pdp
    }

    async fn listen(scheme: &str, host: &str) -> (TcpListener, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let (connected, asked, question) = Default::default();
        let (answer, gate) = (Mutex::new(says("true")), Semaphore::new(Semaphore::MAX_PERMITS));
        (listener, Arc::new(Self { url, connected, asked, question, answer, gate }))
    }

    async fn serve(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            *self.question.lock().unwrap() = (head, serde_json::from_slice(&body).unwrap());
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            let answer = self.answer.lock().unwrap().clone();
            if stream.write_all(answer.as_bytes()).await.is_err() || !answer.contains("keep-alive") {
                return;
            }
        }
    }

    fn answers(&self, answer: impl Into<String>) {
        *self.answer.lock().unwrap() = answer.into();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Questions wait until `gate` has permits again.
    fn close(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn setup(&self) -> Setup {
        let (url, addresses) = (self.url.clone(), vec![]);
        let limits = Limits { deadline: Duration::from_secs(60), ..Limits::default() };
        Setup { limits, point: DecisionPoint::AuthZen(Service { url, addresses, ca: None, token: None }) }
    }

    fn authz(&self) -> Authz {
        authz(self.setup())
    }
}

fn authz(setup: Setup) -> Authz {
    let authz = Authz::new();
    authz.set_up(setup).unwrap();
    authz
}

fn answer(status: &str, media: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: keep-alive\r\n\r\n{body}"
    )
}

fn says(decision: &str) -> String {
    answer("200 OK", "application/json", &format!(r#"{{"decision":{decision}}}"#))
}

async fn later(seconds: u64) {
    time::pause();
    time::advance(Duration::from_secs(seconds)).await;
    time::resume();
}

#[tokio::test]
async fn without_a_decision_point_everything_is_refused() {
    let authz = Authz::new();
    assert_eq!(authz.decide(&question("example.org")).await, Err(Undecided::NoDecisionPoint));
    assert_eq!(authz.pending(), []);
}

#[tokio::test]
async fn a_grant_counts_for_its_time_and_a_refusal_for_a_shorter_one() {
    let pdp = Pdp::start().await;
    let (authz, question) = (pdp.authz(), question("example.org"));
    for (decision, verdict, seconds) in [("true", Verdict::Granted, 30), ("false", Verdict::Refused, 5)] {
        pdp.answers(says(decision));
        let before = pdp.asked();
        assert_eq!(authz.decide(&question).await, Ok(verdict));
        later(seconds - 1).await;
        assert_eq!(authz.decide(&question).await, Ok(verdict));
        assert_eq!(pdp.asked(), before + 1);
        later(1).await;
    }
    pdp.answers(says("true"));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
}

#[tokio::test]
async fn connections_are_kept_and_a_question_is_repeated_only_if_it_was_never_sent() {
    let pdp = Pdp::start().await;
    let authz = pdp.authz();
    let ask = async |n: usize| authz.decide(&question(&format!("h{n}.example.org"))).await;
    let connected = || pdp.connected.load(Ordering::SeqCst);
    for n in 0..3 {
        assert_eq!(ask(n).await, Ok(Verdict::Granted));
    }
    assert_eq!(connected(), 1);
    pdp.answers(says("true").replace("keep-alive", "upgrade")); // closed behind the client's back
    assert_eq!(ask(3).await, Ok(Verdict::Granted));
    pdp.answers(says("true"));
    assert_eq!(ask(4).await, Ok(Verdict::Granted));
    assert_eq!((connected(), pdp.asked()), (2, 5));
    pdp.answers("");
    assert!(matches!(ask(5).await, Err(Undecided::Unreachable(_))));
    assert_eq!((connected(), pdp.asked()), (2, 6));
}

#[tokio::test]
async fn fifty_that_ask_at_once_ask_once_even_if_the_first_one_leaves() {
    let pdp = Pdp::start().await;
    pdp.close();
    let (authz, question) = (pdp.authz(), question("example.org"));
    let ask = || {
        let (authz, question) = (authz.clone(), question.clone());
        async move { authz.decide(&question).await }
    };
    let first = tokio::spawn(ask());
    while pdp.asked() == 0 {
        yield_now().await;
    }
    let asking: JoinSet<_> = (0..50).map(|_| ask()).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let pending = authz.pending();
    let [Pending { sandbox, destination, port: 443, .. }] = pending.as_slice() else { panic!("{pending:?}") };
    assert_eq!((sandbox.to_string().as_str(), destination.as_str()), ("default/s1", "example.org"));
    pdp.gate.add_permits(1); // a second question would wait for ever
    assert_eq!(asking.join_all().await, vec![Ok(Verdict::Granted); 50]);
    assert_eq!((pdp.asked(), authz.pending().len()), (1, 0));
}

#[tokio::test]
async fn whatever_is_not_a_plain_yes_is_refused() {
    let pdp = Pdp::start().await;
    let json = |body: &str| answer("200 OK", "application/json", body);
    let huge = format!(r#"{{"decision":true,"context":"{}"}}"#, "x".repeat(64 << 10));
    for (reply, why) in [
        (says(r#""true""#), "invalid type"),
        (says("1"), "invalid type"),
        (says("null"), "invalid type"),
        (says("[true]"), "invalid type"),
        (json("{}"), "missing field `decision`"),
        (json(r#"{"Decision":true}"#), "missing field `decision`"),
        (json(r#"{"decision":false,"decision":true}"#), "twice"),
        (json("true"), "invalid type"),
        (json(""), "EOF"),
        (json(r#"{"decision":true}{"#), "trailing"),
        (json(&huge), "length limit"),
        (
            json(r#"{"decision":true}"#)
                .replace("Content-Length: 17", "Content-Length: 18")
                .replace("keep-alive", "close"),
            "is none",
        ),
        (answer("200 OK", "text/html", r#"{"decision":true}"#), "its type is not application/json"),
        (answer("200 OK", "text/html", "<html>"), "its type"),
        (says("true").replace("Content-Type: application/json\r\n", ""), "its type"),
        (answer("201 Created", "application/json", r#"{"decision":true}"#), "status 201"),
        (
            answer("302 Found\r\nLocation: /access/v1/evaluation", "application/json", r#"{"decision":true}"#),
            "status 302",
        ),
        (answer("401 Unauthorized", "application/json", r#"{"decision":true}"#), "status 401"),
        (answer("500 Internal Server Error", "application/json", r#"{"decision":true}"#), "status 500"),
        (String::new(), "cannot be asked"),
        ("decision: true\r\n\r\n".into(), "cannot be asked"),
    ] {
        pdp.answers(reply);
        let before = pdp.asked();
        let (authz, question) = (pdp.authz(), question("example.org"));
        let error = authz.decide(&question).await.expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(pdp.asked(), before + 1, "{why}: it is not asked twice, nor is what it points to");
        pdp.answers(says("true"));
        assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted), "{why}: what is no answer is not remembered");
    }
    pdp.answers(answer("200 OK", "application/json; charset=utf-8", r#"{"decision":true,"context":{"id":"1"}}"#));
    assert_eq!(
        pdp.authz().decide(&question("example.org")).await,
        Ok(Verdict::Granted),
        "what more it says is its own"
    );
}

#[tokio::test]
async fn a_decision_point_that_is_down_or_slow_refuses() {
    let pdp = Pdp::start().await;
    pdp.close();
    let mut setup = pdp.setup();
    setup.limits.deadline = Duration::from_millis(20);
    let slow = authz(setup).decide(&question("example.org")).await;
    assert_eq!(slow, Err(Undecided::Deadline(Duration::from_millis(20))));
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (url, addresses) = (format!("http://{free}"), vec![]);
    let point = DecisionPoint::AuthZen(Service { url, addresses, ca: None, token: None });
    let down = authz(Setup { point, ..pdp.setup() }).decide(&question("example.org")).await;
    assert!(matches!(&down, Err(Undecided::Unreachable(why)) if why.contains("refused")), "{down:?}");
}

#[tokio::test]
async fn a_flapping_decision_point_is_left_alone_and_tried_again() {
    let pdp = Pdp::start().await;
    let (authz, broken) = (pdp.authz(), answer("503 Service Unavailable", "text/plain", ""));
    let ask = async |n: usize| authz.decide(&question(&format!("h{n}.example.org"))).await;
    for round in 0..2 {
        pdp.answers(&broken);
        let before = pdp.asked();
        for n in 0..5 {
            assert_eq!(ask(n).await, Err(Undecided::NoAnswer("status 503".into())), "{round}");
        }
        assert!(matches!(ask(5).await, Err(Undecided::Broken(Some(_)))), "{round}");
        later(5).await;
        assert_eq!(ask(6).await, Err(Undecided::NoAnswer("status 503".into())), "{round}: the trial");
        assert!(matches!(ask(7).await, Err(Undecided::Broken(Some(_)))), "{round}");
        assert_eq!(pdp.asked(), before + 6, "{round}");
        later(5).await;
        pdp.answers(says("true"));
        for n in 0..5 {
            assert_eq!(ask(100 * (round + 1) + n).await, Ok(Verdict::Granted), "{round}");
        }
    }
    pdp.answers(&broken);
    assert_eq!(ask(100).await, Ok(Verdict::Granted), "what was granted goes on counting for its time");
}

#[tokio::test]
async fn what_is_revoked_is_asked_again_and_granted_to_nobody_who_waits() {
    let pdp = Pdp::start().await;
    let (authz, question) = (pdp.authz(), question("example.org"));
    let mut other = question.clone();
    other.sandbox.id = "s2".into();
    for question in [&question, &other] {
        assert_eq!(authz.decide(question).await, Ok(Verdict::Granted));
    }
    authz.revoke(&question.sandbox);
    pdp.close();
    let waiting = tokio::spawn({
        let (authz, question) = (authz.clone(), question.clone());
        async move { authz.decide(&question).await }
    });
    while pdp.asked() < 3 {
        yield_now().await;
    }
    authz.revoke(&question.sandbox);
    assert_eq!(authz.pending(), []);
    pdp.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Err(Undecided::Superseded));
    assert_eq!(authz.decide(&other).await, Ok(Verdict::Granted));
    assert_eq!(pdp.asked(), 3, "another sandbox's grants stay");
}

#[tokio::test]
async fn a_new_decision_point_answers_even_what_the_old_one_was_asked() {
    let (old, new) = (Pdp::start().await, Pdp::start().await);
    let (authz, question) = (old.authz(), question("example.org"));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
    assert_eq!(authz.set_up(old.setup()).unwrap(), 1, "the same one again is no change");
    let bad =
        Setup { point: DecisionPoint::Cedar(Texts { policies: "permit".into(), ..Texts::default() }), ..old.setup() };
    assert!(authz.set_up(bad).unwrap_err().to_string().starts_with("policies: "));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
    assert_eq!(old.asked(), 1, "a bad one changes nothing, not even what is remembered");

    old.close();
    let mut second = question.clone();
    second.port = 80;
    let waiting = tokio::spawn({
        let (authz, second) = (authz.clone(), second.clone());
        async move { authz.decide(&second).await }
    });
    while old.asked() < 2 {
        yield_now().await;
    }
    new.answers(says("false"));
    assert_eq!(authz.set_up(new.setup()).unwrap(), 2);
    old.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Ok(Verdict::Refused));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Refused), "what the old one granted counts no more");
    assert_eq!((old.asked(), new.asked()), (2, 2));
    assert_eq!(authz.set_up(Setup::default()).unwrap(), 3);
    assert_eq!(authz.decide(&question).await, Err(Undecided::NoDecisionPoint));
}

#[tokio::test]
async fn another_policy_of_the_sandbox_wants_another_decision() {
    let pdp = Pdp::start().await;
    let authz = pdp.authz();
    let effective =
        |generation| Some(Arc::new(Effective { policy: CompiledPolicy::new(Policy::default()), generation }));
    let (policies, watching) = watch::channel(effective(1));
    let Question { sandbox, agent, .. } = question("example.org");
    let binding = Arc::new(Binding { sandbox, agent, effective: watching });
    let name = Fqdn::parse("example.org").unwrap();
    let ask = || {
        let (authz, binding, name) = (authz.clone(), binding.clone(), name.clone());
        async move { authz.authorize(&binding, Authorizable::Name(&name), 443).await }
    };
    assert_eq!(ask().await, Ok(()));
    assert_eq!(ask().await, Ok(()));
    assert_eq!(pdp.asked(), 1);
    policies.send_replace(effective(2));
    pdp.answers(says("false"));
    assert_eq!(ask().await, Err(Unauthorized::Refused));
    assert_eq!(pdp.asked(), 2);

    pdp.answers(says("true"));
    pdp.close();
    policies.send_replace(effective(3));
    let waiting = tokio::spawn(ask());
    while pdp.asked() < 3 {
        yield_now().await;
    }
    policies.send_replace(effective(4));
    pdp.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Err(Unauthorized::Undecided(Undecided::Superseded.to_string())));
    policies.send_replace(None);
    assert_eq!(ask().await, Err(Unauthorized::Undecided(Undecided::Detached.to_string())));
    assert_eq!(pdp.asked(), 3);
}

#[tokio::test]
async fn a_question_is_asked_as_authzen_wants_it() {
    let pdp = Pdp::start().await;
    let mut setup = pdp.setup();
    let DecisionPoint::AuthZen(service) = &mut setup.point else { panic!() };
    service.token = Token::parse("s3cret");
    service.url.push_str("/pdp/");
    assert!(!format!("{setup:?}").contains("s3cret"));
    let authz = authz(setup);
    let mut anonymous = question("2001:db8::1");
    anonymous.agent = None;
    let ours = json!({"sandbox": "default/s1", "namespace": "default"});
    for (question, subject, id, properties) in [
        (
            question("a.example.org"),
            json!({"type": "agent", "id": "spiffe://example.org/agents/a", "properties": ours}),
            "a.example.org:443",
            json!({"host": "a.example.org", "name": "a.example.org", "port": 443, "protocol": "tcp", "zones": ["example.org", "org"]}),
        ),
        (
            anonymous,
            json!({"type": "workload", "id": "default/s1", "properties": ours}),
            "[2001:db8::1]:443",
            json!({"host": "2001:db8::1", "ip": "2001:db8::1", "port": 443, "protocol": "tcp", "zones": []}),
        ),
    ] {
        authz.decide(&question).await.unwrap();
        let (head, body) = pdp.question.lock().unwrap().clone();
        assert!(head.starts_with("post /pdp/access/v1/evaluation http/1.1\r\n"), "{head}");
        for line in ["content-type: application/json", "accept: application/json", "authorization: bearer s3cret"] {
            assert!(head.lines().any(|header| header == line), "{line}: {head}");
        }
        let resource = json!({"type": "destination", "id": id, "properties": properties});
        let context = json!({"sandbox": "default/s1", "namespace": "default", "generation": 1});
        let expected =
            json!({"subject": subject, "action": {"name": "connect"}, "resource": resource, "context": context});
        assert_eq!(body, expected);
    }
}

/// The name in the address is what the certificate must be for; where it is, the privileged half has looked up.
#[tokio::test]
async fn https_is_believed_under_the_given_certificate_alone() {
    let [ours, theirs] = ["pdp.example.org", "pdp.example.org"]
        .map(|name| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap());
    let key = rustls::pki_types::PrivateKeyDer::try_from(ours.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![ours.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, pdp) = Pdp::listen("https", "pdp.example.org").await;
    let addresses = vec![listener.local_addr().unwrap()];
    let serving = pdp.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serving.clone().serve(stream));
            }
        }
    });
    let other_name = pdp.url.replace("pdp.", "other.");
    for (url, ca, good) in
        [(&pdp.url, ours.cert.pem(), true), (&pdp.url, theirs.cert.pem(), false), (&other_name, ours.cert.pem(), false)]
    {
        let service = Service { url: url.clone(), addresses: addresses.clone(), ca: Some(ca), token: None };
        let authz = authz(Setup { point: DecisionPoint::AuthZen(service), ..pdp.setup() });
        match authz.decide(&question("example.org")).await {
            Ok(verdict) => assert_eq!((verdict, good), (Verdict::Granted, true)),
            Err(error) => assert!(!good && error.to_string().contains("certificate"), "{error}"),
        }
    }
    assert_eq!(pdp.asked(), 1);
}
