//! The ledger's promises: exactly once, in order, and every change of it found at its place.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::audit::log::{verify_consistency, verify_inclusion};
use crate::audit::record::tests::one_of_each;
use crate::audit::spool::{Limits, Spool};
use crate::audit::tree_head::NoteKey;
use crate::audit::tree_head::tests::TestSigner;
use crate::audit::{About, Audit, Event};

pub(super) const NAME: &str = "creto.dev/audit/node-1";

/// A ledger of its own with its spool; dropped with the test.
pub(super) struct Node {
    dir: TempDir,
    pub(super) ledger: Ledger,
    pub(super) signer: TestSigner,
}

impl Node {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("audit.db"), "node-1").unwrap();
        Self { dir, ledger, signer: TestSigner::new(NAME, 1) }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub(super) fn spool(&self) -> Spool {
        Spool::new(&self.root(), "shim", "node-1", Limits::default()).unwrap()
    }

    pub(super) fn drain(&mut self, records: u64) -> Result<Drained, LedgerError> {
        let schedule = HeadSchedule { records, after: Duration::MAX };
        self.ledger.drain(&Inbox::at(&self.root()), &schedule, &self.signer, SystemTime::now())
    }

    pub(super) fn verify(&self, kept: &[SignedTreeHead]) -> Report {
        self.ledger.verify(&[NoteKey::of(&self.signer).unwrap()], kept).unwrap()
    }

    /// Makes `size` records with a head over all, and one after each `every`.
    pub(super) fn filled(size: u64, every: u64) -> Self {
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

    pub(super) fn column(&self, column: &str, position: u64) -> Vec<u8> {
        let sql = format!("SELECT {column} FROM record WHERE position = ?");
        self.ledger.db.query_row(&sql, [position.cast_signed()], |row| row.get(0)).unwrap()
    }
}

pub(super) fn exec(n: u64) -> Event {
    Event::ExecStarted { exec: format!("e{n}").as_str().into(), program: "/bin/true".into(), terminal: false }
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
    let all = node.ledger.search(&Query::default()).unwrap().entries;
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
    let found =
        node.ledger.search(&Query { event: Some("RecordRejected".into()), ..Query::default() }).unwrap().entries;
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
        Event::EgressDenied { connection: crate::audit::record::tests::connection(to, protocol), reason: "x".into() }
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
        (Query { limit: Some(2), before: Some(3), ..all.clone() }, vec![1, 2]),
        (Query { before: Some(0), ..all.clone() }, vec![]),
        (Query { before: Some(u64::MAX), ..all.clone() }, vec![0, 1, 2, 3, 4]),
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
        let found = node.ledger.search(&query).unwrap().entries;
        assert_eq!(found.iter().map(|entry| entry.position).collect::<Vec<_>>(), expected, "{query:?}");
    }
    let mut out = Vec::new();
    assert_eq!(node.ledger.export(2, &mut out).unwrap().0, 5);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["class_uid"].as_u64().unwrap()).collect::<Vec<_>>(), [4001, 1007, 4001]);
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other() {
    let mut node = Node::new();
    let spool = node.spool();
    (0..4).for_each(|n| spool.record(&About::default(), exec(n)));
    node.drain(1).unwrap();
    let broken = "UPDATE record SET body = CAST('{' AS BLOB) WHERE position IN (1, 2)";
    assert_eq!(node.ledger.db.execute(broken, []), Ok(2));
    let found = node.ledger.search(&Query::default()).unwrap();
    assert_eq!(found.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(found.unreadable.iter().map(|bad| bad.position).collect::<Vec<_>>(), [1, 2]);
    let mut out = Vec::new();
    let (next, unreadable) = node.ledger.export(1, &mut out).unwrap();
    assert_eq!((next, unreadable.len(), String::from_utf8(out).unwrap().lines().count()), (4, 2, 1));
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
fn only_its_owner_reads_the_ledger() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::filled(1, 1);
    for file in ["audit.db", "audit.db-wal", "audit.db-shm"] {
        let mode = fs::metadata(node.dir.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    let nowhere = Ledger::open(std::path::Path::new("/nonexistent/audit.db"), "n").unwrap_err().to_string();
    assert!(nowhere.contains("/nonexistent/audit.db"), "{nowhere}");
}

#[test]
fn drainers_that_meet_take_each_record_once() {
    let mut node = Node::new();
    let (spools, path, root) = ([node.spool(), node.spool()], node.dir.path().join("audit.db"), node.root());
    let writing = std::sync::atomic::AtomicUsize::new(spools.len());
    std::thread::scope(|all| {
        for spool in &spools {
            all.spawn(|| {
                (0..200).for_each(|n| spool.record_all(&About::default(), vec![exec(n), exec(n)]));
                writing.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
        for _ in 0..3 {
            all.spawn(|| {
                let (schedule, signer) =
                    (HeadSchedule { records: 100, after: Duration::MAX }, TestSigner::new(NAME, 1));
                while writing.load(std::sync::atomic::Ordering::SeqCst) > 0 {
                    let mut ledger = Ledger::open(&path, "node-1").unwrap();
                    let done = ledger.drain(&Inbox::at(&root), &schedule, &signer, SystemTime::now()).unwrap();
                    assert_eq!((done.rejected, done.conflicting), (0, 0));
                }
            });
        }
    });
    node.drain(1).unwrap();
    let report = node.verify(&[]);
    assert_eq!((report.size, report.is_intact(), report.holes), (800, true, vec![]));
    assert_eq!(Inbox::at(&root).list(1).unwrap(), []);
}

#[test]
fn many_that_make_a_ledger_at_once_make_one() {
    for _ in 0..200 {
        let dir = tempfile::tempdir().unwrap();
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|all| {
            for _ in 0..8 {
                all.spawn(|| {
                    start.wait();
                    Ledger::open(&dir.path().join("audit.db"), "node-1").unwrap();
                });
            }
        });
    }
}

#[test]
fn another_version_is_refused() {
    let node = Node::new();
    node.ledger.db.pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(Ledger::open(&node.dir.path().join("audit.db"), "n"), Err(LedgerError::Version(2))));
}
