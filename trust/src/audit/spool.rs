//! The spool's writing side: a producer's records as files in a directory of its own, without any daemon.
//!
//! When `record_all` returns, the records survive a kill of any process: each call writes one file beside its place and
//! renames it there. A thread of the spool's own then brings them to the disk, as many as wait at a time, so that the
//! caller does not wait for one (measured: 0.2 ms instead of 5; docs/audit.md). A power cut in those milliseconds leaves
//! the record, or bytes that the ledger records as damaged, or a hole in the producer's numbers. Who needs more calls
//! [`Spool::sync`]. The producer holds a lock on its directory as long as it lives; a drainer tidies up only after those
//! whose lock is free.
//!
//! What happens when there is no room, or no directory: the events are dropped, loudly, and the record says so itself:
//! `GapOpened` at once where a few bytes can still be written, `GapClosed` with the count as soon as there is room.
//! Not here: bringing files to the disk (`sync`), reading spools (`inbox`), keeping them (`ledger`).

#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;

use super::Audit;
use super::record::{About, AuditRecord, BadRecord, Event, Producer, RecordId, Text};
use super::sync::{Syncer, to_disk};

/// The most events that one file holds, beside a `GapClosed`; longer batches become several files.
pub(super) const MAX_BATCH: usize = 64;
/// Where a file is written before it gets its name. A producer has one at most.
pub(super) const PARTIAL: &str = ".partial";
/// What a producer's directory is called before it is locked and gets its name.
pub(super) const NEW: &str = ".new-";

/// How much one producer may leave undrained, and what it leaves to others. Beyond it events are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files in the producer's directory.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Bytes that stay free on the spool's file system: audit never takes a node's last.
    pub keep_free_bytes: u64,
    /// Inodes that stay free there; a file system without a count of them is not asked.
    pub keep_free_inodes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { files: 4096, bytes: 8 << 20, keep_free_bytes: 64 << 20, keep_free_inodes: 1024 }
    }
}

/// Why events could not be recorded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum SpoolError {
    /// The spool or this producer's place in it cannot be made.
    #[error("the spool {} cannot be used: {source}", path.display())]
    Place { path: PathBuf, source: io::Error },
    /// Others could put records into it.
    #[error("the spool {} belongs to uid {owner} with mode {mode:03o}: others could write to it; chown it to uid {} and chmod 700", path.display(), geteuid())]
    NotPrivate { path: PathBuf, owner: u32, mode: u32 },
    /// The ledger has not drained it for long.
    #[error(
        "the spool is full ({files} files, {bytes} bytes): start creto-pool-agent, or drain it with `creto-runtime-cli audit verify`"
    )]
    Full { files: u64, bytes: u64 },
    /// The node needs what is left of its disk.
    #[error("the file system of {} has only {bytes} bytes and {inodes} inodes left", path.display())]
    DiskLow { path: PathBuf, bytes: u64, inodes: u64 },
    /// Writing failed.
    #[error("{} could not be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// An event too large to be a record.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

/// A producer's spool. Made without touching the disk: its directory appears with the first record, and comes back if
/// someone removed it.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    producer: Producer,
    node: Text,
    limits: Limits,
    state: Mutex<State>,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    home: Option<Home>,
    next: u64,
    /// What the directory holds at most; a drainer removes files, so it is counted again before anything is dropped.
    files: u64,
    bytes: u64,
    gap: Option<Gap>,
    syncer: Option<Syncer>,
}

/// The producer's directory, and the lock that says it lives.
#[derive(Debug)]
struct Home {
    path: PathBuf,
    dir: File,
}

#[derive(Debug)]
struct Gap {
    first: u64,
    lost: u64,
    reason: Text,
}

