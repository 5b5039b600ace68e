//! Whether the node is well, at a glance and for programs; and whether a backend makes sandboxes.

use axum::http::StatusCode;
use creto_runtime::api::types::{Health, HealthStatus, Pools, Runtime};
use creto_runtime::sandbox::Phase;
use serde_json::json;

use crate::node::Node;
use crate::pool_agent::{PoolAgent, sandboxes, view};
use crate::pty::Pty;

fn health(status: HealthStatus, containerd: &str) -> Health {
    let components = [("containerd", containerd), ("store", "ok")];
    let components = components.map(|(name, state)| (name.to_owned(), state.to_owned())).into();
    Health { status, components, draining: false }
}

#[test]
fn the_exit_code_says_whether_the_node_is_well() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("GET /health", &health(HealthStatus::Healthy, "ok"));
    assert_eq!(node.run(&["health"]).good(), "COMPONENT   STATE\ncontainerd  ok\nstore       ok\n");
    for (status, word) in [(HealthStatus::Degraded, "degraded"), (HealthStatus::Unhealthy, "unhealthy")] {
        let body = serde_json::to_vec(&health(status, "does not answer")).unwrap();
        agent.answers_as("GET /health", StatusCode::SERVICE_UNAVAILABLE, &body);
        let ran = node.run(&["health"]);
        assert!(ran.out.contains("containerd  does not answer\n"), "{}", ran.out);
        assert_eq!(ran.bad(1), format!("Error: the node is {word}\n"));
        let json: serde_json::Value = serde_json::from_str(&node.run(&["health", "--json"]).out).unwrap();
        assert_eq!(json["status"], word);
    }
    agent.answers_as("GET /health", StatusCode::BAD_GATEWAY, b"oh");
    assert!(node.run(&["health"]).bad(1).contains("502 Bad Gateway: oh"));
}

#[test]
fn a_backend_is_drained_and_enabled() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    agent.answers("PUT /v1/runtimes/kata", &Runtime { drained: true });
    for (verb, drained) in [("drain", true), ("enable", false)] {
        node.run(&[verb, "--runtime", "kata"]).good();
        assert_eq!(agent.body(), json!({ "drained": drained }), "{verb}");
    }
}

fn busy(agent: &PoolAgent) {
    agent.answers("GET /health", &health(HealthStatus::Healthy, "ok"));
    agent.answers("GET /v1/warm-pools", &Pools { pools: vec![] });
    let all = vec![view("idle", Phase::Running, Some((0.1, 1))), view("busy", Phase::Running, Some((99.0, 1)))];
    agent.answers("GET /v1/sandboxes", &sandboxes(all));
}

#[test]
fn top_shows_the_busiest_first_and_once_where_nobody_looks() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    busy(&agent);
    let text = node.run(&["top"]).good();
    assert!(text.starts_with("node: healthy, sandboxes: 2\n"), "{text}");
    assert!(text.find("busy").unwrap() < text.find("idle").unwrap(), "{text}");
}

#[test]
fn top_goes_on_until_q_and_leaves_the_terminal_as_it_was() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    busy(&agent);
    let mut pty = Pty::run(node.command(&["top", "--interval", "100ms"]));
    pty.until("node: healthy, sandboxes: 2");
    let raw = pty.settings();
    agent.answers("GET /v1/sandboxes", &sandboxes(vec![]));
    pty.until("node: healthy, sandboxes: 0");
    agent.answers("GET /health", &health(HealthStatus::Degraded, "slow"));
    pty.until("node: degraded, sandboxes: 0, containerd: slow");
    pty.press("q");
    assert!(pty.end().success());
    let seen = pty.until("\u{1b}[?1049l");
    assert!(seen.contains("\u{1b}[?1049h"));
    assert_ne!(pty.settings().local_modes, raw.local_modes);
}
