//! Sandboxes are made, listed, shown and ended through the node agent.

use std::process::Stdio;

use axum::http::StatusCode;
use creto_runtime::api::problem::Problem;
use creto_runtime::api::types::{Ended, SandboxView};
use creto_runtime::sandbox::Phase;
use serde_json::json;

use crate::node::{AGENT, Node};
use crate::pool_agent::{PoolAgent, sandbox, sandboxes, view};
use crate::pty::Pty;

#[test]
fn programs_get_ids_and_of_none_nothing() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/sandboxes", &sandboxes(vec![]));
    assert_eq!(node.run(&["list"]).good(), "");
    assert_eq!(node.run(&["list", "--json"]).json(), json!([]));
    let all = vec![
        view("box-1", Phase::Running, Some((12.0, 1 << 20))),
        view("box-2", Phase::Running, Some((95.5, 1 << 30))),
        view("box-3", Phase::Failed, None),
    ];
    agent.answers("GET /v1/sandboxes", &sandboxes(all));
    assert_eq!(node.run(&["list"]).good(), "box-1\nbox-2\nbox-3\n");
    assert_eq!(node.run(&["list", "--cpu-usage", ">80%", "--limit", "5"]).good(), "box-2\n");
    assert_eq!(node.run(&["list", "--sort-by", "memory_usage", "--descending"]).good(), "box-2\nbox-1\nbox-3\n");
    let json = node.run(&["list", "--sort-by", "cpu_usage", "--json", "--limit", "1", "--descending"]).json();
    assert_eq!((&json[0]["id"], &json[0]["usage"]["cpuPercent"]), (&json!("box-2"), &json!(95.5)));
    assert_eq!(json.as_array().unwrap().len(), 1);
}

#[test]
fn the_agent_chooses_what_it_can_choose() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/sandboxes", &sandboxes(vec![]));
    for (line, question) in [
        (&["list", "--status", "running", "--limit", "3"][..], "?status=Running&limit=3"),
        (&["list", "--status", "Creating", "--limit", "3"], "?status=Warming"),
        (&["list", "--selector", "team=a,tier!=b"], "?selector=team%3Da%2Ctier%21%3Db"),
        (&["list", "--sort-by", "age", "--limit", "3"], ""),
        (&["list"], ""),
    ] {
        node.run(line).good();
        assert_eq!(agent.asked(), [format!("GET /v1/sandboxes{question}")], "{line:?}");
    }
}

#[test]
fn people_get_a_table() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/sandboxes", &sandboxes(vec![view("box-1", Phase::Running, Some((12.0, 1 << 20)))]));
    let mut pty = Pty::run(node.command(&["list"]));
    assert!(pty.end().success());
    let seen = pty.until("AGENT\r\n");
    let seen = seen + &pty.until("python:3.11");
    assert!(seen.contains("ID     NAME  STATUS") && seen.contains("\u{1b}[32mRunning\u{1b}[0m"), "{seen:?}");
}

#[test]
fn a_sandbox_is_shown_with_its_policy_and_its_limits() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /v1/sandboxes/box-1", &view("box-1", Phase::Running, Some((12.0, 1 << 20))));
    let json = node.run(&["get", "box-1", "--json"]).json();
    assert_eq!(json["spec"]["networkPolicy"], "research");
    assert_eq!(json["spec"]["resourceLimits"], json!({ "memoryBytes": 512 << 20 }));
    let text = node.run(&["get", "box-1"]).good();
    for line in ["Id:             box-1", "Network policy: research", "Memory limit:   512Mi", "Age:            1h"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    assert!(!text.contains("Name:"), "{text}");
}

#[test]
fn the_shape_in_the_docs_is_that_of_the_record() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let docs = include_str!("../../../docs/cli.md").split("\n## spawn").nth(1).unwrap();
    let shape = docs.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let view: SandboxView = serde_json::from_str(shape).unwrap();
    agent.answers("GET /v1/sandboxes/box-1", &view);
    let shape: serde_json::Value = serde_json::from_str(shape).unwrap();
    assert_eq!(node.run(&["get", "box-1", "--json"]).json(), shape);
}

