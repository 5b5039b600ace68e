//! What is stored is shown as it is, and only `verify` says that it is valid, and why not.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::json;
use trust::digest::Digest;

use crate::node::{AGENT, HOUR, Node, ago, now};

fn flipped(envelope: &str, at: usize) -> String {
    // Another base64 digit: the envelope stays well-formed.
    let start = envelope.find("\"sig\":\"").unwrap() + 7 + at;
    let other = if &envelope[start..=start] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &envelope[..start], &envelope[start + 1..])
}

#[test]
fn an_envelope_is_printed_as_it_is_stored() {
    let node = Node::new();
    node.attest("default", "box", 1, None, ago(HOUR / 2));
    node.attest("default", "box", 2, None, now());
    let stored = fs::read_to_string(node.path("lib/attestations/default/box/00000002.dsse.json")).unwrap();
    assert_eq!(node.run(&["attestation", "get", "box"]).good(), format!("{stored}\n"));
}

#[test]
fn decoded_it_has_the_shape_of_the_runbook_and_claims_nothing() {
    let node = Node::new();
    let at = now();
    let digest = node.attest("default", "box", 1, None, at);
    let said = node.run(&["attestation", "get", "box", "--json"]).json();
    assert_eq!(said["validUntil"], at.plus(HOUR).to_string());
    assert_eq!(said["verified"], false);
    assert_eq!(said["statementDigest"], digest.to_string());
    assert_eq!(said["sandbox"], json!({"id": "box", "namespace": "default"}));
    assert_eq!(said["subject"][0], json!({"name": "config.json", "digest": {"sha256": Digest::of(b"config").hex()}}));
    let docs = include_str!("../../../docs/cli.md");
    let section = docs.split("\n## attestation\n").nth(1).unwrap();
    let shape = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let shape: serde_json::Value = serde_json::from_str(shape).unwrap();
    assert!(said.as_object().unwrap().keys().eq(shape.as_object().unwrap().keys()), "docs/cli.md: {said}");
    let stored = fs::read(node.path("lib/attestations/default/box/00000001.dsse.json")).unwrap();
    assert_eq!(said["envelope"], serde_json::from_slice::<serde_json::Value>(&stored).unwrap());
}

#[test]
fn sandboxes_of_one_name_are_told_apart_by_namespace() {
    let node = Node::new();
    for namespace in ["default", "k8s.io"] {
        node.attest(namespace, "box", 1, None, now());
    }
    let error = node.run(&["attestation", "get", "box"]).bad(1);
    assert!(error.contains("default and k8s.io: choose with --namespace"), "{error}");
    let said = node.run(&["attestation", "get", "box", "--namespace", "k8s.io", "--json"]).json();
    assert_eq!(said["sandbox"]["namespace"], "k8s.io");
    let list = node.run(&["attestation", "list"]).good();
    assert!(list.lines().count() == 3 && list.contains("NOT VERIFIED") && list.contains(AGENT), "{list}");
    assert_eq!(node.run(&["attestation", "list", "--json"]).json()[1]["namespace"], "k8s.io");
    let error = node.run(&["attestation", "get", "other"]).bad(1);
    assert!(error.contains("no statement about sandbox other"), "{error}");
}

#[test]
fn a_valid_statement_is_said_to_prove_what_it_proves_and_no_more() {
    let node = Node::new();
    node.attest("default", "box", 1, None, now());
    let (policy, image) = (Digest::of(b"policy").to_string(), Digest::of(b"image").to_string());
    let said = node.run(&["attestation", "verify", "box", "--policy-digest", &policy]).good();
    let (proven, not_proven) = said.split_once("Not proven:").unwrap();
    for line in ["Valid.", "trusted key v1", "about sandbox box", &format!("about policy {policy}")] {
        assert!(proven.contains(line), "{line}: {said}");
    }
    for line in ["no hardware vouches", "which image runs", "config.json is the one", "earlier statements"] {
        assert!(not_proven.contains(line), "{line}: {said}");
    }
    let error = node.run(&["attestation", "verify", "box", "--image-digest", &image]).bad(1);
    assert_eq!(error, format!("Error: VerificationResult::Invalid {{ reason: \"image {image} is not a subject\" }}\n"));
    let said = node.run(&["attestation", "verify", "box", "--json"]).json();
    assert_eq!((&said["valid"], &said["predicate"]["sandbox"]["id"]), (&json!(true), &json!("box")));
}

