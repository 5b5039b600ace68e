//! What the ledger says is verified by programs that we did not write: Go's checksum-database code.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use trust::audit::inbox::Inbox;
use trust::audit::ledger::{HeadSchedule, Ledger};
use trust::audit::node_key::NodeKey;
use trust::audit::tree_head::NoteKey;
use trust::audit::{About, Audit, Event, Limits, Spool};
use trust::clock::SystemClock;
use trust::keys::Keyring;

/// What an auditor is given: a record of a ledger of `new` records, whose head of `old` records the auditor had kept.
fn claims(old: u64, new: u64, position: u64) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &SystemClock).unwrap();
    let key = NodeKey::new(&"node-1".parse().unwrap(), keyring.signer().unwrap());
    let mut ledger = Ledger::open(&dir.path().join("audit.db"), "node-1").unwrap();
    let spool = Spool::new(&dir.path().join("spool"), "shim", "node-1", Limits::default()).unwrap();
    let mut heads = Vec::new();
    for count in [old, new - old] {
        (0..count).for_each(|_| spool.record(&About::default(), Event::SandboxDeleted {}));
        ledger.drain(&Inbox::at(&dir.path().join("spool")), &HeadSchedule::default(), &key, SystemTime::now()).unwrap();
        heads.push(ledger.seal(&key, SystemTime::now()).unwrap().unwrap().to_string());
    }
    let inclusion = ledger.prove(position).unwrap().unwrap();
    let (consistency, _) = ledger.prove_consistency(old).unwrap().unwrap();
    let base64 = |hashes: &[[u8; 32]]| hashes.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>();
    json!({
        "key": NoteKey::of(&key).unwrap().to_string(), "old": heads[0], "head": heads[1], "position": position,
        "record": STANDARD.encode(inclusion.body), "inclusion": base64(&inclusion.proof), "consistency": base64(&consistency),
    })
}

/// Go's verdict: what it printed, or its error.
fn verify(claims: &Value) -> Result<String, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stock_verifier");
    let mut go = Command::new("go");
    go.args(["run", "-buildvcs=false", "."])
        .current_dir(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = go.spawn().unwrap_or_else(|error| {
        panic!("go cannot be started ({error}): install Go >= 1.24 and put it in PATH, as scripts/setup says")
    });
    child.stdin.take().unwrap().write_all(claims.to_string().as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

#[test]
fn go_verifies_head_inclusion_and_consistency() {
    for (old, new, position) in [(1, 2, 0), (3, 7, 6), (8, 21, 13)] {
        let said = verify(&claims(old, new, position)).unwrap();
        assert_eq!(said, format!("verified: creto.dev/audit/node-1, record {position} of {new}, extends {old}\n"));
    }
}

#[test]
fn go_refuses_what_was_changed() {
    let good = claims(3, 7, 6);
    let changed = |key: &str, to: Value| {
        let mut claims = good.clone();
        claims[key] = to;
        claims
    };
    let head = good["head"].as_str().unwrap();
    for (claims, expected) in [
        (changed("head", head.replacen("\n7\n", "\n8\n", 1).into()), "invalid signature"),
        (changed("head", head.replacen("creto.dev", "other.dev", 2).into()), "verifiable signatures"),
        (changed("record", STANDARD.encode("other").into()), "proof"),
        (changed("position", 5.into()), "proof"),
        (changed("consistency", json!([])), "proof"),
    ] {
        let error = verify(&claims).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
