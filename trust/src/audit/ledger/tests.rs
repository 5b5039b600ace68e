//! The ledger's promises: exactly once, in order, and every change of it found at its place.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rusqlite::params;
use tempfile::TempDir;

use super::*;
use crate::audit::log::{node_hash, verify_consistency, verify_inclusion};
use crate::audit::record::tests::one_of_each;
use crate::audit::spool::{Limits, Spool};
use crate::audit::tree_head::NoteKey;
use crate::audit::tree_head::tests::TestSigner;
use crate::audit::{About, Audit, Event};

const NAME: &str = "creto.dev/audit/node-1";

/// A ledger of its own with its spool; dropped with the test.
struct Node {
    dir: TempDir,
    ledger: Ledger,
    signer: TestSigner,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("audit.db"), "node-1").unwrap();
        Self { dir, ledger, signer: TestSigner::new(NAME, 1) }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    fn spool(&self) -> Spool {
        Spool::new(&self.root(), "shim", "node-1", Limits::default()).unwrap()
    }

    fn drain(&mut self, records: u64) -> Result<Drained, LedgerError> {
        let schedule = HeadSchedule { records, after: Duration::MAX };
        self.ledger.drain(&Inbox::at(&self.root()), &schedule, &self.signer, SystemTime::now())
    }

    fn verify(&self, kept: &[SignedTreeHead]) -> Report {
        self.ledger.verify(&[NoteKey::of(&self.signer).unwrap()], kept).unwrap()
    }

    /// Makes `size` records with a head over all, and one after each `every`.
    fn filled(size: u64, every: u64) -> Self {
        let mut node = Self::new();
        let spool = node.spool();
        for n in 0..size {
            spool.record(&About { sandbox: Some(format!("s{n}").as_str().into()), ..About::default() }, exec(n));
            if (n + 1) % every == 0 {
                node.drain(1).unwrap();
            }
        }
        node.drain(u64::MAX).unwrap();
        node.ledger.seal(&node.signer, SystemTime::now()).unwrap();
        assert_eq!(node.ledger.size().unwrap(), size);
        node
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) {
        assert!(self.ledger.db.execute(sql, values).unwrap() > 0, "{sql} changes something");
    }

    fn column(&self, column: &str, position: u64) -> Vec<u8> {
        let sql = format!("SELECT {column} FROM record WHERE position = ?");
        self.ledger.db.query_row(&sql, [position.cast_signed()], |row| row.get(0)).unwrap()
    }

    /// What an attacker with the file but without the key would do: make all hashes fit the records again.
    fn cover_up(&self) {
        let db = &self.ledger.db;
        db.execute("DELETE FROM node", []).unwrap();
        let (size, mut frontier) = (self.ledger.size().unwrap(), Frontier::default());
        for position in 0..size {
            let leaf = leaf_hash(&self.column("body", position));
            self.execute(
                "UPDATE record SET leaf = ? WHERE position = ?",
                params![leaf.as_slice(), position.cast_signed()],
            );
            for node in frontier.push(leaf) {
                let row = params![node.level, node.position.cast_signed(), node.hash.as_slice()];
                db.execute("INSERT INTO node VALUES (?, ?, ?)", row).unwrap();
            }
        }
    }

    /// Moves the records from `from` on by `by` places.
    fn shift(&self, from: u64, by: i64) {
        let step = "UPDATE record SET position = -1 - (position + ?1) WHERE position >= ?2";
        self.ledger.db.execute(step, params![by, from.cast_signed()]).unwrap();
        self.ledger.db.execute("UPDATE record SET position = -1 - position WHERE position < 0", []).unwrap();
    }
}

fn exec(n: u64) -> Event {
    Event::ExecStarted { exec: format!("e{n}").as_str().into(), program: "/bin/true".into(), terminal: false }
}

/// Whether a finding lies at `position`, and no further from it than `within` records.
fn located(damage: &Damage, position: u64, within: u64) -> bool {
    match *damage {
        Damage::RecordAltered { position: at } | Damage::ColumnsAltered { position: at } => at == position,
        Damage::RecordsMissing { first, last }
        | Damage::NodeDiffers { first, last }
        | Damage::RootDiffers { first, last } => (first..=last).contains(&position) && last - first < within,
        Damage::Truncated { first, signed, .. } => (first..signed).contains(&position) && signed - first <= within,
        _ => false,
    }
}

