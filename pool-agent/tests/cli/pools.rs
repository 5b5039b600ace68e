//! Pools are made, shown, changed and drained through the node agent.

use std::fs;
use std::time::Duration;

use axum::http::StatusCode;
use creto_runtime::api::problem::Problem;
use creto_runtime::api::types::{Ended, PoolStats, Pools};
use creto_runtime::pool::template::{AutoScaling, Mode, Origin, Pool, Scaling, Template};
use creto_runtime::sandbox::Phase;
use creto_runtime::spec::SandboxSpec;
use creto_runtime::store::Failure;
use serde_json::{Value, json};

use crate::node::{Node, now};
use crate::pool_agent::{PoolAgent, sandbox};

fn pool(name: &str) -> Pool {
    let template =
        Template { spec: SandboxSpec::of("python:3.11".parse().unwrap()), mode: Mode::Hold, readiness: None };
    let auto_scaling = AutoScaling { enabled: true, headroom: 2.0 };
    let scaling = Scaling { auto_scaling, max_age: Some(Duration::from_secs(2700)), ..Scaling::fixed(5, 20).unwrap() };
    let name = name.parse().unwrap();
    Pool { name, template, scaling, draining: false, origin: Origin::File, created_at: now(), revision: 1 }
}

fn stats(name: &str, ready: usize) -> PoolStats {
    PoolStats {
        pool: name.parse().unwrap(),
        scaling: Scaling::fixed(5, 20).unwrap(),
        draining: false,
        ready,
        claimed: 8,
        warming: 2,
        claims_per_minute: 15.3,
        avg_claim_millis: Some(82.0),
        p99_claim_millis: Some(95.0),
        hit_ratio: Some(0.5),
        oldest_seconds: Some(45 * 60),
    }
}

#[test]
fn pools_are_shown_as_the_runbook_has_them() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/warm-pools", &Pools { pools: vec![stats("demo", 12)] });
    agent.answers("GET /v1/warm-pools/demo/stats", &stats("demo", 12));
    agent.answers("GET /v1/warm-pools/demo", &pool("demo"));
    assert_eq!(
        node.run(&["pool", "stats", "demo"]).good(),
        "Pool: demo\nReady: 12/20\nClaimed: 8\nWarming: 2\nClaims/min: 15.3\nAvg claim latency: 82ms\n\
         P99 claim latency: 95ms\nOldest sandbox age: 45m\n"
    );
    assert_eq!(node.run(&["pool", "stats", "demo", "--json"]).json()["ready"], 12);
    assert_eq!(
        node.run(&["pool", "list"]).good(),
        "POOL  STATE  READY  CLAIMED  WARMING  CLAIMS/MIN  AVG   P99   HITS  OLDEST\n\
         demo  open   12/20  8        2        15.3        82ms  95ms  50%   45m\n"
    );
    assert_eq!(node.run(&["pool", "list", "--json"]).json()[0]["pool"], "demo");
    let text = node.run(&["pool", "get", "demo"]).good();
    for line in ["Pool:           demo", "Max age:        45m", "Auto-scaling:   headroom 2", "From:           file"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let json = node.run(&["pool", "get", "demo", "--json"]).json();
    assert_eq!(json["scaling"]["autoScaling"], json!({ "enabled": true, "headroom": 2.0 }));
}

#[test]
fn a_pool_is_made_from_options_or_from_a_file() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as("POST /v1/warm-pools", StatusCode::CREATED, &serde_json::to_vec(&pool("demo")).unwrap());
    fs::write(node.path("demo.toml"), "image = \"python:3.11\"\nmin_ready = 5\nmax_ready = 20\n").unwrap();
    let file = node.path("demo.toml").to_str().unwrap().to_owned();
    let mut bodies = Vec::<Value>::new();
    for line in [
        &["pool", "create", "demo", "--image", "python:3.11", "--min-ready", "5", "--max-ready", "20"][..],
        &["pool", "create", "-f", &file],
    ] {
        assert_eq!(node.run(line).good(), "pool demo: 5 to 20 ready\n");
        bodies.push(agent.body());
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(bodies[0]["name"], "demo");
    assert_eq!((&bodies[0]["scaling"]["minReady"], &bodies[0]["template"]["mode"]), (&json!(5), &json!("hold")));
    fs::write(&file, "image = \"python:3.11\"\nmin_ready = 5\n").unwrap();
    let error = node.run(&["pool", "create", "-f", &file]).bad(1);
    assert!(error.contains("demo.toml") && error.contains("max_ready"), "{error}");
    let exists =
        Problem::new(StatusCode::CONFLICT, "pool-exists", "there is a pool demo already").hint("use pool update");
    agent.refuses("POST /v1/warm-pools", &exists);
    let error = node.run(&["pool", "create", "demo", "--image", "a"]).bad(1);
    assert_eq!(error, "Error: there is a pool demo already\nuse pool update\n");
}

