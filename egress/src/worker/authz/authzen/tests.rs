//! What is asked and how strictly an answer is read, with a decision point of the tests' own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::worker::authz::fake::{Pdp, answer, authz, says};
use crate::worker::authz::question::tests::question;
use crate::worker::authz::setup::{DecisionPoint, Setup};

#[tokio::test]
async fn whatever_is_not_a_plain_yes_is_refused() {
    let pdp = Pdp::start().await;
    let json = |body: &str| answer("200 OK", "application/json", body);
    let huge = format!(r#"{{"decision":true,"context":"{}"}}"#, "x".repeat(64 << 10));
    for (reply, why) in [
        (says(r#""true""#), "neither true nor false"),
        (says("1"), "neither true nor false"),
        (says("null"), "neither true nor false"),
        (says("[true]"), "neither true nor false"),
        (json("{}"), "decision is missing"),
        (json(r#"{"Decision":true}"#), "decision is missing"),
        (json(r#"{"decision":false,"decision":true}"#), "twice"),
        (json("true"), "invalid type"),
        (json("[true]"), "invalid type"),
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

/// Among arbitrary JSON whose keys and values are nearly right.
fn nearly() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(json!(true)), Just(json!(false)), Just(json!("true")), Just(json!(1)), Just(json!(null))];
    leaf.prop_recursive(3, 8, 3, |inner| {
        let key = prop_oneof![Just("decision"), Just("Decision"), Just("context")].prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn a_grant_is_an_object_whose_decision_is_true_and_nothing_else(answer in nearly()) {
        let granted = verdict(answer.to_string().as_bytes()) == Ok(Verdict::Granted);
        prop_assert_eq!(granted, answer.is_object() && answer["decision"] == json!(true));
    }

    #[test]
    fn no_answer_makes_the_reader_fail(bytes: Vec<u8>) {
        let _ = verdict(&bytes);
    }
}
