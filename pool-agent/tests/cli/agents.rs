//! An agent that is added may have sandboxes, by its own token, until it is revoked.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use trust::id::AgentId;
use trust::identity::registry::Registry;
use trust::identity::source::SourceError;
use trust::identity::token::{self, Rules};

use crate::node::{AGENT, Node, now};

fn agent() -> AgentId {
    AGENT.parse().unwrap()
}

/// Makes a key; gives the paths of its private and its public half.
fn keygen(node: &Node, name: &str) -> (String, String) {
    let path = |end: &str| node.path(&format!("{name}.{end}")).to_str().unwrap().to_owned();
    let (private, public) = (path("pem"), path("jwk"));
    fs::write(&public, node.run(&["agent", "keygen", &private]).good()).unwrap();
    (private, public)
}

#[test]
fn an_added_agents_token_is_taken_and_a_revoked_agent_is_not() {
    let node = Node::new();
    let (private, public) = keygen(&node, "key");
    let registry = Registry::new(node.path("etc/agents.d"));
    node.run(&["agent", "add", AGENT, "--key", &public, "--backends", "gvisor,kata", "--policy", "web-only"]).good();
    let found = registry.find(&agent()).unwrap();
    assert_eq!(found.backends.as_ref().unwrap().len(), 2);
    assert_eq!(found.default_policy.as_ref().unwrap().to_string(), "web-only");

    let token = node.run(&["agent", "token", AGENT, "--key", &private, "--audience", "creto:x"]).good();
    token::verify(token.trim_end(), &agent(), &found.keys, &Rules::new("creto:x"), now()).unwrap();
    let token = node.run(&["agent", "token", AGENT, "--key", &private, "--lifetime", "30s"]).good();
    let genuine = token::verify(token.trim_end(), &agent(), &found.keys, &Rules::new("creto:node-1"), now()).unwrap();
    assert!(genuine.until <= now().plus(std::time::Duration::from_secs(60)), "30 s and the skew");

    let list = node.run(&["agent", "list"]).good();
    assert!(list.contains(AGENT) && list.contains("enabled") && list.contains("gvisor,kata"), "{list}");
    let file = fs::read_dir(node.path("etc/agents.d")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    node.run(&["agent", "revoke", AGENT]).good();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600, "as the operator had it");
    assert!(matches!(registry.find(&agent()), Err(SourceError::Revoked(..))));
    assert_eq!(node.run(&["agent", "list", "--json"]).json()[0]["status"], "revoked");
    node.run(&["agent", "revoke", AGENT]).good(); // it stays so
}

#[test]
fn who_may_have_sandboxes_is_in_the_audit_record() {
    let node = Node::new();
    let (_, public) = keygen(&node, "key");
    node.run(&["agent", "add", AGENT, "--key", &public]).good();
    node.run(&["agent", "add", AGENT, "--key", &public]).bad(1); // nothing happened
    for _ in 0..2 {
        node.run(&["agent", "revoke", AGENT]).good(); // once it changes something
    }
    node.run(&["agent", "revoke", "spiffe://example.org/agents/other"]).bad(1);
    let found = node.run(&["audit", "search", "--agent-nhi", AGENT, "--json"]).json();
    let names: Vec<_> = found.as_array().unwrap().iter().map(|record| &record["event"]["type"]).collect();
    assert_eq!(names, ["AgentAdded", "AgentRevoked"], "{found}");
    let kid = Registry::new(node.path("etc/agents.d")).list().unwrap()[0].1.as_ref().unwrap().agent.keys[0].kid.clone();
    assert_eq!(found[0]["event"]["keys"], serde_json::json!([kid]));
}

