//! What the node agent keeps doing beside its callers: it ends what nobody uses, drains the audit spools, tells how all of it stands; and
//! what of others is not there is told apart.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use creto_runtime::Runtime;
use creto_runtime::api::types::{ClaimRequest, OnEmpty};
use creto_runtime::claim::Caller;
use creto_runtime::node::Root;
use creto_runtime::spec::NetworkPolicy;
use egress::client::{Client, DEADLINE};
use egress::policy::{Protocol, Verdict};
use egress::protocol::{Ask, SandboxKey};
use nix::sys::signal::Signal;
use serde_json::Value;
use trust::attestation::verify::Expectations;
use trust::sandbox_api::Proven;

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::Agent;
use crate::harness::{parts, wait_until};
use crate::leak_table::{POLICY, backend};

/// A sandbox without a network, and its id.
fn spawn(agent: &PoolAgent, options: &[&str], script: &str) -> String {
    let words = [&["spawn", "--image", BUSYBOX, "--no-network"], options, &["--", "sh", "-c", script]].concat();
    agent.cli(&words).ok().trim().to_owned()
}

fn runs(agent: &PoolAgent, id: &str) -> bool {
    agent.cli(&["list", "--status", "Running"]).ok().lines().any(|line| line == id)
}

/// What `/metrics` answers.
fn metrics(network: &Network) -> String {
    let answer = network.host.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:8080").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: creto\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    body.to_owned()
}

/// The value of a sample without labels.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
}

#[test]
fn what_nobody_uses_ends_and_what_works_or_is_visited_does_not() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    let idle = ["--idle-timeout", "5s"];
    let busy = spawn(&agent, &idle, "while :; do :; done");
    let visited = spawn(&agent, &idle, "sleep 1000");
    thread::scope(|all| {
        all.spawn(|| agent.cli(&["exec", &visited, "--", "sleep", "1000"]));
        let unused = spawn(&agent, &idle, "sleep 1000");
        wait_until("what nobody uses has ended", || !runs(&agent, &unused));
        assert!(agent.log().contains("idle"), "{}", agent.log());
        assert!(runs(&agent, &busy) && runs(&agent, &visited), "{}", agent.log());
        // With the agent its sessions end; the next one knows when there was somebody last.
        agent.stop(Signal::SIGKILL);
        agent.restart();
    });
    wait_until("what was visited has ended", || !runs(&agent, &visited));
    assert!(runs(&agent, &busy), "{}", agent.log());
    agent.clear();
}

#[test]
fn records_are_drained_while_the_client_drains_too_and_a_ledger_that_is_down_stops_nothing() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    let node = &network.node;
    spawn(&agent, &[], "sleep 1000");
    wait_until("nothing waits in the spools", || {
        let metrics = metrics(&network);
        value(&metrics, "creto_runtime_audit_spool_records") == 0.0
            && value(&metrics, "creto_runtime_audit_ledger_records") >= 3.0
    });
    thread::scope(|all| {
        all.spawn(|| (0..3).for_each(|_| drop(spawn(&agent, &[], "sleep 1000"))));
        (0..10).for_each(|_| drop(node.cli_json(&["audit", "search"])));
    });
    let report = node.cli_json(&["audit", "verify"]);
    assert_eq!((&report["intact"], &report["holes"]), (&true.into(), &Value::Array(vec![])), "{report}");

    let (ledger, kept) = (node.path("creto/lib/audit.db"), node.path("creto/lib/audit.kept"));
    fs::rename(&ledger, &kept).unwrap();
    fs::create_dir(&ledger).unwrap();
    spawn(&agent, &[], "sleep 1000");
    wait_until("it is said that records wait", || {
        let (health, metrics) = (agent.cli(&["health"]), metrics(&network));
        health.text().contains("degraded")
            && value(&metrics, "creto_runtime_audit_spool_records") > 0.0
            && value(&metrics, "creto_runtime_audit_ledger_failures_total") > 0.0
    });
    fs::remove_dir(&ledger).unwrap();
    fs::rename(&kept, &ledger).unwrap();
    wait_until("they are drained after all", || {
        value(&metrics(&network), "creto_runtime_audit_spool_records") == 0.0 && agent.cli(&["health"]).status == 0
    });
    let report = node.cli_json(&["audit", "verify"]);
    assert_eq!((&report["intact"], &report["holes"]), (&true.into(), &Value::Array(vec![])), "{report}");
    agent.clear();
}

/// Reads a text as Prometheus does, or fails; prints the families' names.
const PARSE: &str = "import sys\n\
from prometheus_client.openmetrics.parser import text_string_to_metric_families\n\
for family in text_string_to_metric_families(sys.stdin.read()): print(family.name, family.type, len(family.samples))\n";

