//! What the node agent tells over HTTP as it happens, and how much it lets others ask of it: output that goes on, events, a node that
//! drains, limits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::process::Running;
use crate::harness::{parts, poll, wait_until};
use crate::leak_table::{POLICY, backend};

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