#[test]
fn a_sandbox_is_made_as_asked_for() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as(
        "POST /v1/sandboxes",
        StatusCode::CREATED,
        &serde_json::to_vec(&sandbox("box-1", Phase::Running)).unwrap(),
    );
    assert_eq!(node.run(&["spawn", "--image", "alpine"]).good(), "box-1\n");
    let least = json!({ "spec": { "image": "alpine", "backend": "gvisor", "resourceLimits": {}, "network": true } });
    assert_eq!(agent.body(), least);
    let line = [
        "spawn",
        "--image",
        "python:3.11",
        "--runtime",
        "kata",
        "--agent",
        AGENT,
        "--policy",
        "research",
        "--env",
        "A=b=c",
        "--memory",
        "512Mi",
        "--cpus",
        "0.5",
        "--name",
        "my-box",
        "--secret",
        "file:key",
        "--label",
        "team=a",
        "--cwd",
        "/tmp",
        "--user",
        "1:2",
        "--ttl",
        "1h",
        "--no-network",
        "--time",
        "--",
        "python3",
        "-c",
        "print(1)",
    ];
    let ran = node.run(&line);
    assert!(ran.err.starts_with("spawn: ") && ran.err.ends_with("ms\n"), "{}", ran.err);
    assert_eq!(ran.good(), "box-1\n");
    assert_eq!(
        agent.body(),
        json!({ "name": "my-box", "agent": AGENT, "spec": {
            "image": "python:3.11", "backend": "kata", "command": ["python3", "-c", "print(1)"], "env": { "A": "b=c" },
            "cwd": "/tmp", "user": "1:2", "networkPolicy": "research", "secrets": ["file:key"], "labels": { "team": "a" },
            "resourceLimits": { "memoryBytes": 512 << 20, "cpuMillis": 500 }, "network": false, "ttl": "1h",
        } })
    );
}

#[test]
fn a_runsc_is_named_from_where_one_stands() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("POST /v1/sandboxes", &sandbox("box-1", Phase::Running));
    std::fs::write(node.path("runsc"), "").unwrap();
    let mut command = node.command(&["spawn", "--image", "alpine", "--runsc-path", "./runsc"]);
    assert!(command.current_dir(node.path("")).stdout(Stdio::null()).status().unwrap().success());
    let path = node.path("runsc").canonicalize().unwrap();
    assert_eq!(agent.body()["spec"]["runscPath"], path.to_str().unwrap());
}

#[test]
fn what_the_agent_refuses_is_said_in_its_words_with_what_to_do() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let problem = Problem::new(StatusCode::NOT_FOUND, "image-not-found", "SpawnError::ImageNotFound(\"python:3.11\")")
        .hint("pull it, or name it by digest");
    agent.refuses("POST /v1/sandboxes", &problem);
    let line = ["spawn", "--image", "python:3.11"];
    let said = "Error: SpawnError::ImageNotFound(\"python:3.11\")\npull it, or name it by digest\n";
    assert_eq!(node.run(&line).bad(1), said);
    assert_eq!(node.run(&[&line[..], &["--wait"]].concat()).bad(125), said);
    agent.answers_as("POST /v1/sandboxes", StatusCode::BAD_GATEWAY, b"<html>\x1b[2J");
    let error = node.run(&line).bad(1);
    assert!(error.contains("502 Bad Gateway: <html>\\u{1b}[2J"), "{error:?}");
    agent.answers("POST /v1/sandboxes", &json!({ "id": 1 }));
    assert!(node.run(&line).bad(1).contains("of the same version?"));
}

#[test]
fn a_command_is_waited_for_where_that_is_asked() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("POST /v1/sandboxes", &sandbox("box-1", Phase::Running));
    let ran = node.run(&["spawn", "--image", "alpine", "--wait", "--", "echo"]);
    assert_eq!(ran.err, "err\n");
    assert_eq!(ran.good(), "out\n");
    assert_eq!(agent.asked(), ["POST /v1/sandboxes", "GET /v1/sandboxes/box-1/attach"]);
}

#[test]
fn sandboxes_are_ended_each_by_itself() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    for id in ["box-1", "box-3"] {
        agent.answers(&format!("DELETE /v1/sandboxes/{id}"), &sandbox(id, Phase::Terminating));
    }
    let unknown = Problem::new(StatusCode::NOT_FOUND, "sandbox-not-found", "there is no sandbox box-2");
    agent.refuses("DELETE /v1/sandboxes/box-2", &unknown);
    assert_eq!(node.run(&["terminate", "box-1"]).good(), "box-1\n");
    assert_eq!(agent.asked(), ["DELETE /v1/sandboxes/box-1"]);
    let ran = node.run(&["terminate", "box-1", "box-2", "box-3", "--force"]);
    assert_eq!(ran.out, "box-1\nbox-3\n");
    assert_eq!(ran.bad(1), "Error: box-2: there is no sandbox box-2\nsee what there is: creto-runtime-cli list\n");
    let mut asked = agent.asked();
    asked.sort();
    assert_eq!(asked, ["box-1", "box-2", "box-3"].map(|id| format!("DELETE /v1/sandboxes/{id}?force=true")));
}

