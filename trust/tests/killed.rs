//! Producers and drainers are killed at any moment; what a producer was told is recorded is in the ledger exactly once.
//!
//! The test is also the program that it kills (so it has a `main` of its own): `produce` records and names on its stdout
//! the number of records that `record_all` has returned from; `drain` drains until it is killed.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use trust::audit::inbox::Inbox;
use trust::audit::ledger::{HeadSchedule, Ledger, Query};
use trust::audit::node_key::NodeKey;
use trust::audit::tree_head::NoteKey;
use trust::audit::{About, Audit, Event, Limits, Spool};
use trust::clock::SystemClock;
use trust::keys::Keyring;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Producers, each killed after another number of records.
const PRODUCERS: usize = 40;

/// The key of the node whose keys are in this directory.
fn key(dir: &Path) -> Result<NodeKey> {
    Ok(NodeKey::new(&"node-1".parse()?, Keyring::open(&dir.join("node"), &SystemClock)?.signer()?))
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("produce"), Some(dir)) => produce(Path::new(&dir)),
        (Some("drain"), Some(dir)) => drain(Path::new(&dir)),
        (Some("--list"), _) => Ok(()), // what test runners ask first
        _ => whatever_is_killed_everything_arrives_once(),
    }
}

fn produce(dir: &Path) -> Result<()> {
    let spool = Spool::new(&dir.join("spool"), "shim", "node-1", Limits::default())?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", spool.producer())?;
    let exec =
        |n| Event::ExecStarted { exec: format!("e{n}").as_str().into(), program: "/bin/true".into(), terminal: false };
    let mut recorded = 0u64;
    for size in (1..4).cycle() {
        spool.record_all(&About::default(), (0..size).map(|n| exec(recorded + n)).collect());
        recorded += size;
        assert_eq!(spool.lost(), 0, "nothing is lost in this test but by the kill");
        writeln!(out, "{recorded}")?;
    }
    Ok(())
}

fn drain(dir: &Path) -> Result<()> {
    let mut ledger = Ledger::open(&dir.join("audit.db"), "node-1")?;
    let schedule = HeadSchedule { records: 7, after: Duration::from_secs(1) };
    let (mut out, key) = (std::io::stdout(), key(dir)?);
    loop {
        let drained = ledger.drain(&Inbox::at(&dir.join("spool")), &schedule, &key, SystemTime::now())?;
        writeln!(out, "{}", drained.appended)?;
    }
}

/// A child of this program whose words are read line by line.
struct Part {
    child: Child,
    words: BufReader<ChildStdout>,
}

impl Part {
    fn start(verb: &str, dir: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?).arg(verb).arg(dir).stdout(Stdio::piped()).spawn()?;
        let words = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, words })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.words.read_line(&mut line)?;
        if line.ends_with('\n') {
            Ok(line.trim_end().to_owned())
        } else {
            Err(format!("it ended by itself: {:?}", self.child.wait()?).into())
        }
    }

    /// Kills it in the middle of whatever it is doing, and gives all the whole lines that it still wrote.
    fn kill(mut self) -> Result<Vec<String>> {
        self.child.kill()?;
        self.child.wait()?;
        let mut lines = Vec::new();
        let mut line = String::new();
        while self.words.read_line(&mut line)? > 0 {
            if line.ends_with('\n') {
                lines.push(line.trim_end().to_owned());
            }
            line.clear();
        }
        Ok(lines)
    }
}

fn whatever_is_killed_everything_arrives_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut drainers = vec![Part::start("drain", dir.path())?, Part::start("drain", dir.path())?];
    let mut told = Vec::new();
    for n in 0..PRODUCERS {
        let mut producer = Part::start("produce", dir.path())?;
        let name = producer.line()?;
        let mut recorded: u64 = 0;
        for _ in 0..n {
            recorded = producer.line()?.parse()?;
        }
        if let Some(last) = producer.kill()?.last() {
            recorded = last.parse()?;
        }
        told.push((name, recorded));
        if n % 4 == 3 {
            let mut drainer = drainers.remove(0);
            drainer.line()?; // it has drained at least once
            drainer.kill()?;
            drainers.push(Part::start("drain", dir.path())?);
        }
    }
    for drainer in drainers {
        drainer.kill()?;
    }

    let mut ledger = Ledger::open(&dir.path().join("audit.db"), "node-1")?;
    let (inbox, key) = (Inbox::at(&dir.path().join("spool")), key(dir.path())?);
    let drained = ledger.drain(&inbox, &HeadSchedule::default(), &key, SystemTime::now())?;
    assert_eq!((drained.rejected, drained.conflicting), (0, 0), "no half-written record");
    ledger.seal(&key, SystemTime::now())?;
    let entries = ledger.search(&Query::default())?.entries;
    for (name, recorded) in &told {
        let numbers: Vec<_> = entries
            .iter()
            .map(|e| &e.record.id)
            .filter(|id| id.producer.as_str() == name)
            .map(|id| id.sequence)
            .collect();
        let distinct: BTreeSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len(), "{name}: each once");
        assert!(
            numbers.iter().copied().eq(0..numbers.len() as u64),
            "{name}: in order and without a hole: {numbers:?}"
        );
        assert!(numbers.len() as u64 >= *recorded, "{name}: {recorded} were recorded, {} arrived", numbers.len());
        assert!(numbers.len() as u64 <= recorded + 3, "{name}: at most the batch that was being recorded came besides");
    }
    let report = ledger.verify(&[NoteKey::of(&key)?], &[])?;
    assert!(report.is_intact() && report.holes.is_empty(), "{report:?}");
    assert_eq!(report.sealed, entries.len() as u64);
    let left: Vec<_> = std::fs::read_dir(dir.path().join("spool"))?.collect::<std::io::Result<_>>()?;
    assert!(
        left.iter().all(|entry| entry.file_name().to_string_lossy().starts_with(".new-")),
        "all are tidied away: {left:?}"
    );
    writeln!(std::io::stdout(), "{PRODUCERS} producers killed, {} records, each once: ok", entries.len())?;
    Ok(())
}
