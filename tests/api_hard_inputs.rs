//! Whatever somebody sends to the node agent's API, it is told what is wrong with it, or the connection ends; the agent never fails for
//! it, and answers everybody else.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use serde_json::json;

use crate::harness::http::{Answer, over_socket, over_tcp, question};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::Agent;
use crate::harness::wait_until;
use crate::leak_table::{POLICY, backend};

const JSON: &str = "Content-Type: application/json\r\n";
/// What slow callers are given.
const SHORT: &str = "[api]\nhead = \"1s\"\nbody = \"1s\"";

#[track_caller]
fn assert_problem(what: &str, answer: &Answer, status: u16, code: &str) {
    let said = answer.json();
    assert_eq!((answer.status, said["code"].as_str()), (status, Some(code)), "{what}: {} {said}", answer.head);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
    assert_eq!(said["status"], json!(status), "{what}");
}

#[track_caller]
fn assert_well(network: &Network, agent: &PoolAgent) {
    let health = over_tcp(network, &question("GET", "/health", "", ""));
    assert_eq!(health.status, 200, "{}\n{}", health.json(), agent.log());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn what_is_wrong_with_a_request_is_said_and_harms_nobody() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, SHORT);
    let ask = |method: &str, path: &str, headers: &str, body: &str| {
        over_socket(&network, &question(method, path, headers, body))
    };
    let spawn = |body: &str| ask("POST", "/v1/sandboxes", JSON, body);

    for (what, path, status, code) in [
        ("nothing there", "/v1/nothing", 404, "no-such-path"),
        ("out of the root", "/v1/../../etc/passwd", 404, "no-such-path"),
        ("the same, encoded", "/v1/%2e%2e/%2e%2e/etc/passwd", 404, "no-such-path"),
        ("an id that leads out", "/v1/sandboxes/..%2f..%2fetc%2fpasswd", 404, "sandbox-not-found"),
        ("an id with a NUL", "/v1/sandboxes/a%00b", 404, "sandbox-not-found"),
        ("an id that is no UTF-8", "/v1/sandboxes/%ff%fe", 400, "invalid-path"),
        ("a pool that leads out", "/v1/warm-pools/..%2fa", 400, "invalid-name"),
        ("a policy that leads out", "/v1/policies/..%2f..%2fruntime", 400, "invalid-name"),
        ("a statement that leads out", "/v1/attestations/..%2f..%2fa", 404, "attestation-not-found"),
        ("half an escape", "/v1/sandboxes/%2", 404, "sandbox-not-found"),
        ("no id", "/v1/sandboxes/", 404, "no-such-path"),
        ("a query that is none", "/v1/sandboxes?limit=many", 400, "invalid-query"),
        ("what no query has", "/v1/sandboxes?colour=red", 400, "invalid-query"),
        ("a query twice", "/v1/sandboxes?limit=1&limit=2", 400, "invalid-query"),
        ("less than none", "/v1/audit?limit=-1", 400, "invalid-query"),
        ("more than all", "/v1/audit?limit=99999999999999999999", 400, "invalid-query"),
        ("no time", "/v1/audit?since=18446744073709551615s%201000ms", 400, "invalid-query"),
        ("a selector that is none", "/v1/sandboxes?selector=%3d", 400, "invalid-query"),
        ("no WebSocket", "/v1/sandboxes/a/exec?command=sh", 400, "no-websocket"),
        ("no destination", "/v1/policies/web/explanation", 400, "invalid-query"),
        ("no host", "/v1/policies/web/explanation?destination=a%20b", 400, "invalid-query"),
        ("no such policy", "/v1/policies/none", 404, "policy-not-found"),
    ] {
        assert_problem(what, &ask("GET", path, "", ""), status, code);
    }
    for (what, body, code) in [
        ("no JSON", "{", "invalid-body"),
        ("nothing", "", "invalid-body"),
        ("no object", "[]", "invalid-body"),
        ("no image", "{\"spec\":{}}", "invalid-body"),
        ("an image that is none", "{\"spec\":{\"image\":\"a b\"}}", "invalid-body"),
        ("an unknown member", "{\"spec\":{\"image\":\"a\"},\"colour\":\"red\"}", "invalid-body"),
        ("one further in", "{\"spec\":{\"image\":\"a\",\"privileged\":true}}", "invalid-body"),
        ("a member twice", "{\"spec\":{\"image\":\"a\"},\"spec\":{\"image\":\"b\"}}", "invalid-body"),
        (
            "a span that overflows",
            "{\"spec\":{\"image\":\"a\",\"ttl\":\"18446744073709551615s 1000ms\"}}",
            "invalid-body",
        ),
        (
            "more than a number",
            "{\"spec\":{\"image\":\"a\",\"resourceLimits\":{\"memoryBytes\":1e400}}}",
            "invalid-body",
        ),
        ("half a character", "{\"name\":\"\\ud800\"}", "invalid-body"),
        ("a path out", "{\"spec\":{\"image\":\"a\",\"cwd\":\"/../..\"}}", "invalid-body"),
        ("no such policy", "{\"spec\":{\"image\":\"a\",\"networkPolicy\":\"none\"}}", "policy-invalid"),
    ] {
        assert_problem(what, &spawn(body), 422, code);
    }
    let deep = format!("{{\"spec\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_problem("depth", &spawn(&deep), 422, "invalid-body");
    assert_problem("10 MB", &spawn(&"x".repeat(10 << 20)), 413, "body-too-large");
    let kind = "Content-Type: text/plain\r\n";
    assert_problem("another kind", &ask("POST", "/v1/sandboxes", kind, "{}"), 415, "unsupported-media-type");
    for (method, path) in
        [("PUT", "/health"), ("TRACE", "/v1/sandboxes"), ("FROB", "/v1/sandboxes"), ("OPTIONS", "/metrics")]
    {
        let answer = ask(method, path, "", "");
        assert_problem(method, &answer, 405, "method-not-allowed");
        assert!(answer.header("allow").is_some_and(|allow| allow.contains("get")), "{method}: {}", answer.head);
    }
    // What is no HTTP, or too much of it, the server ends before it is a question.
    for (what, bytes, statuses) in [
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n".to_vec(), &[400][..]),
        ("a path without end", question("GET", &format!("/v1/{}", "a".repeat(100_000)), "", ""), &[400, 414, 431]),
        ("a long head at once", question("GET", "/health", &format!("X: {}\r\n", "a".repeat(100_000)), ""), &[431]),
        ("a head without end", question("GET", "/health", &format!("X: {}\r\n", "a".repeat(1 << 20)), ""), &[431]),
        ("a thousand headers", question("GET", "/health", &"X: a\r\n".repeat(1000), ""), &[431]),
        ("two lengths", question("POST", "/v1/sandboxes", "Content-Length: 7\r\n", "{}"), &[400]),
        ("a length that is none", question("POST", "/v1/sandboxes", "Content-Length: -1\r\n", ""), &[400]),
        (
            "a large query",
            question("GET", &format!("/v1/sandboxes?selector={}", "a".repeat(40_000)), "", ""),
            &[400, 414],
        ),
    ] {
        let answer = over_tcp(&network, &bytes);
        assert!(statuses.contains(&answer.status), "{what}: {:?}", answer.head);
    }
    assert_well(&network, &agent);
    agent.clear();
}

