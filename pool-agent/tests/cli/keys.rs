//! Keys change, and what was signed before goes on counting for as long as it was promised.

use std::fs;

use crate::node::{Node, now};

#[test]
fn a_rotated_key_counts_for_the_overlap_and_then_only_by_its_name() {
    let node = Node::new();
    node.attest("default", "box", 1, None, now());
    let said = node.run(&["keys", "rotate"]).good();
    assert!(said.contains("key v2 signs now") && said.contains("key v1 counts until"), "{said}");
    node.run(&["attestation", "verify", "box"]).good();

    node.run(&["keys", "deprecate", "v1"]).good();
    let error = node.run(&["attestation", "verify", "box"]).bad(1);
    assert!(error.contains("key v1 is deprecated since") && error.contains("--key-version"), "{error}");
    node.run(&["attestation", "verify", "box", "--key-version", "v1"]).good();

    node.run(&["keys", "rotate", "--overlap", "0s"]).good();
    let list = node.run(&["keys", "list"]).good();
    let column = |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).nth(1).map(str::to_owned);
    let status: Vec<_> = list.lines().skip(1).filter_map(column).collect();
    assert_eq!(status, ["deprecated", "deprecated", "active"], "{list}");
    let published = fs::read_to_string(node.path("lib/jwks.json")).unwrap();
    assert_eq!(node.run(&["keys", "list", "--json"]).good(), published);
    assert_eq!(node.run(&["keys", "export"]).good(), published);
}

#[test]
fn a_change_of_keys_is_in_the_audit_record() {
    let node = Node::new();
    let first = node.keyring().signer().unwrap().id().to_string();
    node.run(&["keys", "rotate"]).good();
    let found = node.run(&["audit", "search", "--event", "KeyRotated", "--json"]).json();
    assert_eq!((found.as_array().unwrap().len(), &found[0]["event"]["previous"]), (1, &first.as_str().into()));
    assert_eq!(found[0]["event"]["key"], node.keyring().signer().unwrap().id().as_str());
    assert!(found[0]["id"].as_str().unwrap().starts_with("cli-"), "{found}");
    node.run(&["keys", "deprecate", "v2"]).bad(1); // it signs, so nothing happened
    node.run(&["keys", "deprecate", "v1"]).good();
    let found = node.run(&["audit", "search", "--event", "KeyDeprecated", "--json"]).json();
    assert_eq!((found.as_array().unwrap().len(), &found[0]["event"]["key"]), (1, &first.as_str().into()));
}

#[test]
fn keys_are_exported_for_the_tools_of_others() {
    let node = Node::new();
    node.keyring();
    node.run(&["keys", "rotate"]).good();
    let (v1, active) = (node.run(&["keys", "export", "--pem", "v1"]), node.run(&["keys", "export", "--pem"]));
    assert!(v1.out.starts_with("-----BEGIN PUBLIC KEY-----\n") && v1.good() != active.good());
    assert_eq!(node.run(&["keys", "export", "v2"]).json()["creto.dev/version"], "v2");
    assert!(node.run(&["keys", "export", "--note"]).good().starts_with("creto.dev/audit/node-1+"));
    let error = node.run(&["keys", "export", "v9"]).bad(1);
    assert!(error.contains("there is no key v9"), "{error}");
    let error = node.run(&["keys", "deprecate", "v2"]).bad(1);
    assert!(error.contains("key v2 is the active one: rotate instead"), "{error}");
    let error = Node::new().run(&["keys", "list"]).bad(1);
    assert!(error.contains("the first sandbox of a node makes its keys"), "{error}");
}

#[test]
fn nothing_private_is_printed() {
    let node = Node::new();
    node.keyring();
    let pem = fs::read_to_string(node.path("lib/keys/v1.pem")).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    for line in [&["keys", "list"][..], &["keys", "list", "--json"], &["keys", "export"], &["keys", "export", "--pem"]]
    {
        let ran = node.run(line);
        assert!(!ran.out.contains("PRIVATE") && !ran.out.contains(secret) && ran.code == Some(0), "{line:?}");
    }
}
