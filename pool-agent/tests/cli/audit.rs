//! What was recorded is found, exported and proven; what was changed afterwards is found too.

use std::fs;

use rusqlite::Connection as Database;
use serde_json::Value;
use trust::audit::{Connection, Event, Protocol};

use crate::node::{AGENT, Node};

fn denied(destination: &str) -> Event {
    let reason = "no rule allows it".into();
    let (destination, protocol) = (destination.into(), Protocol::Tcp);
    let connection =
        Connection { destination, port: 443, protocol, rule: None, generation: 1, count: 1, attestation: None };
    Event::EgressDenied { connection, reason }
}

fn node() -> Node {
    let node = Node::new();
    node.record("one", vec![Event::SandboxStarted { pid: Some(7) }, denied("api.evil.example")]);
    node.run(&["audit", "search"]).good(); // drains it: else which of two producers comes first is chance
    node.record("two", vec![denied("evil.example"), denied("good.example"), Event::SandboxDeleted {}]);
    node
}

#[test]
fn events_are_found_by_what_they_are_about() {
    let node = node();
    for (line, count) in [
        (&[][..], 5),
        (&["--event", "EgressDenied"], 3),
        (&["--event", "EgressDenied", "--destination", "evil.example"], 2),
        (&["--sandbox-id", "two"], 3),
        (&["--agent-nhi", AGENT, "--event", "SandboxDeleted"], 1),
        (&["--agent-nhi", "spiffe://example.org/agents/other"], 0),
        (&["--since", "1h"], 5),
        (&["--until", "1h"], 0),
        (&["--since", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z"], 0),
        (&["--limit", "2"], 2),
    ] {
        let found = node.run(&[&["audit", "search", "--json"], line].concat()).json();
        assert_eq!(found.as_array().unwrap().len(), count, "{line:?}: {found}");
    }
    let found = node.run(&["audit", "search", "--json", "--event", "SandboxStarted"]).json();
    assert_eq!((&found[0]["about"]["sandbox"], &found[0]["event"]["pid"]), (&"one".into(), &7.into()));
    let table = node.run(&["audit", "search", "--event", "EgressDenied", "--destination", "api.evil.example"]).good();
    let line = table.lines().nth(1).unwrap();
    for cell in ["EgressDenied", "one", AGENT, "api.evil.example", "reason=no rule allows it"] {
        assert!(line.contains(cell), "{cell}: {table}");
    }
    let error = node.run(&["audit", "search", "--event", "EgressDenyed"]).bad(2);
    assert!(error.contains("EgressDenied") && error.contains("KeyRotated"), "{error}");
}

#[test]
fn an_untouched_record_is_intact_and_what_is_not_proven_is_said() {
    let node = node();
    let said = node.run(&["audit", "verify"]).good();
    assert!(said.starts_with("Intact: 5 events\n") && said.contains("root on this node could"), "{said}");
    let head = node.path("head");
    fs::write(&head, node.run(&["audit", "head"]).good()).unwrap();
    node.run(&["keys", "rotate", "--overlap", "0s"]).good(); // heads of earlier keys go on counting
    node.record("three", vec![Event::SandboxDeleted {}]);
    let said = node.run(&["audit", "verify", "--json", "--head", head.to_str().unwrap()]).json();
    assert_eq!((&said["intact"], &said["size"], &said["holes"]), (&true.into(), &7.into(), &Value::Array(Vec::new())));
    fs::write(&head, "no head").unwrap();
    let error = Node::new().run(&["audit", "head"]).bad(1);
    assert!(error.contains("the record is empty"), "{error}");
    let error = node.run(&["audit", "verify", "--head", head.to_str().unwrap()]).bad(1);
    assert!(error.contains("as `audit head` prints it"), "{error}");
}

#[test]
fn a_changed_record_is_found_and_what_there_is_can_still_be_searched() {
    let node = node();
    node.run(&["audit", "head"]).good();
    let db = Database::open(node.path("lib/audit.db")).unwrap();
    let changed = "UPDATE record SET body = CAST(replace(body, 'api.evil', 'api.good') AS BLOB) WHERE position = 1";
    assert_eq!(db.execute(changed, []), Ok(1));
    let ran = node.run(&["audit", "verify"]);
    assert!(ran.out.contains("DAMAGED") && ran.out.contains("record 1 was altered"), "{}", ran.out);
    assert_eq!(ran.bad(1), "Error: the record was tampered with: 1 findings\n");

    // One that is no record any more hides no other.
    assert_eq!(db.execute("UPDATE record SET body = CAST('{' AS BLOB) WHERE position = 2", []), Ok(1));
    for verb in [&["audit", "search", "--json"][..], &["audit", "export", "--format", "ocsf"]] {
        let ran = node.run(verb);
        assert!(ran.out.contains("SandboxDeleted"), "{}", ran.out);
        let error = ran.bad(1);
        assert!(
            error.contains("1 of the events that were asked for cannot be read") && error.contains("position 2"),
            "{error}"
        );
    }

    // Cut behind its tree head it takes nothing more, and says so; what is left can be looked at.
    assert_eq!(db.execute("DELETE FROM record WHERE position = 4", []), Ok(1));
    node.record("three", vec![Event::SandboxDeleted {}]);
    let ran = node.run(&["audit", "search"]);
    assert_eq!(ran.out.lines().count(), 4, "the heading and what is left: {}", ran.out);
    assert!(ran.bad(1).contains("cannot be read"));
    let ran = node.run(&["audit", "search", "--event", "SandboxStarted"]);
    assert!(ran.bad(1).contains("still waits in the spools is not in this answer"));
    let said = node.run(&["audit", "verify"]);
    assert!(said.out.contains("the log was cut"), "{}", said.out);
    said.bad(1);
}

#[test]
fn a_record_written_anew_is_betrayed_by_a_head_that_was_kept_elsewhere() {
    let node = node();
    let head = node.path("head");
    fs::write(&head, node.run(&["audit", "head"]).good()).unwrap();
    for name in ["audit.db", "audit.db-wal", "audit.db-shm"] {
        let _ = fs::remove_file(node.path("lib").join(name)); // SQLite may have removed the latter two itself
    }
    node.record("one", vec![Event::SandboxStarted { pid: Some(7) }, denied("good.example"), Event::SandboxDeleted {}]);
    node.record("two", vec![Event::SandboxDeleted {}, Event::SandboxDeleted {}]);
    node.run(&["audit", "verify"]).good();
    let ran = node.run(&["audit", "verify", "--head", head.to_str().unwrap()]);
    assert!(ran.out.contains("the tree head of size 5 differs"), "{}", ran.out);
    ran.bad(1);
}

#[test]
fn the_record_is_exported_from_where_the_collector_is() {
    let node = node();
    let lines = |from: &str| node.run(&["audit", "export", "--format", "ocsf", "--from", from]).good();
    let all: Vec<Value> = lines("0").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 5);
    for (at, event) in all.iter().enumerate() {
        assert_eq!((&event["metadata"]["version"], &event["metadata"]["sequence"]), (&"1.8.0".into(), &at.into()));
    }
    assert_eq!((lines("3").lines().count(), lines("99").as_str()), (2, ""));
}

#[test]
fn an_event_is_proven_to_be_in_the_record() {
    use trust::audit::log::{Hash, leaf_hash, verify_inclusion};
    use trust::audit::tree_head::{NoteKey, SignedTreeHead};
    let node = node();
    let said = node.run(&["audit", "prove", "3", "--json"]).json();
    let key: NoteKey = node.run(&["keys", "export", "--note"]).good().trim_end().parse().unwrap();
    let head = SignedTreeHead::parse(said["head"].as_str().unwrap()).unwrap();
    let head = head.verify(&[key]).unwrap();
    let hash = |hex: &Value| -> Hash {
        let hex = hex.as_str().unwrap();
        std::array::from_fn(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
    };
    let proof: Vec<Hash> = said["proof"].as_array().unwrap().iter().map(hash).collect();
    let record = said["record"].as_str().unwrap();
    assert!(verify_inclusion(&leaf_hash(record.as_bytes()), 3, head.size, &proof, &head.root));
    assert!(record.contains("good.example"), "{record}");
    assert!(node.run(&["audit", "prove", "3"]).good().contains(said["head"].as_str().unwrap()));
    let error = node.run(&["audit", "prove", "5"]).bad(1);
    assert!(error.contains("no event at position 5: the record has 5"), "{error}");
}