#[test]
fn an_agent_that_is_there_is_not_overwritten() {
    let node = Node::new();
    let ((_, first), (_, second)) = (keygen(&node, "first"), keygen(&node, "second"));
    let file = node.path("etc/agents.d/by-hand.toml");
    fs::create_dir(node.path("etc/agents.d")).unwrap();
    fs::write(&file, format!("spiffe_id = \"{AGENT}\" # ours\nstatus = \"revoked\"\n")).unwrap();
    let error = node.run(&["agent", "add", AGENT, "--key", &first]).bad(1);
    assert!(error.contains("by-hand.toml already: edit that file, or remove it first"), "{error}");
    fs::remove_file(&file).unwrap();
    node.run(&["agent", "add", AGENT, "--key", &first, "--key", &second]).good();
    assert_eq!(Registry::new(node.path("etc/agents.d")).find(&agent()).unwrap().keys.len(), 2);
    node.run(&["agent", "add", AGENT, "--key", &second]).bad(1);
    let names: Vec<_> = fs::read_dir(node.path("etc/agents.d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() == 1 && !names[0].as_encoded_bytes().starts_with(b"."), "{names:?}");
}

#[test]
fn a_public_key_is_taken_in_any_form_and_a_private_one_in_none() {
    let node = Node::new();
    node.keyring(); // a key set and a PEM file to take
    let (private, public) = keygen(&node, "key");
    let write = |name: &str, text: String| {
        fs::write(node.path(name), text).unwrap();
        node.path(name).to_str().unwrap().to_owned()
    };
    let jwk = fs::read_to_string(&public).unwrap();
    let pem = write("public.pem", node.run(&["keys", "export", "--pem"]).good());
    let set = node.path("lib/jwks.json").to_str().unwrap().to_owned();
    for (at, good) in [&public, &pem, &set].into_iter().enumerate() {
        let id = format!("spiffe://example.org/agents/{at}");
        node.run(&["agent", "add", &id, "--key", good]).good();
        assert_eq!(Registry::new(node.path("etc/agents.d")).find(&id.parse().unwrap()).unwrap().keys.len(), 1);
    }
    let with_d = write("d.jwk", jwk.replacen('{', "{\"d\": \"c2VjcmV0\",", 1));
    let twice = write("twice.jwk", jwk.replacen('{', "{\"kty\": \"RSA\",", 1));
    let rsa = write("rsa.jwk", "{\"kty\": \"RSA\", \"n\": \"AQAB\", \"e\": \"AQAB\"}".into());
    let text = write("text", "hello".into());
    for (bad, why) in [
        (&private, "this is a private key"),
        (&with_d, "this is a private key"),
        (&twice, "twice"),
        (&rsa, "no Ed25519 key"),
        (&text, "neither a JWK nor PEM"),
        (&"/nonexistent".to_owned(), "reading /nonexistent"),
    ] {
        let error = node.run(&["agent", "add", AGENT, "--key", bad]).bad(1);
        assert!(error.contains(why) && !error.contains("c2VjcmV0"), "{bad}: {error}");
    }
}

#[test]
fn a_private_key_is_its_owners_alone_and_never_replaced() {
    let node = Node::new();
    let (private, _) = keygen(&node, "key");
    assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o7777, 0o600);
    let before = fs::read(&private).unwrap();
    let ran = node.run(&["agent", "keygen", &private]);
    assert!(ran.out.is_empty() && ran.bad(1).contains("is there already"));
    assert_eq!(fs::read(&private).unwrap(), before);
}

#[test]
fn what_cannot_be_done_names_the_fix() {
    let node = Node::new();
    let (private, public) = keygen(&node, "key");
    let error = node.run(&["agent", "revoke", AGENT]).bad(1);
    assert!(error.contains("no file in") && error.contains("agents.d"), "{error}");
    fs::create_dir(node.path("etc/agents.d")).unwrap();
    fs::write(node.path("etc/agents.d/x.toml"), "spiffe_id = 7\n").unwrap();
    let error = node.run(&["agent", "revoke", AGENT]).bad(1);
    assert!(error.contains("one cannot be read: ") && error.contains("x.toml"), "{error}");
    let list = node.run(&["agent", "list"]);
    assert!(list.out.contains("NOT TAKEN") && list.err.contains("x.toml"), "{}{}", list.out, list.err);
    let error = node.run(&["agent", "token", AGENT, "--key", &private, "--lifetime", "1h"]).bad(1);
    assert!(error.contains("1 to 600 s, not 3600 s"), "{error}");
    let error = node.run(&["agent", "token", AGENT, "--key", &public]).bad(1);
    assert!(error.contains("keygen") && !error.contains("kty"), "{error}");
}
