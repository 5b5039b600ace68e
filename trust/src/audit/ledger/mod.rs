//! The ledger: every record once, in order, under signed tree heads. SQLite, one writer at a time.
//!
//! A drain is one transaction for each batch of files: read them, append what is new to the tree, sign a head when one is
//! due, commit (synced), and only then remove the files. A crash anywhere in between leaves either the files or the commit
//! or both, and a record's id makes the second arrival harmless. Two drainers exclude each other by SQLite's write lock.
//! Not here: the tree's mathematics (`log`), reading files (`inbox`), looking things up (`search`), checking (`verify`).

mod search;
#[cfg(test)]
mod tampering;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::inbox::{Inbox, InboxError, Line, SpoolFile};
use super::log::{Frontier, Hash, Node, Nodes, leaf_hash};
use super::record::{About, AuditRecord, BadRecord, Event, Producer, Text};
use super::tree_head::{NoteError, SignedTreeHead, TreeHeadSigner};
use crate::sqlite;

pub use search::{Entry, Found, Inclusion, Query, Unreadable};
pub use verify::{Damage, Hole, Report};

/// Files that one transaction takes.
const BATCH: usize = 1024;
/// How long a drainer waits for another one's transaction.
const PATIENCE: Duration = Duration::from_secs(30);
/// `PRAGMA user_version` of the tables below.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    CREATE TABLE record (
        position INTEGER PRIMARY KEY, -- in the tree, from 0
        producer TEXT NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, -- ms since 1970
        event TEXT NOT NULL, sandbox TEXT, agent TEXT, destination TEXT, -- copies, to search by
        body BLOB NOT NULL, leaf BLOB NOT NULL, -- the record's bytes and their leaf hash
        UNIQUE (producer, sequence)
    );
    CREATE INDEX record_by_sandbox ON record (sandbox);
    CREATE INDEX record_by_event ON record (event);
    CREATE TABLE node (level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position)) WITHOUT ROWID;
    CREATE TABLE tree_head (size INTEGER PRIMARY KEY, time INTEGER NOT NULL, note TEXT NOT NULL);
";

/// When a head is signed. Until then a record is in the tree, but nobody has vouched for it.
#[derive(Clone, Copy, Debug)]
pub struct HeadSchedule {
    /// As soon as so many records are not under a head …
    pub records: u64,
    /// … or one of them has waited so long since the last head.
    pub after: Duration,
}

impl Default for HeadSchedule {
    fn default() -> Self {
        Self { records: 1000, after: Duration::from_secs(60) }
    }
}

/// What went wrong with the ledger.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum LedgerError {
    #[error("the ledger's database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the spool: {0}")]
    Spool(#[from] InboxError),
    #[error("making a record: {0}")]
    Record(#[from] BadRecord),
    #[error("the ledger {} cannot be made: {source}", path.display())]
    Place { path: PathBuf, source: std::io::Error },
    #[error("the tree head of size {size}: {source}")]
    Head { size: u64, source: NoteError },
    #[error("signing a tree head: {0}")]
    Signing(NoteError),
    #[error(
        "the ledger no longer fits its own tree head of size {0}: nothing is added to it; `creto-runtime-cli audit verify` says where it was changed"
    )]
    Inconsistent(u64),
    #[error(
        "node {level}/{position} of the tree is missing or not a hash; `creto-runtime-cli audit verify` says what was changed"
    )]
    NodeMissing { level: u32, position: u64 },
    #[error("the ledger is of version {0}, this program knows {SCHEMA}: use the program that wrote it")]
    Version(i64),
    #[error("writing the export: {0}")]
    Export(#[from] std::io::Error),
}

/// What a drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records that are new in the ledger, rejections included.
    pub appended: u64,
    /// Records that were there already, from before a crash.
    pub known: u64,
    /// Lines that were no record: each is in the ledger as `RecordRejected`, its file in the spool's `.rejected/`.
    pub rejected: u64,
    /// Records whose id is there already with other bytes: somebody forged one; the file is in `.rejected/`.
    pub conflicting: u64,
    /// Tree heads that were signed.
    pub heads: u64,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    db: Connection,
    node: Text,
}

impl Ledger {
    /// Opens the ledger at `path`, making it if it is not there; `node` signs what the ledger itself has to record.
    pub fn open(path: &Path, node: &str) -> Result<Self, LedgerError> {
        sqlite::make_private(path).map_err(|source| LedgerError::Place { path: path.to_owned(), source })?;
        let mut db = sqlite::connect(path, PATIENCE)?;
        db.pragma_update(None, "synchronous", "FULL")?; // a commit is on the disk before a file is removed
        let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        if version(&db)? == 0 {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if version(&tx)? == 0 {
                tx.execute_batch(TABLES)?;
                tx.pragma_update(None, "user_version", SCHEMA)?;
            }
            tx.commit()?;
        }
        match version(&db)? {
            SCHEMA => Ok(Self { db, node: node.into() }),
            other => Err(LedgerError::Version(other)),
        }
    }