impl Spool {
    /// A spool below `root` for this process; `kind` says what it is (`shim`, `egress`), `node` where it runs.
    pub fn new(root: &Path, kind: &str, node: &str, limits: Limits) -> Result<Self, SpoolError> {
        let place = |source| SpoolError::Place { path: root.to_owned(), source };
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| place(error.into()))?;
        let name = format!("{kind}-{}-{:016x}", std::process::id(), u64::from_be_bytes(random));
        let producer = Producer::parse(&name).ok_or_else(|| {
            place(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no producer's name")))
        })?;
        Ok(Self {
            root: root.to_owned(),
            producer,
            node: node.into(),
            limits,
            state: Mutex::default(),
            lost: AtomicU64::new(0),
        })
    }

    /// This process's name in the ids of its records.
    pub fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Waits until all that was recorded so far is on the disk, and so survives a power cut too.
    pub fn sync(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = state.syncer.as_ref().map(Syncer::done);
        drop(state); // others may go on recording
        if let Some(done) = done {
            let _ = done.recv(); // fails only if the thread is gone, which has said so itself
        }
    }

    fn append(&self, state: &mut State, about: &About, events: Vec<Event>) -> Result<(), SpoolError> {
        let gap = state.gap.as_ref().map(|gap| {
            (About::default(), Event::GapClosed { first: gap.first, lost: gap.lost, reason: gap.reason.clone() })
        });
        let all = gap.into_iter().chain(events.into_iter().map(|event| (about.clone(), event)));
        let (text, next) = self.lines(state.next, all)?;
        self.make_room(state, text.len() as u64)?;
        self.write(state, &text)?;
        state.next = next;
        if let Some(gap) = state.gap.take() {
            tracing::warn!(lost = gap.lost, "audit events are recorded again");
        }
        Ok(())
    }

    /// The records as a file's text, and the sequence number after them.
    fn lines(&self, mut next: u64, events: impl Iterator<Item = (About, Event)>) -> Result<(Vec<u8>, u64), BadRecord> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut text = Vec::new();
        for (about, event) in events {
            let id = RecordId { producer: self.producer.clone(), sequence: next };
            text.extend(AuditRecord::new(id, now, self.node.clone(), about, event).to_bytes()?);
            text.push(b'\n');
            next += 1;
        }
        Ok((text, next))
    }

    fn make_room(&self, state: &mut State, more: u64) -> Result<(), SpoolError> {
        let limits = self.limits;
        let over = |files, bytes| files >= limits.files || bytes + more > limits.bytes;
        let home = self.home(&mut state.home)?;
        if over(state.files, state.bytes) {
            (state.files, state.bytes) = home.count()?;
            if over(state.files, state.bytes) {
                return Err(SpoolError::Full { files: state.files, bytes: state.bytes });
            }
        }
        let free = fstatvfs(&home.dir).map_err(|errno| home.cannot_write(errno.into()))?;
        let (bytes, inodes) = (free.blocks_available() * free.fragment_size(), free.files_available());
        if bytes < limits.keep_free_bytes + more || (free.files() > 0 && inodes < limits.keep_free_inodes) {
            return Err(SpoolError::DiskLow { path: self.root.clone(), bytes, inodes });
        }
        Ok(())
    }

    fn write(&self, state: &mut State, text: &[u8]) -> Result<(), SpoolError> {
        let written = match self.home(&mut state.home)?.write(state.next, text) {
            Err(SpoolError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                state.home = None; // someone removed the directory: there is another
                self.home(&mut state.home)?.write(state.next, text)
            }
            written => written,
        };
        let path = written?;
        state.files += 1;
        state.bytes += text.len() as u64;
        if state.syncer.is_none() {
            let started = Syncer::start();
            state.syncer =
                started.inspect_err(|error| tracing::warn!(%error, "audit records are synced one by one")).ok();
        }
        match &state.syncer {
            Some(syncer) => syncer.file(path),
            None => to_disk(&[path]),
        }
        Ok(())
    }

    fn home<'a>(&self, home: &'a mut Option<Home>) -> Result<&'a Home, SpoolError> {
        match home {
            Some(home) => Ok(home),
            none => Ok(none.insert(Home::make(&self.root, &self.producer)?)),
        }
    }

    /// Counts what is dropped. Dropped events have sequence numbers too, so that a gap can be seen even where its record
    /// could not be written.
    fn lose(&self, state: &mut State, count: u64, error: &SpoolError) {
        let before = self.lost.fetch_add(count, Ordering::Relaxed);
        if let Some(gap) = &mut state.gap {
            gap.lost += count;
        } else {
            let reason = Text::from(error.to_string().as_str());
            let opened =
                self.lines(state.next, [(About::default(), Event::GapOpened { reason: reason.clone() })].into_iter());
            if let Ok((text, next)) = opened
                && self.write(state, &text).is_ok()
            {
                state.next = next;
            }
            state.gap = Some(Gap { first: state.next, lost: count, reason });
        }
        state.next += count;
        if before == 0 || (before + count).ilog2() > before.ilog2() {
            // A flood of events must not become a flood of log lines: the first, then each doubling.
            tracing::error!(lost = before + count, %error, "audit events could not be recorded");
        }
    }
}

