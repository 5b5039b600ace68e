//! A policy is what docs/network-policy.schema.json says and docs/network-policy.md shows.

use std::fs;
use std::path::{Path, PathBuf};

use egress::policy::{Document, Policies, lint};
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn with(field: &str, value: Value) -> Value {
    let mut rule = json!({"destination": "example.com", "action": "Allow"});
    rule[field] = value;
    json!({"rules": [rule]})
}

fn to(destination: &str) -> Value {
    with("destination", json!(destination))
}

#[allow(clippy::unwrap_used)] // clippy does not see that only tests call it
fn schema() -> jsonschema::Validator {
    let text = fs::read_to_string(repository().join("docs/network-policy.schema.json")).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

#[test]
fn what_the_schema_accepts_is_read_and_written_back() {
    let schema = schema();
    for document in [
        json!({}),
        json!({"rules": []}),
        json!({"include": ["base", "a.b-c_d"]}),
        to("Example.COM."),
        to("bücher.example"),
        to("localhost"),
        to("*.example.com"),
        to("*.Bücher.example."),
        to("1.2.3.example"),
        to("192.0.2.1"),
        to("192.0.2.0/24"),
        to("0.0.0.0/0"),
        to("::"),
        to("::/0"),
        to("2001:db8::/32"),
        to("::ffff:192.0.2.1"),
        with("ports", json!([443, "80", "8000-8080", "1-65535", 65535])),
        with("protocol", json!("tcp")),
        with("action", json!("Deny")),
        with("action", json!("RequireAuthz")),
        with("allow_special", json!(false)),
        with("id", json!("base/model-1_a.b")),
        json!({"rules": [{"destination": "10.0.0.0/8", "protocol": "udp", "action": "Allow", "allow_special": true}]}),
    ] {
        assert!(schema.is_valid(&document), "{document}: {:?}", schema.validate(&document).map_err(|e| e.to_string()));
        let text = document.to_string();
        let read = Document::from_json(text.as_bytes()).unwrap_or_else(|e| panic!("{document}: {e}"));
        assert_eq!(Document::from_json_value(&document).as_ref(), Ok(&read));
        assert_eq!(Document::from_toml(&read.to_toml()).as_ref(), Ok(&read), "{}", read.to_toml());
        let written = serde_json::to_value(&read).unwrap();
        assert!(schema.is_valid(&written), "{written}");
        assert_eq!(serde_json::from_value::<Document>(written).unwrap(), read);
    }
}

/// The rule, the field, what to do: an error tells them all.
#[test]
fn what_the_schema_refuses_is_refused_by_rule_and_field() {
    let schema = schema();
    for (document, why) in [
        (json!([]), "expected"),
        (json!({"rules": [["x", "a.example", null, null, "Allow", null]]}), "rule 1"),
        (json!({"rule": []}), "unknown field `rule`"),
        (json!({"rules": {}}), "list of rules"),
        (json!({"include": "base"}), "include"),
        (json!({"include": ["../base"]}), "policy name"),
        (json!({"rules": [{"action": "Allow"}]}), "rule 1: destination: missing"),
        (
            json!({"rules": [{"destination": "a.example", "action": "Deny"}, {"destination": "b.example"}]}),
            "rule 2: action",
        ),
        (
            json!({"rules": [{"destination": "a.example", "action": "Deny", "prots": [1]}]}),
            "rule 1: unknown field `prots`",
        ),
        (to("*"), "rule 1: destination: `*` would be the whole Internet"),
        (to("*.com"), "rule 1: destination: *.com is open to"),
        (to("*."), "destination"),
        (to("a.*.com"), "destination"),
        (to("_dmarc.example.com"), "services"),
        (to("a..example"), "empty label"),
        (to("127.1"), "number"),
        (to("0x7f.1"), "number"),
        (to("2130706433"), "number"),
        (to("0177.0.0.1"), "number"),
        (to("256.0.0.1"), "number"),
        (to("example.com:443"), "ports"),
        (to("https://example.com/"), "network"),
        (to("fe80::1%eth0"), "zone ids"),
        (to("10.0.0.0/33"), "network"),
        (to("010.0.0.0/8"), "network"),
        (to("::/129"), "network"),
        (to(""), "empty"),
        (with("destination", json!(1)), "rule 1: destination: invalid type"),
        (with("ports", json!(443)), "rule 1: ports: invalid type"),
        (with("ports", json!(null)), "rule 1: ports: invalid type: null"),
        (with("action", json!(null)), "rule 1: action: invalid type: null"),
        (with("ports", json!([])), "rule 1: ports: an empty list"),
        (with("ports", json!([0])), "rule 1: ports: \"0\": give a port from 1 to 65535"),
        (with("ports", json!([65536])), "rule 1: ports"),
        (with("ports", json!([-1])), "rule 1: ports"),
        (with("ports", json!([44.3])), "rule 1: ports: invalid type"),
        (with("ports", json!([[1, 2]])), "rule 1: ports: invalid type"),
        (with("ports", json!([u64::MAX])), "rule 1: ports"),
        (with("ports", json!(["https"])), "rule 1: ports: \"https\""),
        (with("ports", json!(["80-"])), "rule 1: ports"),
        (with("ports", json!(["+80"])), "rule 1: ports"),
        (with("ports", json!(["080"])), "rule 1: ports"),
        (with("ports", json!(["1-2-3"])), "rule 1: ports"),
        (with("ports", json!(["0-65536"])), "rule 1: ports"),
        (with("protocol", json!("udp")), "rule 1: protocol: names are reached by TCP only"),
        (with("protocol", json!("TCP")), "rule 1: protocol: \"TCP\": give tcp or udp"),
        (with("action", json!("allow")), "rule 1: action: \"allow\": give Allow, Deny or RequireAuthz"),
        (with("allow_special", json!(true)), "rule 1: allow_special: no name opens"),
        (with("allow_special", json!("yes")), "rule 1: allow_special: invalid type"),
        (
            json!({"rules": [{"destination": "10.0.0.0/8", "action": "Deny", "allow_special": true}]}),
            "rule 1: allow_special: a Deny opens nothing",
        ),
        (with("id", json!("")), "rule 1: id"),
        (with("id", json!("a b")), "rule 1: id"),
        (with("id", json!("i".repeat(201))), "rule 1: id"),
    ] {
        assert!(!schema.is_valid(&document), "{document}");
        let error = Document::from_json(document.to_string().as_bytes()).expect_err(&document.to_string()).to_string();
        assert!(error.contains(why), "{document}: {error}");
        Document::from_json_value(&document).expect_err(&document.to_string());
    }
}

#[test]
fn what_a_schema_cannot_know_is_refused_all_the_same() {
    let schema = schema();
    for (document, why) in [
        (to("*.co.uk"), "rule 1: destination: *.co.uk is open to"),
        (to("*.github.io"), "public suffix"),
        (to("metadata.google.internal"), "rule 1: destination: metadata.google.internal is a cloud's metadata service"),
        (to("xn--zzzzzzzzz99999.com"), "IDNA"),
        (to("-a.com"), "hyphen"),
        (to("10.0.0.1/8"), "rule 1: destination: 10.0.0.1/8 has bits beyond its prefix: write 10.0.0.0/8"),
        (to("127.１"), "number"),
        (to(&format!("{}.com", "a".repeat(64))), "63"),
        (with("ports", json!(["8080-8000"])), "rule 1: ports: 8080-8000 goes down: write \"8000-8080\""),
        (
            json!({"rules": [
                {"id": "x", "destination": "a.example", "action": "Allow"},
                {"id": "x", "destination": "b.example", "action": "Allow"},
            ]}),
            "rule x: id: another rule has it",
        ),
        (
            json!({"rules": [
                {"id": "2", "destination": "a.example", "action": "Allow"},
                {"destination": "b.example", "action": "Allow"},
            ]}),
            "rule 2: id: another rule has it",
        ),
    ] {
        assert!(schema.is_valid(&document), "{document}");
        let error = Document::from_json(document.to_string().as_bytes()).expect_err(&document.to_string()).to_string();
        assert!(error.contains(why), "{document}: {error}");
    }
    for (text, why) in [
        ("{\"rules\": [], \"rules\": []}", "duplicate field"),
        ("{\"rules\": [{\"action\": \"Deny\", \"action\": \"Allow\"}]}", "duplicate field"),
        ("{}x", "trailing"),
        ("", "EOF"),
    ] {
        let error = Document::from_json(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    let error = Document::from_toml("[[rules]]\naction = \"Deny\"\nprots = [1]\n").unwrap_err().to_string();
    assert!(error.contains("rule 1") && error.contains("prots"), "{error}");
}

#[test]
fn every_policy_that_we_ship_is_one_and_leaves_no_doubt() {
    let source = repository().join("configs/policies.d");
    // A checkout's files may be writable by the group, which is not believed: as installed, they are not.
    let installed = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        fs::write(installed.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    let policies = Policies::new(installed.path());
    let names = policies.names().unwrap();
    assert!(names.iter().any(|name| name.to_string() == "default"));
    for name in &names {
        let policy = policies.named(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(lint(&policy), [], "{name}");
        assert_eq!(policy.rules.is_empty(), name.to_string() == "default", "{name}");
    }
}

#[test]
fn every_example_in_the_documentation_is_a_policy() {
    let text = fs::read_to_string(repository().join("docs/network-policy.md")).unwrap();
    let fenced = |language: &str| -> Vec<String> {
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix(language));
        blocks.map(str::to_owned).collect()
    };
    let (toml, json) = (fenced("toml\n"), fenced("json\n"));
    assert!(toml.len() >= 3 && !json.is_empty());
    toml.iter().for_each(|block| drop(Document::from_toml(block).unwrap_or_else(|e| panic!("{block}: {e}"))));
    json.iter()
        .for_each(|block| drop(Document::from_json(block.as_bytes()).unwrap_or_else(|e| panic!("{block}: {e}"))));
}