#[test]
fn who_is_slow_is_sent_away_and_keeps_nobody_waiting() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, SHORT);
    let begun = |bytes: &str| {
        let mut stream = network.host.inside(|| TcpStream::connect("127.0.0.1:8080").unwrap());
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    let half = "POST /v1/warm-pools/a/claims HTTP/1.1\r\nHost: creto\r\nContent-Length: 100\r\n\r\n{";
    let heads: Vec<_> = (0..200).map(|_| begun("GET /health HTTP/1.1\r\nHo")).collect();
    assert_well(&network, &agent);
    for mut slow in heads {
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest); // ends: the server has hung up
        assert!(!rest.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&rest));
    }
    // As the operator, for over TCP who has no token is told so before a body is read.
    let spawn = half.replace("warm-pools/a/claims", "sandboxes");
    assert_problem("half a body", &over_socket(&network, spawn.as_bytes()), 408, "body-timeout");
    let chunked = "POST /v1/sandboxes HTTP/1.1\r\nHost: creto\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"spe\r\n";
    assert_problem("chunks that stop", &over_socket(&network, chunked.as_bytes()), 408, "body-timeout");
    assert_well(&network, &agent);

    // Files may take as long as they like, so long as they come.
    let id = agent.cli(&["spawn", "--image", BUSYBOX, "--", "sleep", "1000"]).ok();
    let id = id.trim();
    let tar =
        format!("PUT /v1/sandboxes/{id}/files?path=/tmp HTTP/1.1\r\nHost: creto\r\nContent-Length: 10240\r\n\r\nx");
    assert_problem("half a tar", &over_socket(&network, tar.as_bytes()), 408, "body-timeout");
    assert_well(&network, &agent);
    agent.clear();
}

