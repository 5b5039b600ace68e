//! The spool's reading side: what all producers have left, in order, and the removal of what the ledger has taken.
//!
//! A file whose lines are not all records is not thrown away: it is set aside in `.rejected/`, and the ledger is told.
//! Not here: writing (`spool`), exactly-once and order across producers (`ledger`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::record::{AuditRecord, MAX_RECORD, Producer, RecordId, Text};
use super::spool::{MAX_BATCH, NEW, PARTIAL};

/// The largest file that a producer writes, in bytes.
const MAX_FILE: usize = (MAX_BATCH + 1) * (MAX_RECORD + 1);
/// A directory that has not got its name after so long will never get it.
const ABANDONED: Duration = Duration::from_secs(3600);
const SET_ASIDE: &str = ".rejected";

/// All producers' spools.
#[derive(Clone, Debug)]
pub struct Inbox {
    root: PathBuf,
}

/// One file that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolFile {
    /// Whose it is.
    pub producer: Producer,
    /// The sequence number of its first record.
    pub first: u64,
    path: PathBuf,
}

/// One record that a file holds, or why it holds none at that place.
#[derive(Debug)]
pub struct Line {
    /// The id that the place in the file gives it.
    pub id: RecordId,
    /// The record and its bytes, as they are to be stored.
    pub content: Result<(AuditRecord, Vec<u8>), Rejection>,
}

/// Bytes that are not the record they should be.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `Event::RecordRejected`")]
pub struct Rejection {
    pub digest: Option<Text>,
    pub reason: Text,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Records; of a producer whose numbers have a hole, with what is missing there.
    pub records: u64,
    /// When the oldest of them was written.
    pub oldest: Option<SystemTime>,
}

/// The spool could not be read or emptied.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
#[expect(missing_docs, reason = "the message says what the fields are")]
pub struct InboxError {
    pub path: PathBuf,
    pub source: io::Error,
}

impl Inbox {
    /// The spools below `root`, which need not exist yet.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// What waits: about `most` files, each producer's from its oldest on and without a hole.
    pub fn list(&self, most: usize) -> Result<Vec<SpoolFile>, InboxError> {
        let mut all = Vec::new();
        for (producer, dir) in self.producers()? {
            // A listing beside a writer may show a file and miss an older one. What a second listing shows up to the
            // newest of the first is complete.
            let Some(newest) = files(&producer, &dir)?.pop() else { continue };
            let complete = files(&producer, &dir)?.into_iter().filter(|file| file.first <= newest.first);
            all.extend(complete.take(most - all.len()));
            if all.len() >= most {
                break;
            }
        }
        Ok(all)
    }

    /// How much waits, by the files' names and times: of each producer only the newest is read.
    pub fn waiting(&self) -> Result<Waiting, InboxError> {
        let mut waiting = Waiting::default();
        for (producer, dir) in self.producers()? {
            let files = files(&producer, &dir)?;
            let (Some(first), Some(last)) = (files.first(), files.last()) else { continue };
            let lines = self.read(last).len() as u64;
            waiting.records += last.first.saturating_sub(first.first) + lines;
            let written = fs::metadata(&first.path).and_then(|found| found.modified()).ok(); // gone: taken meanwhile
            waiting.oldest = [waiting.oldest, written].into_iter().flatten().min();
        }
        Ok(waiting)
    }

    /// What a file holds. Nothing, if it is gone: another drainer has taken it.
    pub fn read(&self, file: &SpoolFile) -> Vec<Line> {
        match read_bounded(&file.path) {
            Ok(bytes) => parse(&file.producer, file.first, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let rejection =
                    Rejection { digest: None, reason: format!("could not be read: {error}").as_str().into() };
                vec![Line {
                    id: RecordId { producer: file.producer.clone(), sequence: file.first },
                    content: Err(rejection),
                }]
            }
        }
    }

    /// Removes a file whose records are safe elsewhere.
    pub fn remove(&self, file: &SpoolFile) -> Result<(), InboxError> {
        gone_is_fine(fs::remove_file(&file.path)).map_err(|source| InboxError { path: file.path.clone(), source })
    }

    /// Keeps a file with something unreadable in it for a person to look at.
    pub fn set_aside(&self, file: &SpoolFile) -> Result<(), InboxError> {
        let dir = self.root.join(SET_ASIDE);
        let target = dir.join(format!("{}-{:020}", file.producer, file.first));
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        let moved = made.and_then(|()| gone_is_fine(fs::rename(&file.path, target)));
        moved.map_err(|source| InboxError { path: file.path.clone(), source })
    }

