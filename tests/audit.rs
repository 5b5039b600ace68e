//! The record survives whoever writes it: shims that are killed leave whole things or none, and what was changed by hand
//! is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use trust::attestation::verify::{Expectations, verify_chain};
use trust::clock::{Clock, SystemClock};
use trust::keys::Keyring;

use crate::harness::{Node, leaks, poll, wait_until};

/// Sandboxes, some of whose shims are killed.
const CREATES: usize = 200;
/// So many are made at a time.
const AT_ONCE: usize = 8;
/// At each look at the processes (every 20 ms) one of so many shims dies: by experience a third to a half of them all.
const ODDS: u64 = 24;

#[test]
fn killed_shims_leave_whole_keys_statements_and_records_and_each_record_is_kept_once() {
    let node = Node::start();
    let (made, killed) = create_while_shims_are_killed(&node);
    assert!(killed >= CREATES / 10, "only {killed} shims were killed: this shows nothing");
    assert!(made.len() >= CREATES / 10, "only {} sandboxes came up: this shows nothing", made.len());
    assert!(made.len() < CREATES, "no create was hit: this shows nothing");
    node.assert_nothing_left();
    assert_one_whole_key(&node);
    let statements = whole_statements(&node);
    assert!(made.iter().all(|id| statements.contains_key(id)), "a sandbox came up without a statement");

    let report = node.cli_json(&["audit", "verify"]);
    assert_eq!((&report["intact"], &report["holes"]), (&true.into(), &Value::Array(Vec::new())), "{report}");
    // What `.new-` begins was never a producer's, and goes when it is old.
    let mut waiting = list(&node.path("creto/lib/spool"));
    waiting.retain(|name| !name.starts_with(".new-"));
    assert!(waiting.is_empty(), "not drained: {waiting:?}");

    let records = node.cli_json(&["audit", "search"]);
    let records = records.as_array().unwrap();
    let ids: BTreeSet<_> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), records.len(), "a record was taken twice");
    assert_eq!(report["size"], records.len());
    let kept: BTreeSet<_> = statements.values().flatten().map(String::as_str).collect();
    let mut heard: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for record in records {
        let event = record["event"]["type"].as_str().unwrap();
        *heard.entry((record["about"]["sandbox"].as_str().unwrap(), event)).or_default() += 1;
        if event == "AttestationIssued" {
            let issued = record["event"]["statement"].as_str().unwrap();
            assert!(kept.contains(issued), "recorded, but not kept: {record}");
        }
    }
    for id in node.ids() {
        let count = |event| heard.get(&(id.as_str(), event)).copied().unwrap_or(0);
        let came_up = made.contains(&id);
        for event in ["SandboxCreated", "AttestationIssued", "SandboxStarted"] {
            let right = if came_up { count(event) == 1 } else { count(event) <= 1 };
            assert!(right, "{id}, which {}: {event} × {}", if came_up { "came up" } else { "failed" }, count(event));
        }
    }
}

/// The ids of those sandboxes that came up, and how many shims were killed.
fn create_while_shims_are_killed(node: &Node) -> (BTreeSet<String>, usize) {
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill_until(&done, node));
        let work = || {
            let mut made = BTreeSet::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= CREATES {
                    return made;
                }
                let id = format!("c{n}");
                let command: &[&str] = if n.is_multiple_of(2) { &["true"] } else { &["sleep", "1000"] };
                if node.ctr(&node.run_args(&id, &["--detach", "--null-io"], command)).status == 0 {
                    made.insert(id.clone());
                }
                if n % 20 == 10 {
                    node.cli(&["audit", "search", "--limit", "1"]).ok(); // drains beside the living and the dying
                }
                wait_until("the container to go", || {
                    node.ctr(&["task", "rm", "--force", &id]);
                    let said = node.ctr(&["container", "rm", &id]);
                    said.status == 0 || said.stderr.contains("not found")
                });
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let made: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed); // also where a worker has failed, else nobody would hear of it
        let killed = killer.join().unwrap();
        (made.into_iter().flat_map(|made| made.unwrap()).collect(), killed)
    })
}