#[test]
fn all_that_waits_is_drained_once_and_the_files_go() {
    let mut node = Node::new();
    let (one, two) = (node.spool(), node.spool());
    for event in one_of_each() {
        one.record(&About::default(), event.clone());
        two.record_all(&About::default(), vec![event.clone(), event]);
    }
    let count = 3 * one_of_each().len() as u64;
    assert_eq!(node.drain(1).unwrap(), Drained { appended: count, heads: 1, ..Drained::default() });
    assert_eq!(node.drain(1).unwrap(), Drained::default());
    assert_eq!(Inbox::at(&node.root()).list(10).unwrap(), []);
    let report = node.verify(&[]);
    assert_eq!((report.size, report.sealed, report.good_heads), (count, count, 1));
    assert_eq!((report.damage, report.holes), (vec![], vec![]));
    let all = node.ledger.search(&Query::default()).unwrap();
    for spool in [one, two] {
        let numbers = all.iter().filter(|entry| &entry.record.id.producer == spool.producer());
        assert!(numbers.map(|entry| entry.record.id.sequence).is_sorted(), "a producer's order is kept");
    }
}

#[test]
fn a_crash_between_commit_and_removal_is_harmless() {
    let mut node = Node::new();
    let spool = node.spool();
    for n in 0..5 {
        spool.record(&About::default(), exec(n));
    }
    let home = node.root().join(spool.producer().as_str());
    let files: Vec<_> =
        fs::read_dir(&home).unwrap().map(|f| f.unwrap().path()).map(|p| (fs::read(&p).unwrap(), p)).collect();
    node.drain(1).unwrap();
    for (bytes, path) in &files {
        fs::write(path, bytes).unwrap(); // as if it had not been removed
    }
    assert_eq!(node.drain(1).unwrap(), Drained { known: 5, ..Drained::default() });
    assert!(files.iter().all(|(_, path)| !path.exists()));
    assert_eq!((node.ledger.size().unwrap(), node.verify(&[]).is_intact()), (5, true));
}

#[test]
fn damage_in_the_spool_is_itself_recorded_and_set_aside() {
    let mut node = Node::new();
    let spool = node.spool();
    for n in 0..3 {
        spool.record(&About::default(), exec(n));
    }
    let file = |n: u64| node.root().join(spool.producer().as_str()).join(format!("{n:020}.jsonl"));
    let (damaged, forged) = (file(1), file(0));
    let mut bytes = fs::read(&damaged).unwrap();
    bytes.truncate(20);
    fs::write(&damaged, &bytes).unwrap();
    assert_eq!(node.drain(1).unwrap(), Drained { appended: 3, rejected: 1, heads: 1, ..Drained::default() });
    fs::write(&damaged, &bytes).unwrap(); // a crash before it was set aside
    assert_eq!(node.drain(1).unwrap(), Drained { known: 1, rejected: 1, ..Drained::default() });
    let found = node.ledger.search(&Query { event: Some("RecordRejected".into()), ..Query::default() }).unwrap();
    assert_eq!(found.iter().map(|entry| entry.record.id.sequence).collect::<Vec<_>>(), [1]);
    assert_eq!(fs::read_dir(node.root().join(".rejected")).unwrap().count(), 1);

    let body = String::from_utf8(node.column("body", 0)).unwrap();
    fs::write(forged, format!("{}\n", body.replace("/bin/true", "/bin/fals"))).unwrap();
    assert_eq!(node.drain(1).unwrap(), Drained { conflicting: 1, ..Drained::default() });
    assert_eq!(fs::read_dir(node.root().join(".rejected")).unwrap().count(), 2);
    assert_eq!(node.verify(&[]).damage, []);
}