fn parsed(text: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", PARSE]).env("PYTHONPATH", parts::openmetrics());
    python.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = python.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "it is no OpenMetrics text:\n{text}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn metrics_are_openmetrics_with_those_of_creto_egress_where_it_answers() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--wait"]).ok();
    agent.json(&["claim", "demo", "--policy", "web"]);
    spawn(&agent, &[], "sleep 1000");
    let mut text = String::new();
    wait_until("the pool was looked at after the claim", || {
        text = metrics(&network);
        ["pool_hit_ratio{", "pool_oldest_member_age_seconds{"].iter().all(|name| text.contains(name))
    });
    for decision in ["Allow", "Deny", "RequireAuthz"] {
        value(&text, &format!("creto_runtime_egress_attempts_total{{decision=\"{decision}\"}}"));
    }
    let families = parsed(&text);
    for family in [
        "creto_runtime_spawn_latency_seconds histogram",
        "creto_runtime_pool_claim_latency_seconds histogram",
        "creto_runtime_pool_hit_ratio gauge",
        "creto_runtime_pool_oldest_member_age_seconds gauge",
        "creto_runtime_sandboxes gauge",
        "creto_runtime_audit_spool_records gauge",
        "creto_runtime_egress_up gauge",
        "creto_runtime_egress_attempts counter",
        "creto_runtime_egress_check_latency_seconds histogram",
    ] {
        assert!(families.lines().any(|line| line.starts_with(family)), "{family} in\n{families}");
    }
    assert_eq!(value(&text, "creto_runtime_egress_up"), 1.0);

    network.stop_egress(Signal::SIGTERM);
    let text = metrics(&network);
    assert_eq!(value(&text, "creto_runtime_egress_up"), 0.0);
    assert!(!parsed(&text).contains("creto_runtime_egress_attempts"), "{text}");
    network.start_egress();
    agent.clear();
}

#[test]
fn a_member_whose_fence_is_lost_is_not_handed_out_and_the_claim_gets_another() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "2", "--max-ready", "2"]).ok();
    agent.wait_ready("demo", 2);
    let ready = agent.cli(&["list", "--status", "Ready"]).ok();
    let oldest = ready.lines().next().unwrap().to_owned(); // a claim takes it first
    let mut daemon = Client::connect(&network.node.path("creto/run/egress.sock"), DEADLINE).unwrap();
    let sandbox = SandboxKey { namespace: network.node.namespace().to_owned(), id: oldest.clone() };
    daemon.done(Ask::Detach(sandbox)).unwrap();
    for _ in 0..2 {
        let claimed = agent.json(&["claim", "demo", "--policy", "web", "--on-empty", "wait"]);
        assert_ne!(claimed["sandbox"]["id"], oldest, "{claimed}");
    }
    wait_until("it is gone", || !agent.cli(&["list"]).ok().lines().any(|id| id == oldest));
    assert!(agent.log().contains("a member is lost"), "{}", agent.log());
    agent.clear();
}

#[test]
fn what_is_not_there_is_told_apart() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let owner = Agent::register(&network.node, "a", 1);
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--max-ready", "1"]).ok();
    let unknown = "spiffe://example.org/agents/unknown";
    let spawn = ["spawn", "--image", BUSYBOX];
    for (words, code) in [
        (&["--secret", "file:none"][..], "SecretUnavailable"),
        (&["--agent", unknown], "IdentityRejected"),
        (&["--policy", "none"], "PolicyInvalid"),
    ] {
        agent.wait_ready("demo", 1);
        for verb in [&spawn[..], &["claim", "demo"]] {
            let done = agent.cli(&[verb, words].concat());
            assert!(done.status == 1 && done.stderr.contains(code), "{verb:?} {words:?}: {}", done.stderr);
            assert!(!done.stderr.contains("[creto.dev/"), "the mark is for programs: {}", done.stderr);
        }
    }
    agent.wait_ready("demo", 1);
    network.stop_egress(Signal::SIGTERM);
    for words in [&spawn[..], &["claim", "demo", "--agent", &owner.id]] {
        let done = agent.cli(words);
        assert!(done.status == 1 && done.stderr.contains("EgressUnavailable"), "{words:?}: {}", done.stderr);
    }
    network.start_egress();
    agent.clear();
}

/// What an orchestrator does that has the node agent in it.
async fn embedded(root: Root) {
    let runtime = Runtime::open(root).await.unwrap();
    runtime.recover().await;
    let node = runtime.clone();
    let work = tokio::spawn(async move { node.run().await });
    let request =
        ClaimRequest { network_policy: Some("web".parse().unwrap()), on_empty: OnEmpty::Wait, ..Default::default() };
    let caller = Caller { agent: None, proven: Proven::Operator };
    let pool = runtime.pools.get(&"demo".parse().unwrap()).await.unwrap();
    let claimed = runtime.pools.claim(&pool, &request, &caller).await.unwrap();
    let id = claimed.sandbox.id;
    assert!(
        claimed.warm && runtime.egress.fences().await.unwrap().iter().any(|l| l.fence.sandbox.id == id.to_string())
    );

    let (attestations, egress) = (&runtime.attestations, &runtime.egress);
    let before = attestations.verify_history(&id).await.unwrap();
    let verdict = async || egress.explain(&id, "open.creto.net", 443, Protocol::Tcp).await.unwrap().verdict;
    assert_eq!(verdict().await, Verdict::Allow);
    let changed = egress.set_policy(&id, NetworkPolicy::deny_all()).await.unwrap();
    assert_eq!(verdict().await, Verdict::Deny);
    let after = attestations.verify_history(&id).await.unwrap();
    assert_ne!(before.digest, after.digest, "it is attested anew");
    assert_eq!(
        (changed.attestation, changed.spec.network_policy),
        (Some(after.digest), Some(NetworkPolicy::deny_all()))
    );
    let current = attestations.current(&id).await.unwrap();
    assert_eq!(attestations.verify(&current, &Expectations::default()).await.unwrap().digest, after.digest);
    assert!(attestations.history(&id).await.unwrap().len() >= 3, "of its making, the claim, and the change");
    work.abort();
}

#[test]
fn whoever_embeds_the_node_works_with_the_services_of_the_daemon() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1"]).ok();
    agent.wait_ready("demo", 1);
    agent.stop(Signal::SIGTERM);
    network.host.inside(|| {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        tokio.block_on(embedded(Root::new(Some(&network.node.path("creto")))));
    });
    agent.restart();
    agent.clear();
}