    /// Takes everything that waits. Where it fails half-way, what was committed stays and the rest still waits.
    pub fn drain(
        &mut self,
        inbox: &Inbox,
        schedule: &HeadSchedule,
        signer: &dyn TreeHeadSigner,
        now: SystemTime,
    ) -> Result<Drained, LedgerError> {
        let mut done = Drained::default();
        loop {
            let files = self.drain_some(inbox, schedule, signer, millis(now), &mut done)?;
            if files < BATCH {
                break;
            }
        }
        inbox.tidy()?;
        Ok(done)
    }

    /// Signs a head over all there is, if none is yet; gives the newest head, none of an empty ledger.
    pub fn seal(
        &mut self,
        signer: &dyn TreeHeadSigner,
        now: SystemTime,
    ) -> Result<Option<SignedTreeHead>, LedgerError> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let tail = Tail::load(&tx)?;
        if tail.frontier.size() > tail.last_size {
            tail.sign(&tx, signer, millis(now))?;
        }
        let newest = last_head(&tx)?.map(|(_, _, note)| note);
        tx.commit()?;
        Ok(newest)
    }

    /// The newest head, as stored.
    pub fn newest_head(&self) -> Result<Option<SignedTreeHead>, LedgerError> {
        Ok(last_head(&self.db)?.map(|(_, _, note)| note))
    }

    /// How many records there are.
    pub fn size(&self) -> Result<u64, LedgerError> {
        size(&self.db)
    }

    /// One batch; gives the number of files in it.
    fn drain_some(
        &mut self,
        inbox: &Inbox,
        schedule: &HeadSchedule,
        signer: &dyn TreeHeadSigner,
        now: u64,
        done: &mut Drained,
    ) -> Result<usize, LedgerError> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut tail = Tail::load(&tx)?;
        let files = inbox.list(BATCH)?;
        let mut suspect = vec![false; files.len()];
        let mut batch = Drained::default();
        for (file, line) in in_order(inbox, &files) {
            let damaged = line.content.is_err();
            let (record, body) = match line.content {
                Ok(record) => record,
                Err(rejection) => {
                    tracing::error!(id = %line.id, reason = %rejection.reason, "an audit record in the spool is damaged");
                    batch.rejected += 1;
                    let event = Event::RecordRejected { digest: rejection.digest, reason: rejection.reason };
                    let record = AuditRecord::new(line.id, now, self.node.clone(), About::default(), event);
                    let body = record.to_bytes()?;
                    (record, body)
                }
            };
            suspect[file] |= damaged;
            match tail.append(&tx, &record, &body)? {
                Arrival::New => batch.appended += 1,
                Arrival::Known => batch.known += 1,
                Arrival::Conflicting if damaged => batch.known += 1, // rejected before, at another time
                Arrival::Conflicting => {
                    tracing::error!(id = %record.id, "the ledger has another audit record with this id");
                    suspect[file] = true;
                    batch.conflicting += 1;
                }
            }
        }
        let waited = Duration::from_millis(now.saturating_sub(tail.last_time));
        let unsealed = tail.frontier.size() - tail.last_size;
        if unsealed >= schedule.records.max(1) || (unsealed > 0 && waited >= schedule.after) {
            tail.sign(&tx, signer, now)?;
            batch.heads += 1;
        }
        tx.commit()?;
        done.add(&batch);
        for (file, suspect) in files.iter().zip(suspect) {
            if suspect { inbox.set_aside(file)? } else { inbox.remove(file)? }
        }
        Ok(files.len())
    }
}

impl Drained {
    fn add(&mut self, more: &Self) {
        self.appended += more.appended;
        self.known += more.known;
        self.rejected += more.rejected;
        self.conflicting += more.conflicting;
        self.heads += more.heads;
    }
}

/// The files' lines by time, but never against a producer's own order, whatever its clock did; each with its file's index.
fn in_order(inbox: &Inbox, files: &[SpoolFile]) -> Vec<(usize, Line)> {
    let mut clocks: HashMap<&Producer, u64> = HashMap::new();
    let mut lines = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let clock = clocks.entry(&file.producer).or_default();
        for line in inbox.read(file) {
            let time = line.content.as_ref().map(|(record, _)| record.time).unwrap_or_default();
            *clock = time.max(*clock);
            lines.push((*clock, n, line));
        }
    }
    lines.sort_by_key(|(time, _, _)| *time); // stable: equal times keep the files' order
    lines.into_iter().map(|(_, n, line)| (n, line)).collect()
}

