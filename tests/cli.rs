//! What the client says of a node, and does to it, holds for the node's next sandbox.

use std::fs;

use crate::harness::Node;

const AGENT: &str = "spiffe://example.org/agents/a";

#[test]
fn the_statement_of_a_running_sandbox_is_valid_and_tells_until_when() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let said = node.cli(&["attestation", "verify", "c"]).ok();
    assert!(said.starts_with("Valid. Proven:\n") && said.contains("sandbox c in namespace"), "{said}");
    let shown = node.cli_json(&["attestation", "get", "c"]);
    let (issued, until) = (shown["issuedAt"].as_str().unwrap(), shown["validUntil"].as_str().unwrap());
    assert!(issued < until, "{shown}");
    assert_eq!(node.cli_json(&["attestation", "verify", "c"])["predicate"]["validUntil"], until);
    assert_eq!(node.cli(&["attestation", "verify", "d"]).status, 1, "there is no such sandbox");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn a_new_key_signs_the_next_sandbox_and_the_earlier_one_counts_as_long_as_it_is_let() {
    let node = Node::start();
    let verify = |id: &str, options: &[&str]| node.cli(&[&["attestation", "verify", id], options].concat());
    node.run_detached("old", &[], &["sleep", "1000"]);
    let rotated = node.cli(&["keys", "rotate"]).ok();
    assert!(rotated.contains("key v2 signs now"), "{rotated}");
    node.run_detached("new", &[], &["sleep", "1000"]);
    for (id, options, status) in [
        ("old", &[][..], 0), // within the overlap
        ("old", &["--key-version", "v1"], 0),
        ("old", &["--key-version", "v2"], 1),
        ("new", &[], 0),
        ("new", &["--key-version", "v1"], 1),
        ("new", &["--key-version", "v2"], 0),
    ] {
        let said = verify(id, options);
        assert_eq!(said.status, status, "{id} {options:?}: {said:?}");
    }
    node.cli(&["keys", "deprecate", "v1"]).ok();
    let said = verify("old", &[]);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("Error: VerificationResult::Invalid { reason: "), "{said:?}");
    verify("old", &["--key-version", "v1"]).ok();
    verify("new", &[]).ok();
    let found = node.cli_json(&["audit", "search", "--event", "KeyRotated"]);
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    for id in ["old", "new"] {
        node.remove(id);
    }
    node.assert_nothing_left();
}

#[test]
fn an_agent_that_is_added_or_revoked_is_so_for_the_next_sandbox() {
    let node = Node::start();
    let (key, public) = (node.path("a.pem"), node.path("a.jwk"));
    fs::write(&public, node.cli(&["agent", "keygen", key.to_str().unwrap()]).ok()).unwrap();
    let claim = format!("creto.dev/agent={AGENT}");
    let run = |id: &str| {
        let said = node.run(id, &["--annotation", &claim], &["true"]);
        node.ctr(&["container", "rm", id]);
        said
    };
    let refused = run("before");
    assert!(refused.status != 0 && refused.stderr.contains("not known"), "{refused:?}");
    node.cli(&["agent", "add", AGENT, "--key", public.to_str().unwrap()]).ok();
    run("added").ok();
    node.cli(&["agent", "revoke", AGENT]).ok();
    let refused = run("revoked");
    assert!(refused.status != 0 && refused.stderr.contains("revoked"), "{refused:?}");
    let found = node.cli_json(&["audit", "search", "--agent-nhi", AGENT, "--event", "SandboxCreated"]);
    let ids: Vec<_> = found.as_array().unwrap().iter().map(|record| &record["about"]["sandbox"]).collect();
    assert_eq!(ids, ["added"], "{found}");
    node.assert_nothing_left();
}
