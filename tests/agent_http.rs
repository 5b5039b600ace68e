//! What the node agent tells over HTTP as it happens, and how much it lets others ask of it: output that goes on, events, a node that
//! drains, limits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::nhi::Nhi;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::process::Running;
use crate::harness::trust::Agent;
use crate::harness::{parts, poll, wait_until};
use crate::leak_table::{POLICY, backend};
use crate::warm_pool::http;

/// Where the agent listens, in the node's namespace.
const TCP: &str = "127.0.0.1:8080";

/// The client, going on beside the test.
fn beside(agent: &PoolAgent, words: &[&str]) -> Running {
    let mut command = Command::new(parts::cli());
    command.args(words).env("CRETO_ROOT", agent.network.node.path("creto"));
    Running::start(command)
}

fn spawn(agent: &PoolAgent, script: &str) -> String {
    agent.cli(&["spawn", "--image", BUSYBOX, "--", "sh", "-c", script]).ok().trim().to_owned()
}

/// A question over TCP; what is left of the answer is read from the stream.
fn ask(network: &Network, head: &str) -> BufReader<TcpStream> {
    network.host.inside(|| {
        let mut stream = TcpStream::connect(TCP).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(format!("{head}\r\nHost: creto\r\n\r\n").as_bytes()).unwrap();
        BufReader::new(stream)
    })
}

/// Its lines until one that begins so; that one is the last.
fn until(answer: &mut BufReader<TcpStream>, begin: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(answer.read_line(&mut line).unwrap(), 0, "it ended without {begin:?}: {lines:?}");
        lines.push(line.trim_end().to_owned());
        if line.starts_with(begin) {
            return lines;
        }
    }
}

#[test]
fn output_is_followed_through_its_rotation_to_the_sandboxs_end() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "[limits]\nlog_bytes = 65536");
    // What is written while it is trimmed would be lost: it grows too long by one write, and goes on after that.
    let id = spawn(
        &agent,
        "wait() { while [ ! -e /tmp/$1 ]; do sleep 1; done; }; wait a; seq 1 10000; \
         wait b; seq 10001 13000 > /tmp/x; dd if=/tmp/x bs=65536 2>/dev/null; wait c; seq 13001 14000; exit 7",
    );
    let go = |step: &str| agent.cli(&["exec", &id, "--", "touch", &format!("/tmp/{step}")]).ok();
    let following = beside(&agent, &["logs", &id, "--follow"]);
    go("a");
    following.wait_for("\n10000\n");
    let late = beside(&agent, &["logs", &id, "-f", "--tail", "2"]);
    late.wait_for("9999\n10000\n");
    go("b");
    let kept = network.node.path("creto/lib/logs").join(format!("{id}.log.1"));
    wait_until("the log is trimmed", || kept.exists());
    go("c");
    let lines = |from: u32, to: u32| (from..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert_eq!(following.finish().ok(), lines(1, 14_000));
    assert_eq!(late.finish().ok(), lines(9_999, 14_000));
    // It is kept for a while; root may look.
    assert_eq!(agent.cli(&["logs", &id, "--tail", "3", "--follow"]).ok(), lines(13_998, 14_000));
    assert_eq!(agent.cli(&["logs", &id, "--tail", "3"]).ok(), lines(13_998, 14_000));
    agent.clear();
}

#[test]
fn whoever_follows_and_goes_away_leaves_nothing_open() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let id = spawn(&agent, "echo begun; sleep 1000");
    wait_until("its output", || agent.cli(&["logs", &id]).ok().contains("begun"));
    wait_until("nobody asks", || agent.connections() == 0);
    for words in [&["logs", &id, "-f"][..], &["events"]] {
        let clients: Vec<_> = (0..5).map(|_| beside(&agent, words)).collect();
        wait_until("all are there", || agent.connections() == 5);
        clients.iter().for_each(|client| client.signal(Signal::SIGKILL));
        wait_until("all are gone", || agent.connections() == 0);
    }
    agent.clear();
}