#[test]
fn heads_are_signed_by_number_or_by_age() {
    let mut node = Node::new();
    let spool = node.spool();
    let schedule = HeadSchedule { records: 3, after: Duration::from_secs(60) };
    let begin = UNIX_EPOCH + Duration::from_secs(1_000_000);
    for (events, seconds, heads) in
        [(2, 0, 1), (2, 59, 0), (0, 59, 0), (1, 59, 1), (1, 61, 0), (0, 118, 0), (0, 119, 1), (0, 999, 0)]
    {
        (0..events).for_each(|n| spool.record(&About::default(), exec(n)));
        let now = begin + Duration::from_secs(seconds);
        let drained = node.ledger.drain(&Inbox::at(&node.root()), &schedule, &node.signer, now).unwrap();
        assert_eq!(drained.heads, heads, "{events} events at {seconds} s");
    }
    let sealed = node.ledger.seal(&node.signer, begin).unwrap().unwrap();
    assert_eq!((sealed.unverified().size, node.verify(&[sealed]).good_heads), (6, 4));
}

#[test]
fn what_was_proven_can_be_checked_without_the_ledger() {
    let node = Node::filled(11, 4);
    let key = [NoteKey::of(&node.signer).unwrap()];
    for position in 0..11 {
        let proof = node.ledger.prove(position).unwrap().unwrap();
        let head = proof.head.verify(&key).unwrap();
        assert!(verify_inclusion(&leaf_hash(&proof.body), position, head.size, &proof.proof, &head.root));
    }
    assert!(node.ledger.prove(11).unwrap().is_none());
    let heads = "SELECT note FROM tree_head ORDER BY size LIMIT 1";
    let old: String = node.ledger.db.query_row(heads, [], |row| row.get(0)).unwrap();
    let old = SignedTreeHead::parse(&old).unwrap();
    let old = old.verify(&key).unwrap();
    let (proof, new) = node.ledger.prove_consistency(old.size).unwrap().unwrap();
    let new = new.verify(&key).unwrap();
    assert!(verify_consistency(old.size, new.size, &old.root, &new.root, &proof));
}

#[test]
fn search_finds_by_all_that_is_given() {
    let mut node = Node::new();
    let spool = node.spool();
    let about =
        |sandbox: &str| About { sandbox: Some(sandbox.into()), agent: Some("spiffe://a/x".into()), ..About::default() };
    let denied = |to: &str| {
        let protocol = crate::audit::record::Protocol::Tcp;
        Event::EgressDenied { destination: to.into(), port: 443, protocol, rule: None, reason: "x".into() }
    };
    for (sandbox, event) in [
        ("s1", denied("evil.example")),
        ("s2", denied("a.EVIL.example")),
        ("s1", denied("notevil.example")),
        ("s1", exec(1)),
        ("s2", denied("ev_l.example")),
    ] {
        spool.record(&about(sandbox), event);
    }
    node.drain(1).unwrap();
    let some = |text: &str| Some(text.to_owned());
    let all = Query::default();
    for (query, expected) in [
        (all.clone(), vec![0, 1, 2, 3, 4]),
        (Query { limit: Some(2), ..all.clone() }, vec![3, 4]),
        (Query { event: some("ExecStarted"), ..all.clone() }, vec![3]),
        (Query { sandbox: some("s2"), ..all.clone() }, vec![1, 4]),
        (Query { agent: some("spiffe://a/x"), sandbox: some("s1"), ..all.clone() }, vec![0, 2, 3]),
        (Query { agent: some("spiffe://a/y"), ..all.clone() }, vec![]),
        (Query { destination: some("evil.example"), ..all.clone() }, vec![0, 1]),
        (Query { destination: some("ev_l.example"), ..all.clone() }, vec![4]),
        (Query { destination: some("%"), ..all.clone() }, vec![]),
        (Query { since: Some(0), until: Some(u64::MAX), ..all.clone() }, vec![0, 1, 2, 3, 4]),
        (Query { since: Some(u64::MAX), ..all.clone() }, vec![]),
        (Query { until: Some(1), ..all.clone() }, vec![]),
    ] {
        let found = node.ledger.search(&query).unwrap();
        assert_eq!(found.iter().map(|entry| entry.position).collect::<Vec<_>>(), expected, "{query:?}");
    }
    let mut out = Vec::new();
    assert_eq!(node.ledger.export(2, &mut out).unwrap(), 5);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["class_uid"].as_u64().unwrap()).collect::<Vec<_>>(), [4001, 1007, 4001]);
}

