//! Audit's cost: what a shim waits for when it records, and how fast a node's records get into the ledger.
//! Goals: drain ≥ 5,000 records/s, and no step grows with the ledger. Measured runs: docs/audit.md.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use trust::audit::inbox::Inbox;
use trust::audit::ledger::{HeadSchedule, Ledger};
use trust::audit::node_key::NodeKey;
use trust::audit::tree_head::NoteKey;
use trust::audit::{About, Audit, Event, Limits, Spool};
use trust::clock::SystemClock;
use trust::keys::Keyring;

/// Records in a ledger before it is measured.
const SIZES: [u64; 3] = [0, 10_000, 50_000];

/// The key of the node whose keys are in this directory.
fn key(dir: &Path) -> NodeKey {
    let keyring = Keyring::open(&dir.join("node"), &SystemClock).unwrap();
    NodeKey::new(&"node-1".parse().unwrap(), keyring.signer().unwrap())
}

fn about() -> About {
    About {
        namespace: Some("default".into()),
        sandbox: Some("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into()),
        agent: Some("spiffe://example.org/agent/researcher".into()),
        backend: Some("gvisor".into()),
    }
}

fn exec() -> Event {
    Event::ExecStarted { exec: "e1".into(), program: "/usr/bin/python3".into(), terminal: false }
}

/// A drained-by-nobody spool: no limit is reached while measuring.
fn spool(root: &Path) -> Spool {
    let limits = Limits { files: u64::MAX, bytes: u64::MAX / 2, ..Limits::default() };
    Spool::new(root, "bench", "node-1", limits).unwrap()
}

/// What `record` makes its caller wait: for one event, for one that must be on the disk, for four together. Beside it the
/// file system alone, with the syncs that a caller would wait for if there were no thread for them.
fn append(c: &mut Criterion) {
    let dir = TempDir::new().unwrap();
    let (spool, about) = (spool(dir.path()), about());
    let alone = |events: usize| {
        let spool = &spool;
        let about = &about;
        move |rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let events = vec![exec(); events];
                let begin = Instant::now();
                spool.record_all(about, events);
                took += begin.elapsed();
                spool.sync(); // as in a shim, the next event comes when the disk is at rest
            }
            took
        }
    };
    c.bench_function("audit/spool/append/1", |b| b.iter_custom(alone(1)));
    c.bench_function("audit/spool/append/4", |b| b.iter_custom(alone(4)));
    let synced = || {
        spool.record(&about, exec());
        spool.sync();
    };
    c.bench_function("audit/spool/append_and_sync/1", |b| b.iter(synced));
    assert_eq!(spool.lost(), 0);
    for (name, file_sync, dir_sync) in [("none", false, false), ("file", true, false), ("file_and_dir", true, true)] {
        let bare = dir.path().join(name);
        let opened = fs::create_dir(&bare).and_then(|()| File::open(&bare)).unwrap();
        let mut n = 0;
        let mut write = || -> std::io::Result<()> {
            n += 1;
            let mut file = File::create(bare.join("partial"))?;
            file.write_all(&[b'x'; 400])?;
            if file_sync {
                file.sync_data()?;
            }
            fs::rename(bare.join("partial"), bare.join(n.to_string()))?;
            if dir_sync { opened.sync_all() } else { Ok(()) }
        };
        c.bench_function(&format!("audit/spool/bare_file/sync_{name}"), |b| b.iter(|| black_box(write()).is_ok()));
    }
}

/// 2,000 records of one file each from 20 producers, into ledgers of growing size: the cost a record is the same.
fn drain(c: &mut Criterion) {
    let mut group = c.benchmark_group("audit/ledger/drain_2000");
    group.throughput(Throughput::Elements(2000)).sample_size(10);
    for size in SIZES {
        let dir = TempDir::new().unwrap();
        let mut ledger = filled(dir.path(), size);
        let (inbox, key) = (Inbox::at(&dir.path().join("spool")), key(dir.path()));
        group.bench_function(size.to_string(), |b| {
            b.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    write_files(&dir.path().join("spool"), 20, 100);
                    let begin = Instant::now();
                    let done = ledger.drain(&inbox, &HeadSchedule::default(), &key, SystemTime::now());
                    took += begin.elapsed();
                    assert!(done.is_ok_and(|done| done.appended == 2000));
                }
                took
            });
        });
    }
    group.finish();
}

/// A proof reads O(log n) nodes; verifying the whole ledger reads each record once.
fn prove_and_verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("audit/ledger");
    group.sample_size(10);
    for size in &SIZES[1..] {
        let dir = TempDir::new().unwrap();
        let ledger = filled(dir.path(), *size);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("prove/{size}"), |b| b.iter(|| black_box(ledger.prove(size / 3)).is_ok()));
        let trusted = [NoteKey::of(&key(dir.path())).unwrap()];
        group.throughput(Throughput::Elements(*size));
        group.bench_function(format!("verify/{size}"), |b| {
            b.iter_batched(
                || (),
                |()| assert!(ledger.verify(&trusted, &[]).is_ok_and(|report| report.is_intact())),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Files as producers leave them, and on the disk: what is measured is the reader, not their writing-back.
fn write_files(root: &Path, producers: u64, each: u64) {
    use trust::audit::record::{AuditRecord, Producer, RecordId};
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    for _ in 0..producers {
        let name = format!("bench-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let producer = Producer::parse(&name).unwrap();
        let home = root.join(&name);
        let write = |sequence| {
            let id = RecordId { producer: producer.clone(), sequence };
            let record = AuditRecord::new(id, 1_790_000_000_000 + sequence, "node-1".into(), about(), exec());
            let line = record.to_bytes().unwrap();
            fs::write(home.join(format!("{sequence:020}.jsonl")), [line, b"\n".to_vec()].concat())
        };
        fs::create_dir_all(&home).and_then(|()| (0..each).try_for_each(write)).unwrap();
    }
}

fn filled(dir: &Path, size: u64) -> Ledger {
    let mut ledger = Ledger::open(&dir.join("audit.db"), "node-1").unwrap();
    write_files(&dir.join("spool"), size / 1000, 1000);
    let (inbox, key) = (Inbox::at(&dir.join("spool")), key(dir));
    let drained = ledger.drain(&inbox, &HeadSchedule::default(), &key, SystemTime::now());
    assert!(drained.is_ok_and(|done| done.appended == size));
    ledger.seal(&key, SystemTime::now()).unwrap();
    ledger
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = append, drain, prove_and_verify
}
criterion_main!(benches);