#[test]
fn what_happens_to_sandboxes_is_told_in_order() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let (of_pool, of_all) =
        (beside(&agent, &["events", "--pool", "demo", "--json"]), beside(&agent, &["events", "--json"]));
    wait_until("they listen", || agent.connections() == 2);
    let mut over_tcp = ask(&network, "GET /v1/events?pool=demo HTTP/1.1");
    until(&mut over_tcp, ": listening");
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--max-ready", "1"]).ok();
    agent.wait_ready("demo", 1);
    let id = agent.json(&["claim", "demo"])["sandbox"]["id"].as_str().unwrap().to_owned();
    agent.cli(&["terminate", &id, "--force"]).ok();
    let cold = spawn(&agent, "exit 0");
    let gone = |running: &Running, id: &str| {
        let is = |line: &str| line.contains(id) && line.contains("\"gone\":true");
        assert!(poll(|| running.stdout().lines().any(is).then_some(())).is_some(), "{}", running.stdout());
        running.stdout()
    };
    let of = |text: &str, id: &str| -> Vec<Value> {
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|change| change["id"] == json!(id)).collect()
    };
    for (running, id, phases) in [
        (&of_pool, &id, &["Warming", "Ready", "Claimed", "Running", "Terminating", "Terminating"][..]),
        (&of_all, &cold, &["Warming", "Running", "Terminating", "Terminating"]),
    ] {
        let changes = of(&gone(running, id), id);
        let found: Vec<_> = changes.iter().map(|change| change["phase"].as_str().unwrap()).collect();
        assert_eq!(found, phases, "{changes:?}");
        let revisions: Vec<_> = changes.iter().map(|change| change["revision"].as_u64().unwrap()).collect();
        assert!(revisions.is_sorted(), "{revisions:?}");
        assert_eq!(changes.last().unwrap()["gone"], true);
    }
    assert!(!of_pool.stdout().contains(&cold), "it is not of the pool");
    until(&mut over_tcp, "event: sandbox");
    let told = until(&mut over_tcp, "data: ").join("\n");
    let seen = until(&mut over_tcp, "id: ").join("\n");
    assert!(told.contains("\"pool\":\"demo\"") && told.contains("Warming"), "{told}");

    // From a mark on; from one of another run of the agent something is lost, and the connection with it.
    let mark = seen.trim_start_matches("id: ").to_owned();
    let again = format!("GET /v1/events?pool=demo HTTP/1.1\r\nLast-Event-ID: {mark}");
    let mut again = ask(&network, &again);
    let told = until(&mut again, "data: ").join("\n");
    assert!(told.contains("Ready"), "{told}");
    agent.stop(Signal::SIGKILL);
    let cut = of_pool.finish();
    assert!(cut.status == 1 && cut.stderr.contains("creto-pool-agent"), "{cut:?}");
    agent.restart();
    for mark in [&*mark, "nonsense"] {
        let mut lost = ask(&network, &format!("GET /v1/events HTTP/1.1\r\nConnection: close\r\nLast-Event-ID: {mark}"));
        let mut text = String::new();
        lost.read_to_string(&mut text).unwrap();
        assert!(text.contains("event: lost") && text.contains("GET /v1/sandboxes"), "{text}");
    }
    agent.clear();
}

#[test]
fn a_drained_node_takes_no_work_and_what_runs_goes_on() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "2", "--max-ready", "2"]).ok();
    agent.wait_ready("demo", 2);
    let running = agent.json(&["claim", "demo"])["sandbox"]["id"].as_str().unwrap().to_owned();
    agent.cli(&["drain", "--node"]).ok();
    agent.wait_ready("demo", 0);
    wait_until("what waited is gone", || agent.cli(&["list"]).ok() == format!("{running}\n"));
    for again in [false, true] {
        if again {
            agent.stop(Signal::SIGKILL);
            agent.restart(); // it is kept
        }
        for (words, why) in [
            (&["spawn", "--image", BUSYBOX][..], "SpawnError::NodeDraining"),
            (&["claim", "demo"], "ClaimError::Draining"),
            (&["claim", "demo", "--on-empty", "wait", "--timeout", "60s"], "ClaimError::Draining"),
            (&["pool", "spawn", "demo"], "SpawnError::NodeDraining"),
        ] {
            let refused = agent.cli(words);
            assert!(refused.status == 1 && refused.stderr.contains(why), "{words:?}: {refused:?}");
            assert!(refused.stderr.contains("enable --node"), "{refused:?}");
        }
        agent.cli(&["exec", &running, "--", "true"]).ok();
        assert_eq!(agent.json(&["health"])["draining"], true);
        assert!(agent.cli(&["health"]).ok().contains("drains"), "it is well, and says so");
    }
    let mut answer = ask(&network, "GET /v1/node HTTP/1.1\r\nConnection: close");
    let mut text = String::new();
    answer.read_to_string(&mut text).unwrap();
    assert!(text.contains("\"drained\":true"), "{text}");
    assert_eq!(agent.json(&["pool", "stats", "demo"])["warming"], 0);
    agent.cli(&["enable", "--node"]).ok();
    agent.wait_ready("demo", 2);
    assert_eq!(agent.json(&["health"])["draining"], false);
    agent.clear();
}