#[test]
fn one_flipped_bit_is_found_wherever_the_statement_comes_from() {
    let node = Node::new();
    node.attest("default", "box", 1, None, now());
    let stored = node.path("lib/attestations/default/box/00000001.dsse.json");
    let good = fs::read_to_string(&stored).unwrap();
    let forged = flipped(&good, 10);
    let (file, invalid) =
        (node.path("copy.json"), "Error: VerificationResult::Invalid { reason: \"Ed25519 signature invalid\" }\n");
    for (text, expected) in [(&good, None), (&forged, Some(invalid))] {
        fs::write(&file, text).unwrap();
        fs::write(&stored, text).unwrap();
        let mut child = node.command(&["attestation", "verify", "-"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let from_stdin = child.wait_with_output().unwrap();
        assert_eq!(from_stdin.status.code(), Some(i32::from(expected.is_some())));
        assert_eq!(String::from_utf8(from_stdin.stderr).unwrap(), expected.unwrap_or_default());
        for what in [file.to_str().unwrap(), "box"] {
            let ran = node.run(&["attestation", "verify", what]);
            assert_eq!(
                (ran.code, ran.err.as_str()),
                (Some(i32::from(expected.is_some())), expected.unwrap_or_default())
            );
        }
    }
    let ran = node.run(&["attestation", "verify", "box", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(said, json!({"valid": false, "reason": "Ed25519 signature invalid"}));
    assert_eq!(ran.bad(1), invalid);
}

#[test]
fn what_is_expected_must_be_so() {
    let (node, other) = (Node::new(), Node::new());
    other.keyring();
    node.attest("default", "box", 1, None, now());
    node.attest("default", "old", 1, None, ago(2 * HOUR));
    let file = node.path("lib/attestations/default/box/00000001.dsse.json");
    let (file, others) = (file.to_str().unwrap(), other.path("lib/jwks.json"));
    for (line, why) in [
        (vec![file, "--sandbox-id", "box2"], "about sandbox box, not box2"),
        (vec![file, "--namespace", "k8s.io"], "about sandbox default, not k8s.io"),
        (vec![file, "--trust-root", others.to_str().unwrap()], "keyid is in no trusted key set"),
        (vec![file, "--key-version", "v2"], "signed by key v1, not by v2"),
        (vec!["old"], "expired at "),
        (vec!["box", "--sandbox-id", "old"], "--sandbox-id is old, but box is to be verified"),
        (vec![file, "--chain"], "give --chain with its id"),
        (vec!["no/such/file"], "neither a file nor the id of a sandbox"),
    ] {
        let error = node.run(&[vec!["attestation", "verify"], line].concat()).bad(1);
        assert!(error.starts_with("Error: ") && error.contains(why), "{error}");
    }
    // Another node's statement is believed under that node's keys.
    let jwks = node.path("lib/jwks.json");
    other.run(&["attestation", "verify", file, "--trust-root", jwks.to_str().unwrap()]).good();
    let error = Node::new().run(&["attestation", "verify", file]).bad(1);
    assert!(error.contains("makes its keys"), "{error}");
}

#[test]
fn a_chain_is_unbroken_or_invalid() {
    let node = Node::new();
    let first = node.attest("default", "box", 1, None, ago(2 * HOUR));
    let second = node.attest("default", "box", 2, Some(first), ago(HOUR));
    node.attest("default", "box", 3, Some(second), now());
    let said = node.run(&["attestation", "verify", "box", "--chain"]).good();
    assert!(said.contains(&format!("follows the statement {second}")), "{said}");
    fs::remove_file(node.path("lib/attestations/default/box/00000002.dsse.json")).unwrap();
    let error = node.run(&["attestation", "verify", "box", "--chain"]).bad(1);
    assert!(error.contains(&format!("follows {second}, not {first}")), "{error}");
    node.run(&["attestation", "verify", "box"]).good();
}
