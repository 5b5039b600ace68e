//! Pools of the node agent: members wait behind deny-all, a claim binds one to its caller, and whatever is killed in between, each is
//! handed out once or taken down.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::{Agent, claims};
use crate::harness::wait_until;
use crate::leak_table::{POLICY, backend};

fn create(agent: &PoolAgent, name: &str, image: &str, members: &str) {
    let words = ["pool", "create", name, "--image", image, "--min-ready", members, "--max-ready", "5"];
    agent.cli(&words).ok();
}

/// The ids of all sandboxes in a phase.
fn ids(agent: &PoolAgent, status: &str) -> BTreeSet<String> {
    agent.cli(&["list", "--status", status]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_member_waits_behind_deny_all_and_a_claim_makes_it_its_callers() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let owner = Agent::register(&network.node, "a", 1);
    create(&agent, "demo", BUSYBOX, "2");
    agent.wait_ready("demo", 2);
    let waiting = ids(&agent, "Ready");
    let fences = network.node.cli_json(&["network-policy", "list", "--sandboxes"]);
    assert_eq!(fences.as_array().map(Vec::len), Some(2), "each member is fenced: {fences}");

    let claim = ["claim", "demo", "--agent", &owner.id, "--policy", "web", "--"];
    let said = agent.cli(
        &[&claim[..], &["sh", "-c", "cat /run/creto/identity.jwt; echo; echo out; echo err >&2; exit 7"]].concat(),
    );
    let out = said.text();
    assert_eq!(said.status, 7, "{out} {}\n{}", said.stderr, agent.log());
    let token = claims(out.lines().next().unwrap());
    assert_eq!(token["act"]["sub"], owner.id, "{token}");
    assert!(out.contains("out"), "{out}");

    // Its command has ended, and so has the sandbox; the pool has two members again, none of whom it was.
    wait_until("the claimed one has ended", || ids(&agent, "Running").is_empty());
    agent.wait_ready("demo", 2);
    let claimed = agent.json(&["claim", "demo", "--policy", "web"]);
    let (sandbox, id) = (&claimed["sandbox"], claimed["sandbox"]["id"].as_str().unwrap());
    assert_eq!((&claimed["warm"], &sandbox["phase"]), (&json!(true), &json!("Running")), "{claimed}");
    assert!(ids(&agent, "Ready").iter().all(|ready| ready != id) && !waiting.is_empty());
    let allowed = agent.json(&["network-policy", "test", "--destination", "open.creto.net:443", "--sandbox-id", id]);
    assert_eq!(allowed["verdict"], "Allow", "{allowed}");
    agent.cli(&["exec", id, "--", "true"]).ok();
    assert_eq!(agent.cli(&["exec", id, "--", "sh", "-c", "exit 3"]).status, 3);
    assert_eq!(agent.cli(&["exec", id, "--", "cat", "/etc/hosts"]).status, 0);
    let stats = agent.cli(&["pool", "stats", "demo"]).ok();
    assert!(stats.contains("Pool: demo") && stats.contains("Claimed: 1"), "{stats}");
    let shown = agent.json(&["get", id]);
    assert_eq!(shown["spec"]["networkPolicy"], "web", "{shown}");
    agent.clear();
}

#[test]
fn a_killed_agent_adopts_what_waits_and_what_runs() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    create(&agent, "demo", BUSYBOX, "2");
    agent.wait_ready("demo", 2);
    let running = agent.json(&["claim", "demo", "--ttl", "1h"])["sandbox"]["id"].as_str().unwrap().to_owned();
    agent.wait_ready("demo", 2);
    let before = ids(&agent, "Ready");
    agent.stop(Signal::SIGKILL);
    let down = agent.cli(&["list"]);
    assert!(down.status == 1 && down.stderr.contains("systemctl start creto-runtime"), "{}", down.stderr);
    agent.restart();
    assert_eq!(ids(&agent, "Running"), BTreeSet::from([running.clone()]));
    assert_eq!(ids(&agent, "Ready"), before, "{}", agent.log());
    agent.cli(&["exec", &running, "--", "true"]).ok();
    // What ended while nobody looked is found.
    agent.stop(Signal::SIGKILL);
    let gone = before.first().unwrap();
    network.node.ctr(&["task", "kill", "--signal", "SIGKILL", gone]).ok();
    agent.restart();
    agent.wait_ready("demo", 2);
    assert!(!ids(&agent, "Ready").contains(gone));
    agent.clear();
}

#[test]
fn no_member_is_handed_out_twice() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    create(&agent, "demo", BUSYBOX, "3");
    agent.wait_ready("demo", 3);
    let claimed: Vec<String> = std::thread::scope(|all| {
        let claims: Vec<_> = (0..6)
            .map(|n| {
                let agent = &agent;
                all.spawn(move || {
                    let key = format!("key-{n}");
                    let words = ["claim", "demo", "--on-empty", "wait", "--timeout", "60s", "--idempotency-key", &key];
                    let first = agent.json(&words)["sandbox"]["id"].as_str().unwrap().to_owned();
                    let again = agent.json(&words)["sandbox"]["id"].as_str().unwrap().to_owned();
                    assert_eq!(first, again, "the same claim");
                    first
                })
            })
            .collect();
        claims.into_iter().map(|claim| claim.join().unwrap()).collect()
    });
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 6, "{claimed:?}");
    agent.clear();
}