/// What is left of an answer: its status and all of it.
fn rest(mut answer: BufReader<TcpStream>) -> (u16, String) {
    let mut text = String::new();
    answer.read_to_string(&mut text).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nConnection: close";

#[test]
fn whoever_asks_too_often_is_told_when_to_come_again_and_nobody_else_is() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let limits = "[api]\nbody = \"1s\"\n[api.rate]\nanonymous = 1\nanonymous_burst = 3\nagent = 1\nagent_burst = 1\n";
    let agent = PoolAgent::start(&network, limits);
    let ours = Agent::register(&network.node, "a", 1);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let token = |jti: &str| ours.token(&format!("creto:{}", host.trim()), jti);
    let delete = |token: &str| http(&network, "DELETE", "/v1/sandboxes/none", Some(token), "");
    for what in ["GET /health HTTP/1.1", "DELETE /v1/sandboxes/a HTTP/1.1\r\nAuthorization: Bearer x.y.z"] {
        let too_often = poll(|| {
            let (status, text) = rest(ask(&network, &format!("{what}\r\nConnection: close")));
            (status == 429).then_some(text)
        });
        let text = too_often.expect("a limit").to_lowercase();
        assert!(text.contains("retry-after: 1") && text.contains("problem+json"), "{text}");
        assert!(text.contains("rate-limited") && text.contains("[api.rate]"), "{text}");
        agent.cli(&["health"]).ok(); // root has room of its own
    }
    // From the same address: a token that counts is not held up by those that do not.
    assert_eq!(delete(&token("1")).1["code"], "sandbox-not-found");
    let second = token("2");
    let (status, problem) = delete(&second);
    assert!(status == 404 || problem["code"] == "rate-limited", "{problem}");
    if status == 429 {
        // It was not used up by that.
        wait_until("it is let in", || delete(&second).0 == 404);
    }
    let slow = poll(|| {
        let head = format!(
            "POST /v1/sandboxes HTTP/1.1\r\nContent-Length: 9\r\nConnection: close\r\nAuthorization: Bearer {}",
            token("3")
        );
        let (status, text) = rest(ask(&network, &head));
        (status != 429).then_some((status, text))
    });
    assert!(matches!(slow, Some((408, _))), "{slow:?}");
    agent.clear();
}

#[test]
fn who_finds_no_place_over_tcp_is_told_so_and_the_socket_is_roots() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "[api]\nconcurrent = 2\nhead = \"1h\"\n");
    assert_eq!(rest(ask(&network, HEALTH)).0, 200);
    let connect = || network.host.inside(|| TcpStream::connect(TCP).unwrap());
    let silent = [connect(), connect()];
    let refused = poll(|| Some(rest(ask(&network, HEALTH))).filter(|(status, _)| *status == 503)).expect("no place");
    assert!(
        refused.1.contains("too-many-callers") && refused.1.to_lowercase().contains("retry-after: 1"),
        "{refused:?}"
    );
    agent.cli(&["health"]).ok();
    drop(silent);
    wait_until("there is room again", || rest(ask(&network, HEALTH)).0 == 200);
    // Of two places one may be a listener's.
    let mut listener = ask(&network, "GET /v1/events HTTP/1.1");
    until(&mut listener, ": listening");
    let (status, text) = rest(ask(&network, "GET /v1/events HTTP/1.1\r\nConnection: close"));
    assert!(status == 503 && text.contains("too-many-listeners"), "{text}");
    agent.clear();
}