    /// Removes what dead producers left beside records: half-written files and empty directories.
    pub fn tidy(&self) -> Result<(), InboxError> {
        for name in names(&self.root)?.iter().filter(|name| name.starts_with(NEW)) {
            let path = self.root.join(name);
            // Not yet locked, so only its age says that nobody is about to give it its name.
            let age =
                fs::metadata(&path).and_then(|found| found.modified()).map(|made| made.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > ABANDONED) {
                gone_is_fine(fs::remove_dir(&path)).map_err(|source| InboxError { path, source })?;
            }
        }
        for (_, path) in self.producers()? {
            let tidy = || {
                let dir = File::open(&path)?;
                if dir.try_lock().is_err() {
                    return Ok(()); // its producer lives
                }
                gone_is_fine(fs::remove_file(path.join(PARTIAL)))?;
                match fs::remove_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                    removed => removed,
                }
            };
            gone_is_fine(tidy()).map_err(|source| InboxError { path, source })?;
        }
        Ok(())
    }

    fn producers(&self) -> Result<Vec<(Producer, PathBuf)>, InboxError> {
        let names = names(&self.root)?;
        Ok(names.iter().filter_map(|name| Some((Producer::parse(name)?, self.root.join(name)))).collect())
    }
}

/// The records in a file's bytes. Line n must be exactly the record `first + n` of this producer.
pub fn parse(producer: &Producer, first: u64, bytes: &[u8]) -> Vec<Line> {
    // What is beyond the most lines is one more line, and no record.
    let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes).splitn(MAX_BATCH + 2, |b| *b == b'\n');
    let lines = lines.enumerate().filter_map(|(n, line)| {
        Some((line, RecordId { producer: producer.clone(), sequence: first.checked_add(n as u64)? }))
    });
    let parse = |(line, id): (&[u8], RecordId)| {
        let content = match AuditRecord::parse(line) {
            Ok(record) if record.id == id => Ok((record, line.to_vec())),
            Ok(record) => Err(format!("it says that it is {}", record.id)),
            Err(error) => Err(error.to_string()),
        };
        let rejected = |reason: String| Rejection { digest: Some(digest(line)), reason: reason.as_str().into() };
        Line { id, content: content.map_err(rejected) }
    };
    lines.map(parse).collect()
}

fn digest(bytes: &[u8]) -> Text {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}").as_str().into()
}

/// A producer's files, oldest first.
fn files(producer: &Producer, dir: &Path) -> Result<Vec<SpoolFile>, InboxError> {
    let file = |name: &String| {
        let number = name.strip_suffix(".jsonl").filter(|number| number.len() == 20)?;
        Some(SpoolFile { producer: producer.clone(), first: number.parse().ok()?, path: dir.join(name) })
    };
    let mut files: Vec<_> = names(dir)?.iter().filter_map(file).collect();
    files.sort_by_key(|file| file.first);
    Ok(files)
}

/// The names in a directory, sorted; none if it is not there. Names that are not text are not ours.
fn names(dir: &Path) -> Result<Vec<String>, InboxError> {
    let read =
        || fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok())).collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(names) => {
            let mut names: Vec<_> = names.into_iter().flatten().collect();
            names.sort();
            Ok(names)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(source) => Err(InboxError { path: dir.to_owned(), source }),
    }
}

