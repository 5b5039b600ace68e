//! Agents that a creto-nhi service knows have sandboxes; nobody else has, whatever is wrong.

use std::fs;

use serde_json::json;

use crate::harness::nhi::Nhi;
use crate::harness::trust::Agent;
use crate::harness::{Node, Setup};

/// What the service says of an agent in good standing.
fn keys(agent: &Agent) -> String {
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": agent.x(), "kid": "k"});
    json!({"creto.dev/agent": agent.id, "keys": [key]}).to_string()
}

#[test]
fn an_agent_has_a_sandbox_if_the_service_says_so_now() {
    let nhi = Nhi::start();
    let certificate = tempfile::NamedTempFile::new().unwrap();
    fs::write(certificate.path(), nhi.certificate()).unwrap();
    let node = Node::with(Setup { settings: nhi.settings(certificate.path()), ..Setup::default() });
    let agent = Agent::unregistered("a", 1);
    let agent_is = format!("creto.dev/agent={}", agent.id);
    let token_in = format!("creto.dev/agent-token-file={}", node.path("token").display());
    let options = ["--annotation", &agent_is, "--annotation", &token_in];
    let run = |id: &str, jti: &str| {
        fs::write(node.path("token"), agent.token("creto:n1", jti)).unwrap();
        node.run(id, &options, &["cat", "/run/creto/attestation.dsse.json"])
    };
    let refused = |id: &str, jti: &str, why: &str| {
        let said = run(id, jti);
        assert!(said.status != 0 && said.stderr.contains(why), "{id}: {said:?}");
        assert_eq!(node.recorded(id), ["IdentityRejected"], "{id}");
        node.ctr(&["container", "rm", id]);
    };

    refused("unknown", "1", "has no such agent");
    nhi.says(&agent.id, "200 OK", keys(&agent));
    let envelope = run("known", "2").ok();
    let verified = node.verify(envelope.as_bytes(), &Default::default(), Default::default()).unwrap();
    let said = serde_json::to_value(verified.statement.predicate()).unwrap();
    assert_eq!(said["agent"], json!({"proof": "token", "id": agent.id}));
    assert_eq!(nhi.asked(), 2);
    nhi.says(&agent.id, "200 OK", keys(&Agent::unregistered("a", 2)));
    refused("stranger", "3", "signature");
    nhi.says(&agent.id, "410 Gone", String::new());
    refused("revoked", "4", "is revoked by");
    nhi.says(&agent.id, "200 OK", "{}".into());
    refused("nonsense", "5", "not a JWK Set");
    assert_eq!(nhi.asked(), 5);
    assert_eq!(node.run("nobody", &[], &["true"]).status, 0, "who names no agent needs no service");
    assert_eq!(nhi.asked(), 5);

    nhi.says(&agent.id, "200 OK", keys(&agent));
    fs::write(certificate.path(), Nhi::start().certificate()).unwrap();
    refused("impostor", "6", "certificate");
    fs::write(certificate.path(), nhi.certificate()).unwrap();
    assert_eq!(run("again", "7").status, 0);
    drop(nhi);
    refused("down", "8", "cannot be looked up");
    // Files on the node do not help an agent that the service is asked about.
    agent.write(&node, "a", "enabled");
    refused("file", "9", "cannot be looked up");
    node.assert_nothing_left();
}