#[test]
fn a_new_pool_may_be_waited_for() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("POST /v1/warm-pools", &pool("demo"));
    agent.answers("GET /v1/warm-pools/demo/stats", &stats("demo", 5));
    let line = ["pool", "create", "demo", "--image", "a", "--wait", "--timeout", "1ms"];
    assert_eq!(node.run(&line).good(), "pool demo: 5 to 20 ready\n");
    agent.answers("GET /v1/warm-pools/demo/stats", &stats("demo", 3));
    let error = node.run(&line).bad(1);
    assert!(error.contains("after 1ms 3 of 5 members are ready") && error.contains("pool logs demo"), "{error}");
}

#[test]
fn only_what_was_said_changes() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("PATCH /v1/warm-pools/demo", &pool("demo"));
    for (line, body) in [
        (&["--min-ready", "20", "--max-ready", "50"][..], json!({ "minReady": 20, "maxReady": 50 })),
        (&["--auto-scaling-headroom", "2.0"], json!({ "autoScalingHeadroom": 2.0 })),
        (&["--auto-scaling-enabled", "false"], json!({ "autoScalingEnabled": false })),
        (&["--max-age", "45m"], json!({ "maxAge": "45m" })),
    ] {
        node.run(&[&["pool", "update", "demo"], line].concat()).good();
        assert_eq!(agent.body(), body, "{line:?}");
    }
}

#[test]
fn members_come_and_go_one_id_a_line() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let ended = Ended { sandboxes: vec!["a".parse().unwrap(), "b".parse().unwrap()] };
    agent.answers("POST /v1/warm-pools/demo/evictions", &ended);
    agent.answers("POST /v1/warm-pools/demo/members", &sandbox("c", Phase::Warming));
    agent.answers_as("DELETE /v1/warm-pools/demo", StatusCode::NO_CONTENT, b"");
    assert_eq!(node.run(&["pool", "evict", "demo", "--count", "10"]).good(), "a\nb\n");
    assert_eq!(agent.body(), json!({ "count": 10 }));
    assert_eq!(node.run(&["pool", "spawn", "demo"]).good(), "c\n");
    assert_eq!(node.run(&["pool", "delete", "demo"]).good(), "pool demo is gone\n");
    assert_eq!(agent.asked(), ["POST /v1/warm-pools/demo/members", "DELETE /v1/warm-pools/demo"]);
}

#[test]
fn what_failed_is_told_the_newest_last() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let failure = |sandbox: &str| Failure {
        at: now(),
        node: "node-1".parse().unwrap(),
        sandbox: sandbox.parse().unwrap(),
        phase: Phase::Warming,
        code: "image-not-found".into(),
        message: "SpawnError::ImageNotFound(\"x\")\u{1b}[2J".into(),
    };
    agent.answers("GET /v1/warm-pools/demo/logs", &[failure("new"), failure("old")]);
    let text = node.run(&["pool", "logs", "demo", "--phase", "Warming"]).good();
    let sandboxes: Vec<_> = text.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(sandboxes, ["old", "new"], "{text}");
    assert!(text.contains("image-not-found  SpawnError::ImageNotFound(\"x\")\\u{1b}[2J"), "{text}");
    assert_eq!(node.run(&["pool", "logs", "demo", "--json", "--limit", "2"]).json()[0]["sandbox"], "new");
    let asked = agent.asked();
    assert_eq!(asked, ["limit=50&phase=Warming", "limit=2"].map(|q| format!("GET /v1/warm-pools/demo/logs?{q}")));
}

#[test]
fn pools_are_drained_and_opened_each_by_itself() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/warm-pools", &Pools { pools: vec![stats("a", 1), stats("b", 1)] });
    for question in ["a/drain", "b/drain", "a/enable"] {
        agent.answers(&format!("POST /v1/warm-pools/{question}"), &stats("a", 0));
    }
    let done = "drains: nothing is claimed from it any more";
    assert_eq!(node.run(&["pool", "drain", "--all"]).good(), format!("pool a {done}\npool b {done}\n"));
    let ran = node.run(&["pool", "drain", "c", "a"]);
    assert_eq!(ran.out, format!("pool a {done}\n"));
    assert!(ran.bad(1).contains("c: nothing answers"));
    assert_eq!(node.run(&["pool", "enable", "a"]).good(), "pool a is open\n");
}