/// The end of the log inside a transaction.
struct Tail {
    frontier: Frontier,
    last_size: u64,
    last_time: u64,
}

enum Arrival {
    New,
    Known,
    Conflicting,
}

impl Tail {
    /// Nothing may be appended to, nor any head signed over, a log that is not what its last head says.
    fn load(tx: &Transaction<'_>) -> Result<Self, LedgerError> {
        let size = size(tx)?;
        let frontier = Frontier::of(&Stored(tx), size)?;
        let Some((last_size, last_time, note)) = last_head(tx)? else {
            return Ok(Self { frontier, last_size: 0, last_time: 0 });
        };
        let (head, fits) = (note.unverified(), last_size <= size);
        if !fits || head.size != last_size || Frontier::of(&Stored(tx), last_size)?.root() != head.root {
            return Err(LedgerError::Inconsistent(last_size));
        }
        Ok(Self { frontier, last_size, last_time })
    }

    fn append(&mut self, tx: &Transaction<'_>, record: &AuditRecord, body: &[u8]) -> Result<Arrival, LedgerError> {
        let (producer, sequence) = (record.id.producer.as_str(), record.id.sequence.cast_signed());
        let leaf = leaf_hash(body);
        let mut insert = tx.prepare_cached(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (producer, sequence) DO NOTHING",
        )?;
        let about = &record.about;
        let new = insert.execute(params![
            self.frontier.size().cast_signed(),
            producer,
            sequence,
            record.time.cast_signed(),
            record.event.name(),
            about.sandbox.as_ref().map(Text::as_str),
            about.agent.as_ref().map(Text::as_str),
            record.event.destination(),
            body,
            leaf.as_slice(),
        ])?;
        if new == 0 {
            let mut known = tx.prepare_cached("SELECT body FROM record WHERE producer = ? AND sequence = ?")?;
            let known: Vec<u8> = known.query_row(params![producer, sequence], |row| row.get(0))?;
            return Ok(if known == body { Arrival::Known } else { Arrival::Conflicting });
        }
        let mut insert = tx.prepare_cached("INSERT INTO node VALUES (?, ?, ?)")?;
        for Node { level, position, hash } in self.frontier.push(leaf) {
            insert.execute(params![level, position.cast_signed(), hash.as_slice()])?;
        }
        Ok(Arrival::New)
    }

    fn sign(&self, tx: &Transaction<'_>, signer: &dyn TreeHeadSigner, now: u64) -> Result<(), LedgerError> {
        let size = self.frontier.size();
        let note = SignedTreeHead::sign(size, self.frontier.root(), signer).map_err(LedgerError::Signing)?;
        let row = params![size.cast_signed(), now.cast_signed(), note.to_string()];
        tx.execute("INSERT INTO tree_head VALUES (?, ?, ?)", row)?;
        Ok(())
    }
}

/// The tree's nodes in the database.
struct Stored<'a>(&'a Connection);

impl Nodes for Stored<'_> {
    type Error = LedgerError;
    fn node(&self, level: u32, position: u64) -> Result<Hash, LedgerError> {
        let at = position.cast_signed();
        let found: Option<Vec<u8>> = if level == 0 {
            let mut leaf = self.0.prepare_cached("SELECT leaf FROM record WHERE position = ?")?;
            leaf.query_row(params![at], |row| row.get(0)).optional()?
        } else {
            let mut node = self.0.prepare_cached("SELECT hash FROM node WHERE level = ? AND position = ?")?;
            node.query_row(params![level, at], |row| row.get(0)).optional()?
        };
        let hash = found.and_then(|hash| hash.try_into().ok());
        hash.ok_or(LedgerError::NodeMissing { level, position })
    }
}

fn size(db: &Connection) -> Result<u64, LedgerError> {
    let last: Option<i64> = db.query_row("SELECT max(position) FROM record", [], |row| row.get(0))?;
    Ok(last.map_or(0, |last| last.cast_unsigned().saturating_add(1)))
}

/// The newest head: its size, when it was signed (ms since 1970) and the note.
fn last_head(db: &Connection) -> Result<Option<(u64, u64, SignedTreeHead)>, LedgerError> {
    let newest = "SELECT size, time, note FROM tree_head ORDER BY size DESC LIMIT 1";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?));
    let Some((size, time, note)) = db.query_row(newest, [], row).optional()? else { return Ok(None) };
    let (size, time) = (size.cast_unsigned(), time.cast_unsigned());
    let note = SignedTreeHead::parse(&note).map_err(|source| LedgerError::Head { size, source })?;
    Ok(Some((size, time, note)))
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