#[test]
fn all_are_ended_with_one_question() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let ended = Ended { sandboxes: vec!["box-1".parse().unwrap(), "box-2".parse().unwrap()] };
    agent.answers("DELETE /v1/sandboxes", &ended);
    assert_eq!(node.run(&["terminate", "--all", "--force"]).good(), "box-1\nbox-2\n");
    assert_eq!(node.run(&["terminate", "--all"]).good(), "box-1\nbox-2\n");
    assert_eq!(agent.asked(), ["DELETE /v1/sandboxes?force=true", "DELETE /v1/sandboxes"]);
}

#[test]
fn logs_are_what_was_written() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers_as("GET /v1/sandboxes/box-1/logs", StatusCode::OK, b"one\ntwo\n");
    assert_eq!(node.run(&["logs", "box-1"]).good(), "one\ntwo\n");
    assert_eq!(node.run(&["logs", "box-1", "--tail", "2"]).good(), "one\ntwo\n");
    assert_eq!(agent.asked(), ["GET /v1/sandboxes/box-1/logs", "GET /v1/sandboxes/box-1/logs?tail=2"]);
    assert_eq!(node.run(&["logs", "box-1", "-f", "--tail", "2"]).good(), "one\ntwo\n");
    assert_eq!(agent.asked(), ["GET /v1/sandboxes/box-1/logs?tail=2&follow=true"]);
}

#[test]
fn where_no_agent_runs_it_is_said_how_to_start_it() {
    let node = Node::new();
    for (line, code) in [
        (&["list"][..], 1),
        (&["terminate", "a", "b"], 1),
        (&["pool", "drain", "a", "b"], 1),
        (&["health"], 1),
        (&["top"], 1),
        (&["exec", "a", "--", "ls"], 125),
        (&["claim", "a", "--", "ls"], 125),
    ] {
        let error = node.run(line).bad(code);
        assert_eq!(error.matches("does not answer at").count(), 1, "{error}");
        assert!(error.contains("run/pool-agent.sock") && error.contains("systemctl start creto-runtime"), "{error}");
    }
}

#[test]
fn on_a_terminal_one_sees_how_far_the_pull_is() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let pull = |image: &str, bytes: u64| {
        let data = json!({"image": image, "sandbox": "box-1", "bytes": bytes, "total": 4 << 20});
        format!("event: pull\ndata: {data}\nid: 1-1\n\n")
    };
    let events = format!(": listening\n\n{}{}", pull("alpine", 3 << 20), pull("python:3.11", 1 << 20));
    agent.answers_as("GET /v1/events", StatusCode::OK, events.as_bytes());
    agent.answers("POST /v1/sandboxes", &sandbox("box-1", Phase::Running)).holds("POST /v1/sandboxes");
    let mut pty = Pty::run(node.command(&["spawn", "--image", "python:3.11"]));
    let seen = pty.until("1.00 MiB of 4.00 MiB");
    assert!(seen.contains("pulling python:3.11 [") && !seen.contains("alpine"), "{seen:?}");
    agent.lets_go("POST /v1/sandboxes");
    assert!(pty.end().success());
    pty.until("box-1");
}

#[test]
fn what_happens_is_a_line_each_and_missing_events_are_a_failure() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let change = json!({"id": "demo-1", "node": "node-1", "pool": "demo", "phase": "Failed", "revision": 7,
        "reason": {"phase": "Warming", "code": "image-not-found", "message": "no\u{1b}[31m"}});
    let told = format!("event: sandbox\ndata: {change}\nid: 1-1\n\nevent: later\ndata: {{}}\n\n");
    agent.answers_as("GET /v1/events", StatusCode::OK, told.as_bytes());
    let text = node.run(&["events", "--pool", "demo", "--sandbox", "demo-1"]).good();
    assert_eq!(text, "demo-1 of demo: Failed (image-not-found: no\\u{1b}[31m)\n");
    assert_eq!(agent.asked(), ["GET /v1/events?sandbox=demo-1&pool=demo"]);
    assert_eq!(node.run(&["events", "--json"]).json(), change);
    agent.answers_as("GET /v1/events", StatusCode::OK, format!("{told}event: lost\ndata: {{}}\n\n").as_bytes());
    let ran = node.run(&["events"]);
    assert!(ran.out.contains("demo-1") && ran.bad(1).contains("look at the list"));
}