/// `/health` over TLS, by whoever trusts this certificate alone.
fn health_over_tls(network: &Network, trusted: &CertificateDer<'static>) -> Result<String, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = network.host.inside(|| TcpStream::connect(TCP).unwrap());
    let mut stream = rustls::StreamOwned::new(session, stream);
    write!(stream, "{HEALTH}\r\nHost: creto\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn tls_is_spoken_by_the_nodes_certificate_and_by_another_after_sighup() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let (certificate, key) = (network.node.path("node.pem"), network.node.path("node.key"));
    let new = || {
        let new = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(&certificate, new.cert.pem()).unwrap();
        std::fs::write(&key, new.signing_key.serialize_pem()).unwrap();
        new.cert.der().clone()
    };
    let first = new();
    let agent = PoolAgent::start(&network, &format!("[api.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"));
    let text = health_over_tls(&network, &first).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("healthy"), "{text}");
    let mut plain = ask(&network, HEALTH);
    let mut text = Vec::new();
    let _ = plain.read_to_end(&mut text); // an alert, or it is cut off
    assert!(!text.starts_with(b"HTTP"), "it is not spoken in the clear");
    let second = new();
    agent.signal(Signal::SIGHUP);
    wait_until("the other certificate", || health_over_tls(&network, &second).is_ok());
    assert!(health_over_tls(&network, &first).is_err());
    std::fs::write(&key, "nonsense").unwrap();
    agent.signal(Signal::SIGHUP);
    wait_until("it is said", || agent.log().contains("the certificate of before goes on"));
    assert!(health_over_tls(&network, &second).is_ok());
    agent.clear();
}

#[test]
fn over_tcp_agents_are_looked_up_where_the_shim_looks_them_up() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let nhi = network.host.inside(Nhi::start);
    let certificate = network.node.path("nhi.pem");
    std::fs::write(&certificate, nhi.certificate()).unwrap();
    std::fs::write(network.node.path("creto/etc/runtime.toml"), nhi.settings(&certificate)).unwrap();
    let agent = PoolAgent::start(&network, "");
    let (known, of_file) = (Agent::unregistered("a", 1), Agent::register(&network.node, "b", 2));
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": known.x(), "kid": "k"});
    nhi.says(&known.id, "200 OK", json!({"creto.dev/agent": known.id, "keys": [key]}).to_string());
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--max-ready", "1"]).ok();
    agent.wait_ready("demo", 1);
    let claim = |agent: &Agent, jti: &str| {
        http(&network, "POST", "/v1/warm-pools/demo/claims", Some(&agent.token("creto:n1", jti)), "{}")
    };
    let (status, claimed) = claim(&known, "1");
    assert_eq!((status, &claimed["sandbox"]["agent"]), (200, &json!(known.id)), "{claimed}");
    let (status, problem) = claim(&of_file, "2");
    assert!(status == 401 && problem["detail"].as_str().unwrap().contains("has no such agent"), "{problem}");
    // By the operator's word, too.
    agent.wait_ready("demo", 1);
    agent.cli(&["claim", "demo", "--agent", &known.id]).ok();
    assert!(agent.cli(&["claim", "demo", "--agent", &of_file.id]).stderr.contains("IdentityRejected"));
    nhi.says(&known.id, "410 Gone", String::new());
    let numbers = std::cell::Cell::new(10);
    wait_until("it is revoked", || {
        numbers.set(numbers.get() + 1);
        let (status, problem) = claim(&known, &numbers.get().to_string());
        status == 401 && problem["detail"].as_str().unwrap().contains("revoked")
    });
    network.host.inside(|| drop(nhi));
    let stranger = Agent::unregistered("c", 3);
    let (status, problem) = claim(&stranger, "4");
    assert!(status == 401 && problem["detail"].as_str().unwrap().contains("cannot be looked up"), "{problem}");
    agent.clear();
}

#[test]
fn a_callers_trace_goes_through_all_that_is_done_for_it() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let ours = Agent::register(&network.node, "a", 1);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--max-ready", "1"]).ok();
    agent.wait_ready("demo", 1);
    let (trace, token) = ("4bf92f3577b34da6a3ce929d0e0e4736", ours.token(&format!("creto:{}", host.trim()), "1"));
    let (status, text) = rest(ask(
        &network,
        &format!(
            "POST /v1/warm-pools/demo/claims HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\
             Connection: close\r\nTraceparent: 00-{trace}-00f067aa0ba902b7-01"
        ),
    ));
    assert_eq!(status, 200, "{text}");
    assert!(text.to_lowercase().contains(&format!("traceresponse: 00-{trace}-")), "{text}");
    let is_claimed = |line: &str| line.contains(trace) && line.contains("claimed") && line.contains("demo");
    wait_until("it is logged", || agent.log().lines().any(is_claimed));
    agent.clear();
}
