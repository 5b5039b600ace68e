//! A sandbox is claimed out of a pool; a command in it runs as if it ran here.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use axum::http::StatusCode;
use creto_runtime::api::problem::Problem;
use creto_runtime::api::types::{Claimed, Took};
use creto_runtime::sandbox::Phase;
use serde_json::json;

use crate::node::{AGENT, Node};
use crate::pool_agent::{PoolAgent, sandbox};

fn claimed() -> Claimed {
    let took = Took { take: 1_100, bind: 6_000, keep: 900, start: 200, total: 8_200, ..Took::default() };
    Claimed { sandbox: sandbox("box-1", Phase::Running), warm: true, took }
}

#[test]
fn a_claim_asks_for_what_was_said_and_nothing_else() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("POST /v1/warm-pools/demo/claims", &claimed());
    assert_eq!(node.run(&["claim", "demo"]).good(), "box-1\n");
    assert_eq!(agent.body(), json!({ "onEmpty": "cold" }));
    let line = [
        "claim",
        "demo",
        "--agent",
        AGENT,
        "--policy",
        "{\"rules\":[]}",
        "--secret",
        "file:key",
        "--env",
        "A=b",
        "--on-empty",
        "wait",
        "--timeout",
        "10s",
        "--idempotency-key",
        "order/7",
        "--selector",
        "team=a",
        "--cwd",
        "/tmp",
        "--user",
        "1",
        "--ttl",
        "1h",
        "--json",
        "--",
        "python3",
        "-c",
        "print(1)",
    ];
    let json = node.run(&line).json();
    assert_eq!((&json["warm"], &json["took"]["total"]), (&json!(true), &json!(8200)));
    assert_eq!(
        agent.body(),
        json!({ "agent": AGENT, "networkPolicy": { "rules": [] }, "secrets": ["file:key"], "env": { "A": "b" },
            "onEmpty": "wait", "timeout": "10s", "idempotencyKey": "order/7", "selector": "team=a", "cwd": "/tmp",
            "user": "1", "ttl": "1h", "command": ["python3", "-c", "print(1)"] })
    );
}

#[test]
fn a_claimed_command_writes_here() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("POST /v1/warm-pools/demo/claims", &claimed());
    let ran = node.run(&["claim", "demo", "--time", "--", "echo"]);
    assert!(ran.err.starts_with("claim: 8.2ms (take 1.1ms, bind 6.0ms, keep 0.9ms, start 0.2ms; "), "{}", ran.err);
    assert!(ran.err.ends_with("with the way there), warm\nerr\n"), "{}", ran.err);
    assert_eq!(ran.good(), "out\n");
    assert_eq!(agent.asked(), ["POST /v1/warm-pools/demo/claims", "GET /v1/sandboxes/box-1/attach"]);
}

#[test]
fn a_claim_that_finds_nothing_says_so_as_the_runbook_does() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let detail = "ClaimError::Timeout (waited 30s, no ready sandboxes)";
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "claim-timeout", detail).hint("raise --max-ready");
    agent.refuses("POST /v1/warm-pools/demo/claims", &problem);
    let said = format!("Error: {detail}\nraise --max-ready\n");
    assert_eq!(node.run(&["claim", "demo"]).bad(1), said);
    assert_eq!(node.run(&["claim", "demo", "--", "ls"]).bad(125), said);
}

#[test]
fn whoever_ends_the_client_ends_the_sandbox_that_was_claimed_for_it() {
    for signal in ["-INT", "-TERM"] {
        let node = Node::new();
        let agent = PoolAgent::at(&node);
        agent.answers("POST /v1/warm-pools/demo/claims", &claimed());
        agent.answers("DELETE /v1/sandboxes/box-1", &sandbox("box-1", Phase::Terminating));
        agent.runs("sleep");
        let mut child = node.command(&["claim", "demo", "--", "sleep"]);
        let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "asleep\n");
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "Error: ended by a signal\n");
        assert!(agent.asked().contains(&"DELETE /v1/sandboxes/box-1".to_owned()));
    }
}