/// A regular file's bytes, up to what a producer writes: no link is followed, no FIFO waited for.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if !file.metadata()?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE { Err(invalid("longer than a producer writes")) } else { Ok(bytes) }
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Event;
    use crate::audit::record::tests::record;
    use proptest::prelude::*;

    fn producer() -> Producer {
        record(0, Event::SandboxDeleted {}).id.producer
    }

    fn line(sequence: u64) -> Vec<u8> {
        [record(sequence, Event::SandboxDeleted {}).to_bytes().unwrap(), b"\n".to_vec()].concat()
    }

    #[test]
    fn how_much_waits_is_counted_by_the_numbers() {
        let root = tempfile::tempdir().unwrap();
        let inbox = Inbox::at(root.path());
        assert_eq!(inbox.waiting().unwrap(), Waiting::default());
        let dir = root.path().join(producer().to_string());
        fs::create_dir(&dir).unwrap();
        let write = |first: u64, lines: Vec<u8>| fs::write(dir.join(format!("{first:020}.jsonl")), lines).unwrap();
        write(3, [line(3), line(4)].concat());
        let oldest = fs::metadata(dir.join(format!("{:020}.jsonl", 3))).unwrap().modified().unwrap();
        write(5, line(5));
        write(6, [line(6), line(7)].concat());
        assert_eq!(inbox.waiting().unwrap(), Waiting { records: 5, oldest: Some(oldest) });
    }

    #[test]
    fn a_line_is_the_record_that_its_place_names_or_is_rejected() {
        let good = [line(7), line(8)].concat();
        for (bytes, expected) in [
            (good.clone(), vec!["", ""]),
            (vec![], vec!["EOF"]),
            (good[..good.len() - 1].to_vec(), vec!["", ""]),
            (good[..good.len() - 2].to_vec(), vec!["", "EOF"]),
            ([line(8), line(7)].concat(), vec!["shim-1-00ff/8", "shim-1-00ff/7"]),
            ([line(7), vec![b'\n'], line(9)].concat(), vec!["", "EOF", ""]),
            (
                (7..7 + MAX_BATCH as u64 + 3).flat_map(line).collect(),
                [vec![""; MAX_BATCH + 1], vec!["trailing"]].concat(),
            ),
        ] {
            let lines = parse(&producer(), 7, &bytes);
            let reasons: Vec<_> = lines
                .iter()
                .map(|l| l.content.as_ref().err().map(|r| r.reason.to_string()).unwrap_or_default())
                .collect();
            assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
            for (reason, expected) in reasons.iter().zip(expected) {
                assert!(
                    reason.contains(expected) && reason.is_empty() == expected.is_empty(),
                    "{reason:?}, {expected:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_regular_file_is_reported_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join(producer().as_str());
        fs::create_dir(&home).unwrap();
        fs::write(dir.path().join("elsewhere"), line(0)).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), home.join(format!("{:020}.jsonl", 0))).unwrap();
        nix::unistd::mkfifo(&home.join(format!("{:020}.jsonl", 1)), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(home.join(format!("{:020}.jsonl", 2)), vec![b'x'; MAX_FILE + 1]).unwrap();
        for stray in ["x.jsonl", "1.jsonl", ".partial", "notes"] {
            fs::write(home.join(stray), "").unwrap();
        }
        let inbox = Inbox::at(dir.path());
        let files = inbox.list(10).unwrap();
        assert_eq!(files.iter().map(|file| file.first).collect::<Vec<_>>(), [0, 1, 2]);
        for (file, expected) in files.iter().zip(["symbolic link", "regular", "longer"]) {
            let reason = inbox.read(file).remove(0).content.unwrap_err().reason;
            assert!(reason.as_str().contains(expected), "{reason}");
            inbox.set_aside(file).unwrap();
            inbox.set_aside(file).unwrap(); // as after a crash
        }
        assert_eq!(inbox.list(10).unwrap(), []);
        assert_eq!(fs::read_dir(dir.path().join(SET_ASIDE)).unwrap().count(), 3);
    }

    #[test]
    fn a_spool_that_is_not_there_is_empty() {
        let inbox = Inbox::at(Path::new("/nonexistent/spool"));
        assert_eq!(inbox.list(10).unwrap(), []);
        inbox.tidy().unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_rejected(first: u64, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for line in parse(&producer(), first, &bytes) {
                prop_assert!(line.id.sequence >= first);
                if let Ok((record, bytes)) = line.content {
                    prop_assert_eq!(record.to_bytes().unwrap(), bytes);
                }
            }
        }

        #[test]
        fn a_torn_file_gives_its_whole_records_and_one_rejection(count in 1u64..5, cut in any::<prop::sample::Index>()) {
            let whole: Vec<u8> = (0..count).flat_map(line).collect();
            let cut = cut.index(whole.len() - 1);
            let lines = parse(&producer(), 0, &whole[..cut]);
            let complete = (0..count).map(line).scan(0, |end, line| { *end += line.len(); Some(*end) }).filter(|end| *end - 1 <= cut).count();
            prop_assert_eq!(lines.iter().filter(|line| line.content.is_ok()).count(), complete);
            prop_assert!(lines.len() - complete <= 1);
        }
    }
}