/// Kills shims at any moment from when containerd knows of them on: it clears up after no others. Not those that are
/// clearing up themselves.
fn kill_until(done: &AtomicBool, node: &Node) -> usize {
    let (mut killed, mut random) = (BTreeSet::new(), u64::from(std::process::id()) | 1);
    let mut one_dies = || {
        random ^= random << 13; // xorshift64
        random ^= random >> 7;
        random ^= random << 17;
        random.is_multiple_of(ODDS)
    };
    while !done.load(Ordering::Relaxed) {
        poll(|| {
            for process in leaks::processes_of(&node.path("")) {
                let words: Vec<_> = process.command.split_whitespace().collect();
                let is_shim = words.first().is_some_and(|first| first.ends_with("containerd-shim-creto-v2"));
                let id = words.iter().position(|word| *word == "-id").and_then(|at| words.get(at + 1));
                let known = id.is_some_and(|id| node.bundle(id).join("bootstrap.json").exists());
                let serves = is_shim && known && !words.iter().any(|word| ["start", "delete"].contains(word));
                if serves && one_dies() && kill(Pid::from_raw(process.pid), Signal::SIGKILL).is_ok() {
                    killed.insert(process.pid);
                }
            }
            done.load(Ordering::Relaxed).then_some(())
        });
    }
    killed.len()
}

fn list(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// However many made it at once, and died over it: there is one, whose halves fit, and all know it.
#[track_caller]
fn assert_one_whole_key(node: &Node) {
    let lib = node.path("creto/lib");
    let ring = Keyring::open(&lib, &SystemClock).unwrap();
    assert_eq!(ring.list().unwrap().len(), 1);
    assert_eq!(ring.signer().unwrap().version().to_string(), "v1");
    assert_eq!(ring.jwks().unwrap(), fs::read_to_string(lib.join("jwks.json")).unwrap());
    let mut files = list(&lib.join("keys"));
    files.sort();
    assert_eq!(files, ["keyring.json", "lock", "v1.pem"]);
}

/// The digests of all statements, by sandbox; each sandbox's are valid and linked.
#[track_caller]
fn whole_statements(node: &Node) -> BTreeMap<String, Vec<String>> {
    let dir = node.path("creto/lib/attestations").join(node.namespace());
    let (root, now) = (node.trust_root(), SystemClock.timestamp());
    let mut digests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in list(&dir) {
        // What begins with a dot was not finished, and is not taken for a statement by anybody.
        let files: Vec<_> = node.statements(&id).into_iter().filter(|file| !name(file).starts_with('.')).collect();
        let expected = Expectations { sandbox: Some(id.parse().unwrap()), ..Expectations::default() };
        let envelopes: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        for (n, (file, envelope)) in files.iter().zip(&envelopes).enumerate() {
            assert_eq!(name(file), format!("{:08}.dsse.json", n + 1));
            let one = node.verify(envelope, &expected, Duration::ZERO);
            let one = one.unwrap_or_else(|invalid| panic!("{}: {invalid}", file.display()));
            digests.entry(id.clone()).or_default().push(one.digest.to_string());
        }
        verify_chain(&envelopes, &root, now, &expected).unwrap_or_else(|invalid| panic!("{id}: {invalid}"));
    }
    let shown = node.cli_json(&["attestation", "list"]);
    let shown = shown.as_array().unwrap().iter().filter(|entry| entry.get("error").is_none());
    assert!(shown.map(|entry| entry["id"].as_str().unwrap()).eq(digests.keys()), "the client shows others");
    digests
}

fn name(file: &Path) -> &str {
    file.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_record_that_was_altered_in_the_ledger_is_named() {
    let node = Node::start();
    assert_eq!(node.run("c", &[], &["sh", "-c", "exit 7"]).status, 7);
    wait_until("the last record", || node.recorded("c").last().is_some_and(|last| last == "SandboxDeleted"));
    let exits = node.cli_json(&["audit", "search", "--event", "SandboxExited"]);
    assert_eq!(exits[0]["event"]["status"], 7, "{exits}");
    node.cli(&["audit", "verify"]).ok();
    // SQLite keeps a record's bytes together, and the client has left no journal beside the file.
    let file = node.path("creto/lib/audit.db");
    let mut bytes = fs::read(&file).unwrap();
    let told = br#""type":"SandboxExited","status":7"#;
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(told)).collect();
    assert_eq!(places.len(), 1, "the record is in the file once");
    bytes[places[0] + told.len() - 1] = b'0';
    fs::write(&file, bytes).unwrap();
    let said = node.cli(&["audit", "verify"]);
    let named = format!("record {} was altered", exits[0]["position"]);
    assert!(said.status == 1 && said.text().contains(&named), "{said:?}");
    assert!(said.stderr.contains("tampered with"), "{said:?}");
    node.assert_nothing_left();
}