impl Audit for Spool {
    fn record_all(&self, about: &About, mut events: Vec<Event>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !events.is_empty() {
            let rest = events.split_off(events.len().min(MAX_BATCH));
            let count = events.len() as u64;
            if let Err(error) = self.append(&mut state, about, events) {
                self.lose(&mut state, count, &error);
            }
            events = rest;
        }
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Home {
    /// Appears under its name only once it is locked, so that no drainer takes it for a dead producer's.
    fn make(root: &Path, producer: &Producer) -> Result<Self, SpoolError> {
        let place = |source| SpoolError::Place { path: root.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(place)?;
        let found = fs::metadata(root).map_err(place)?;
        if found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(SpoolError::NotPrivate {
                path: root.to_owned(),
                owner: found.uid(),
                mode: found.mode() & 0o777,
            });
        }
        let (path, fresh) = (root.join(producer.as_str()), root.join(format!("{NEW}{producer}")));
        let make = || {
            let existing = File::open(&path).ok();
            let is_new = existing.is_none();
            if is_new
                && let Err(error) = DirBuilder::new().mode(0o700).create(&fresh)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
            let dir = match existing {
                Some(dir) => dir,
                None => File::open(&fresh)?,
            };
            dir.try_lock()?;
            if is_new {
                fs::rename(&fresh, &path)?;
            }
            Ok(dir)
        };
        Ok(Self { dir: make().map_err(place)?, path })
    }

    fn write(&self, first: u64, text: &[u8]) -> Result<PathBuf, SpoolError> {
        let (partial, target) = (self.path.join(PARTIAL), self.path.join(format!("{first:020}.jsonl")));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(text)?;
            fs::rename(&partial, &target)
        };
        if let Err(source) = write() {
            let _ = fs::remove_file(&partial); // it may hold the blocks that the next one needs
            return Err(self.cannot_write(source));
        }
        Ok(target)
    }

    /// The files that are waiting, and the bytes in them.
    fn count(&self) -> Result<(u64, u64), SpoolError> {
        let count = || {
            fs::read_dir(&self.path)?.try_fold((0, 0), |(files, bytes), entry| match entry?.metadata() {
                Ok(found) => Ok((files + 1, bytes + found.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((files, bytes)), // drained meanwhile
                Err(error) => Err(error),
            })
        };
        count().map_err(|error| self.cannot_write(error))
    }

    fn cannot_write(&self, source: io::Error) -> SpoolError {
        SpoolError::Write { path: self.path.clone(), source }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(state.syncer.take()); // all is on the disk
        if let Some(home) = state.home.take() {
            let _ = fs::remove_dir(&home.path); // goes only if it is empty; else a drainer removes it
        }
    }
}