/// An HTTP question over TCP, and its answer: the status and the body.
pub fn http(network: &Network, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let asked = format!(
        "{method} {path} HTTP/1.1\r\nHost: creto\r\n{token}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let answer = network.host.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:8080").unwrap();
        stream.write_all(asked.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn over_tcp_an_agent_claims_for_itself_by_a_token_that_is_good_once() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let (ours, other) = (Agent::register(&network.node, "a", 1), Agent::register(&network.node, "b", 2));
    create(&agent, "demo", BUSYBOX, "1");
    agent.wait_ready("demo", 1);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let audience = format!("creto:{}", host.trim());
    let claims = "/v1/warm-pools/demo/claims";
    assert_eq!(http(&network, "GET", "/health", None, "").0, 200);
    for (what, method, path, token, body, status) in [
        ("no token", "POST", claims, None, "{}", 401),
        ("no JWT", "POST", claims, Some("x.y.z".to_owned()), "{}", 401),
        ("for somebody else", "POST", claims, Some(ours.token("creto:elsewhere", "1")), "{}", 401),
        (
            "in another's name",
            "POST",
            claims,
            Some(ours.token(&audience, "2")),
            &format!("{{\"agent\":{:?}}}", other.id),
            403,
        ),
        ("a pool", "POST", "/v1/warm-pools", Some(ours.token(&audience, "3")), "{}", 403),
        ("all", "DELETE", "/v1/sandboxes", Some(ours.token(&audience, "4")), "", 403),
        ("nonsense", "POST", claims, Some(ours.token(&audience, "5")), "{\"policy\": 1}", 422),
        ("nowhere", "GET", "/v1/../etc/passwd", None, "", 404),
    ] {
        let (found, problem) = http(&network, method, path, token.as_deref(), body);
        assert_eq!((found, &problem["status"]), (status, &json!(status)), "{what}: {problem}");
        assert!(problem["type"].as_str().unwrap().starts_with("https://creto.dev/problems/"), "{what}: {problem}");
    }
    let token = ours.token(&audience, "6");
    let (status, claimed) = http(&network, "POST", claims, Some(&token), "{\"networkPolicy\": \"web\"}");
    assert_eq!((status, &claimed["sandbox"]["agent"]), (200, &json!(ours.id)), "{claimed}");
    let id = claimed["sandbox"]["id"].as_str().unwrap();
    let statement = agent.cli(&["attestation", "get", id, "--json"]).ok();
    assert!(statement.contains("\"token\""), "by its token: {statement}");
    let (again, problem) = http(&network, "POST", claims, Some(&token), "{}");
    assert_eq!(again, 401, "a token is good once: {problem}");
    let path = format!("/v1/sandboxes/{id}?force=true");
    assert_eq!(
        http(&network, "DELETE", &path, Some(&other.token(&audience, "7")), "").0,
        404,
        "another's is not there"
    );
    assert_eq!(http(&network, "DELETE", &path, Some(&ours.token(&audience, "8")), "").0, 200);
    agent.clear();
}

#[test]
fn what_cannot_be_made_is_said_and_does_not_storm() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    create(&agent, "bad", "127.0.0.1:9/nothing:1", "2");
    wait_until("a failure is kept", || {
        agent.json(&["pool", "logs", "bad", "--phase", "Warming"]).as_array().is_some_and(|all| !all.is_empty())
    });
    let logs = agent.cli(&["pool", "logs", "bad", "--phase", "Warming"]).ok();
    assert!(logs.contains("nothing:1"), "{logs}");
    for (words, why) in [
        (&["claim", "bad", "--on-empty", "fail"][..], "ClaimError::Empty"),
        (&["claim", "none"], "pool none"),
        (&["claim", "bad", "--policy", "no-such"], "PolicyInvalid"),
        (&["spawn", "--image", "127.0.0.1:9/nothing:1"], "SpawnError::ImageUnavailable(\"127.0.0.1:9/nothing:1\")"),
        (&["terminate", "no-such"], "no-such"),
    ] {
        let done = agent.cli(words);
        assert!(done.status == 1 && done.stderr.contains(why), "{words:?}: {} {}", done.status, done.stderr);
    }
    agent.cli(&["drain", "--runtime", "gvisor"]).ok();
    let drained = agent.cli(&["spawn", "--image", BUSYBOX]);
    assert!(drained.stderr.contains("BackendDrained"), "{}", drained.stderr);
    agent.cli(&["enable", "--runtime", "gvisor"]).ok();
    let id = agent.cli(&["spawn", "--image", BUSYBOX, "--", "sh", "-c", "echo from inside; sleep 1000"]).ok();
    wait_until("its output", || agent.cli(&["logs", id.trim()]).ok().contains("from inside"));
    agent.cli(&["terminate", id.trim(), "--force"]).ok();
    agent.clear();
}