#[test]
fn a_log_that_does_not_fit_its_head_is_not_continued() {
    for damage in ["DELETE FROM record WHERE position = 6", "UPDATE node SET hash = zeroblob(32) WHERE level = 2"] {
        let mut node = Node::filled(7, 7);
        node.execute(damage, []);
        node.spool().record(&About::default(), exec(9));
        assert!(matches!(node.drain(1), Err(LedgerError::Inconsistent(7))), "{damage}");
        assert!(node.ledger.seal(&node.signer, SystemTime::now()).is_err());
        assert_eq!(Inbox::at(&node.root()).list(10).unwrap().len(), 1, "the record goes on waiting");
    }
}

#[test]
fn a_rewritten_log_is_betrayed_by_a_head_kept_elsewhere() {
    let mut node = Node::filled(8, 4);
    let kept = node.ledger.newest_head().unwrap().unwrap();
    assert!(node.verify(std::slice::from_ref(&kept)).is_intact());
    // Whoever has file and key can do all this, and the file alone then looks whole.
    node.execute("DELETE FROM record WHERE position >= 5", []);
    node.execute("DELETE FROM tree_head WHERE size > 4", []);
    node.cover_up();
    node.ledger.seal(&node.signer, SystemTime::now()).unwrap();
    assert!(node.verify(&[]).is_intact());
    assert_eq!(node.verify(std::slice::from_ref(&kept)).damage, [Damage::Truncated { first: 5, size: 5, signed: 8 }]);
    let spool = node.spool();
    (0..4).for_each(|n| spool.record(&About::default(), exec(n)));
    node.drain(1).unwrap();
    assert!(node.verify(&[]).is_intact());
    assert_eq!(node.verify(std::slice::from_ref(&kept)).damage, [Damage::RootDiffers { first: 5, last: 7 }]);

    let stranger = SignedTreeHead::sign(8, [0; 32], &TestSigner::new(NAME, 2)).unwrap();
    let report = node.verify(&[stranger]);
    assert!(matches!(report.damage[..], [Damage::KeptHeadBad { .. }]), "{report:?}");
}

#[test]
fn a_damaged_head_is_named() {
    let node = Node::filled(8, 4);
    node.execute("UPDATE tree_head SET note = replace(note, 'node-1', 'node-2') WHERE size = 4", []);
    node.execute("UPDATE tree_head SET size = 9 WHERE size = 8", []);
    let report = node.verify(&[]);
    assert!(
        matches!(report.damage[..], [Damage::HeadBad { size: 4, .. }, Damage::HeadBad { size: 9, .. }]),
        "{report:?}"
    );
    assert_eq!(report.sealed, 0);
}

#[test]
fn numbers_that_never_arrived_are_reported() {
    let mut node = Node::new();
    let spool = node.spool();
    (0..6).for_each(|n| spool.record(&About::default(), exec(n)));
    for n in [0, 2, 3] {
        fs::remove_file(node.root().join(spool.producer().as_str()).join(format!("{n:020}.jsonl"))).unwrap();
    }
    node.drain(1).unwrap();
    let report = node.verify(&[]);
    let hole = |first, last| Hole { producer: spool.producer().to_string(), first, last };
    assert_eq!((report.is_intact(), report.holes), (true, vec![hole(0, 0), hole(2, 3)]));
}

#[test]
fn a_gap_that_was_owned_up_to_is_no_hole() {
    let mut node = Node::new();
    let limits = Limits { files: 1, ..Limits::default() };
    let spool = Spool::new(&node.root(), "shim", "node-1", limits).unwrap();
    (0..4).for_each(|n| spool.record(&About::default(), exec(n)));
    node.drain(1).unwrap();
    spool.record(&About::default(), exec(4));
    node.drain(1).unwrap();
    let report = node.verify(&[]);
    assert_eq!((report.size, report.holes, report.damage), (4, vec![], vec![]));
}