#[test]
fn no_token_but_a_fresh_one_of_ones_own_counts() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let (ours, other) = (Agent::register(&network.node, "a", 1), Agent::register(&network.node, "b", 2));
    let stranger = Agent::unregistered("c", 3);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let audience = format!("creto:{}", host.trim());
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let ask = |path: &str, headers: &str| over_tcp(&network, &question("GET", path, headers, ""));
    let id = agent.cli(&["spawn", "--image", BUSYBOX, "--agent", &ours.id, "--", "sleep", "1000"]).ok();
    let id = id.trim();
    let statement = format!("/v1/attestations/{id}");

    let good = ours.token(&audience, "1");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD
        .encode(json!({"sub": other.id, "aud": audience, "iat": 0, "exp": 4_000_000_000_u64, "jti": "9"}).to_string());
    for (what, headers) in [
        ("none", String::new()),
        ("another scheme", "Authorization: Basic YTpi\r\n".into()),
        ("an empty one", bearer("")),
        ("no token", bearer("x.y.z")),
        ("two of them", bearer(&format!("{good}, {good}"))),
        ("a signature of zeros", bearer(&format!("{signed}.{}", "A".repeat(86)))),
        ("without a signature", bearer(&format!("{signed}."))),
        ("other claims under it", bearer(&format!("{}.{claims}.{signature}", signed.split('.').next().unwrap()))),
        ("for another node", bearer(&ours.token("creto:elsewhere", "2"))),
        ("a stranger's", bearer(&stranger.token(&audience, "3"))),
        ("one that has ended", bearer(&ours.token_from(&audience, "4", 3600))),
        ("a very long one", bearer(&"a".repeat(40_000))),
        ("no ASCII", "Authorization: Bearer \u{fc}\r\n".into()),
    ] {
        for path in ["/v1/audit", "/v1/attestations", "/v1/policies", &*statement] {
            let answer = ask(path, &headers);
            assert_problem(what, &answer, 401, "identity-rejected");
        }
    }
    // Each sees its own, by a token that is good once.
    let own = ask(&statement, &bearer(&good));
    assert_eq!(own.status, 200, "{}", own.json());
    assert!(
        network.node.verify(&own.body, &Default::default(), Default::default()).is_ok(),
        "the envelope, as it is kept"
    );
    assert_problem("the same once more", &ask(&statement, &bearer(&good)), 401, "identity-rejected");
    assert_problem("another's", &ask(&statement, &bearer(&other.token(&audience, "5"))), 404, "attestation-not-found");
    let listed = |agent: &Agent, jti: &str| ask("/v1/attestations", &bearer(&agent.token(&audience, jti))).json();
    assert_eq!(listed(&ours, "6")["attestations"][0]["id"], json!(id));
    assert_eq!(listed(&other, "7"), json!({ "attestations": [] }));
    let records = ask("/v1/audit", &bearer(&ours.token(&audience, "8"))).json();
    let all = records["records"].as_array().unwrap();
    assert!(!all.is_empty() && all.iter().all(|record| record["about"]["agent"] == json!(ours.id)), "{records}");
    assert_eq!(ask("/v1/audit", &bearer(&other.token(&audience, "10"))).json()["records"], json!([]));
    let others = format!("/v1/audit?agent={}", other.id.replace(':', "%3a").replace('/', "%2f"));
    assert_problem("another's record", &ask(&others, &bearer(&ours.token(&audience, "11"))), 403, "identity-rejected");
    let all = over_socket(&network, &question("GET", "/v1/audit?limit=1000", "", "")).json();
    assert!(all["records"].as_array().unwrap().len() >= records["records"].as_array().unwrap().len(), "{all}");
    for (path, member) in [("/.well-known/jwks.json", "keys"), ("/v1/keys", "keys"), ("/openapi.json", "paths")] {
        let open = ask(path, "");
        assert!(open.status == 200 && !open.json()[member].is_null(), "{path} is for everybody: {}", open.head);
    }
    wait_until("it ends", || agent.cli(&["terminate", id, "--force"]).status == 0);
    assert_well(&network, &agent);
    agent.clear();
}