#[test]
fn another_version_is_refused() {
    let node = Node::new();
    node.ledger.db.pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(Ledger::open(&node.dir.path().join("audit.db"), "n"), Err(LedgerError::Version(2))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whoever changes the file, but does not hold the key, is found: at the record where its hash was left alone, between
    /// two heads where all hashes were made to fit.
    #[test]
    fn every_change_is_found_and_located(
        size in 2u64..24, every in 1u64..9, at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1u8..,
        change in 0..6, covered in any::<bool>(),
    ) {
        let node = Node::filled(size, every);
        prop_assert!(node.verify(&[]).is_intact());
        let kept = node.ledger.newest_head().unwrap().unwrap();
        let position = at.index(size as usize) as u64;
        let row = position.cast_signed();
        match change {
            0 | 1 => { // a flipped byte of the record, or of its stored hash
                let column = ["body", "leaf"][change as usize];
                let mut bytes = node.column(column, position);
                let byte = byte.index(bytes.len());
                bytes[byte] ^= flip;
                node.execute(&format!("UPDATE record SET {column} = ? WHERE position = ?"), params![bytes, row]);
            }
            2 => node.execute("DELETE FROM record WHERE position = ?", [row]), // removed, and a hole left
            3 => { // removed, and the others moved up
                node.execute("DELETE FROM record WHERE position = ?", [row]);
                node.shift(position, -1);
            }
            4 => { // a record inserted
                node.shift(position, 1);
                let body = node.column("body", if position > 0 { 0 } else { 1 });
                let insert = "INSERT INTO record SELECT ?1, producer, 1000 + sequence, time, event, sandbox, agent, destination, ?2, ?3 FROM record LIMIT 1";
                node.execute(insert, params![row, body, leaf_hash(&body).as_slice()]);
            }
            _ => { // two swapped
                let other = (position + 1) % size;
                for (from, to) in [(row, -1), (other.cast_signed(), row), (-1, other.cast_signed())] {
                    node.execute("UPDATE record SET position = ? WHERE position = ?", [to, from]);
                }
            }
        }
        if covered && change != 2 {
            node.cover_up();
        }
        // A flipped byte of a stored hash is undone by computing all hashes anew.
        let undone = covered && change == 1;
        let report = node.verify(std::slice::from_ref(&kept));
        prop_assert_eq!(report.is_intact(), undone, "{:?}", report);
        if !undone {
            let first = match change { 5 => position.min((position + 1) % size), _ => position };
            // Two records share a node; where that is gone, all between two heads share the later one.
            let node_is_left = first | 1 < report.size && (!covered || change == 2);
            let within = if node_is_left { 2 } else { every.max(2) };
            prop_assert!(report.damage.iter().any(|damage| located(damage, first, within)), "{:?}", report);
            if change < 2 && !covered {
                prop_assert_eq!(&report.damage, &[Damage::RecordAltered { position }]);
            }
        }
    }

    #[test]
    fn a_flipped_byte_of_a_node_is_found(size in 2u64..24, at in any::<prop::sample::Index>(), byte in 0usize..32, flip in 1u8..) {
        let node = Node::filled(size, size);
        let nodes: Vec<(i64, i64, Vec<u8>)> = {
            let mut all = node.ledger.db.prepare("SELECT level, position, hash FROM node").unwrap();
            all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap().map(Result::unwrap).collect()
        };
        let (level, position, mut hash) = nodes[at.index(nodes.len())].clone();
        hash[byte] ^= flip;
        node.execute("UPDATE node SET hash = ? WHERE level = ? AND position = ?", params![hash, level, position]);
        let first = (position << level).cast_unsigned();
        let report = node.verify(&[]);
        prop_assert_eq!(report.damage, [Damage::NodeDiffers { first, last: first + (1 << level) - 1 }]);
    }
}

#[test]
fn node_hash_is_what_a_node_holds() {
    let node = Node::filled(2, 2);
    let leaf = |position| <Hash>::try_from(node.column("leaf", position)).unwrap();
    let stored: Vec<u8> = node.ledger.db.query_row("SELECT hash FROM node", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, node_hash(&leaf(0), &leaf(1)));
}
