//! The sandboxes' output on the disk: bounded while they run, read while it is bounded, and removed some time after they are gone.
//! Not here: waiting for more of it (`exec`).

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use trust::id::SandboxId;

use crate::containerd::stdio;
use crate::ports::Ports;
use crate::store::{Filter, StoreError};

/// What an output's file ends in; what was trimmed off it ends in `.log.1`.
const EXTENSIONS: [&str; 2] = [".log", ".log.1"];
/// What is read at once, in bytes.
const PART: u64 = 32 << 10;

/// Why output is not tidied.
#[derive(Debug, thiserror::Error)]
pub enum TidyError {
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory.
    #[error("the directory of the sandboxes' output")]
    Io(#[from] io::Error),
}

/// All output of this node. Whoever reads one and whoever trims it take turns, and a reader that was before the cut goes on behind it in
/// what was kept.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    trimmed: Mutex<HashMap<String, Trimmed>>,
}

/// What this process has trimmed of one.
#[derive(Clone, Copy, Debug, Default)]
struct Trimmed {
    times: u64,
    /// The last time it was kept from here.
    from: u64,
}

/// How far somebody has read. By default: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Of an output that was trimmed so often.
    trimmed: u64,
    at: u64,
}

impl Logs {
    /// In this directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, trimmed: Mutex::default() }
    }

    /// Where a sandbox's output is kept.
    pub fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    /// The end of it, at most so many bytes, and the position behind that. Blocks.
    pub fn end(&self, id: &SandboxId, most: u64) -> io::Result<(Vec<u8>, Position)> {
        let all = self.lock();
        let trimmed = all.get(&id.to_string()).copied().unwrap_or_default();
        let log = self.path(id);
        let (before, now) = (length(&kept(&log))?, length(&log)?);
        let mut text = Vec::new();
        let missing = most.saturating_sub(now).min(before);
        if missing > 0 {
            read(&kept(&log), before - missing, missing, &mut text)?;
        }
        let shown = now.min(most);
        read(&log, now - shown, shown, &mut text)?;
        Ok((text, Position { trimmed: trimmed.times, at: now }))
    }

    /// What comes next, if it is there; moves the position behind it. Of what was trimmed off before it was read the end is told.
    /// Blocks.
    pub fn next(&self, id: &SandboxId, position: &mut Position) -> io::Result<Vec<u8>> {
        let all = self.lock();
        let trimmed = all.get(&id.to_string()).copied().unwrap_or_default();
        let (log, mut part) = (self.path(id), Vec::new());
        if position.trimmed < trimmed.times {
            let is_one_behind = position.trimmed + 1 == trimmed.times;
            let at = if is_one_behind { position.at.max(trimmed.from) } else { trimmed.from };
            read(&kept(&log), at - trimmed.from, PART, &mut part)?;
            if !part.is_empty() {
                *position = Position { trimmed: trimmed.times - 1, at: at + part.len() as u64 };
                return Ok(part);
            }
            *position = Position { trimmed: trimmed.times, at: 0 };
        }
        if length(&log)? < position.at {
            position.at = 0; // somebody else has emptied it
        }
        read(&log, position.at, PART, &mut part)?;
        position.at += part.len() as u64;
        Ok(part)
    }

    fn trim(&self, id: &str, most: u64) -> io::Result<bool> {
        let mut all = self.lock();
        let Some(from) = stdio::trim(&self.dir.join(format!("{id}.log")), most)? else { return Ok(false) };
        let trimmed = all.entry(id.to_owned()).or_default();
        *trimmed = Trimmed { times: trimmed.times + 1, from };
        Ok(true)
    }

    /// Trims what is too long, and removes what is kept too long. Blocks.
    fn tidy(&self, there: &BTreeSet<String>, most: u64, keep: Duration, now: SystemTime) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let named = EXTENSIONS.iter().find_map(|e| Some((name.strip_suffix(e)?, *e)));
            let Some((id, extension)) = named else { continue };
            if !there.contains(id) {
                let since = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
                if since > keep {
                    fs::remove_file(entry.path())?;
                    self.lock().remove(id);
                }
            } else if extension == EXTENSIONS[0] && self.trim(id, most)? {
                tracing::info!(sandbox = id, most, "its output was trimmed");
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Trimmed>> {
        self.trimmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where it is kept what was trimmed off.
fn kept(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// None where there is no file.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None), // nothing written
        file => file.map(Some),
    }
}

fn length(path: &Path) -> io::Result<u64> {
    open(path)?.map_or(Ok(0), |file| Ok(file.metadata()?.len()))
}

fn read(path: &Path, from: u64, most: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut file) = open(path)? else { return Ok(()) };
    file.seek(SeekFrom::Start(from))?;
    file.take(most).read_to_end(into).map(drop)
}

/// The last lines of a text; all of it where there are no more.
pub fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let end = text.len() - usize::from(text.ends_with(b"\n"));
    let breaks = text[..end].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    match lines {
        0 => &[],
        lines => &text[breaks.clone().nth(lines - 1).unwrap_or(0)..],
    }
}

/// Keeps all output within the limits.
pub async fn tidy(ports: &Ports) -> Result<(), TidyError> {
    let there = ports.store.sandboxes(&Filter::of_node(&ports.node)).await?;
    let there: BTreeSet<String> = there.into_iter().map(|sandbox| sandbox.id.to_string()).collect();
    let (logs, limits) = (ports.logs.clone(), ports.config.limits.clone());
    let tidied =
        tokio::task::spawn_blocking(move || logs.tidy(&there, limits.log_bytes, limits.keep_logs, SystemTime::now()));
    Ok(tidied.await.map_err(io::Error::other)??)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn output_is_bounded_while_its_sandbox_is_there_and_goes_some_time_after() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| fs::write(dir.path().join(name), vec![b'x'; bytes]).unwrap();
        for (name, bytes) in [("a.log", 100), ("b.log", 10), ("gone.log", 100), ("gone.log.1", 5), ("other", 500)] {
            write(name, bytes);
        }
        let there = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let hour = Duration::from_secs(3600);
        let sizes = || {
            let size = |e: io::Result<fs::DirEntry>| {
                let e = e.unwrap();
                (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())
            };
            fs::read_dir(dir.path()).unwrap().map(size).collect::<std::collections::BTreeMap<_, _>>()
        };
        let logs = Logs::new(dir.path().to_owned());
        logs.tidy(&there, 50, hour, SystemTime::now()).unwrap();
        assert_eq!((sizes()["a.log"], sizes()["a.log.1"], sizes()["b.log"]), (0, 25, 10));
        assert_eq!((sizes()["gone.log"], sizes()["other"]), (100, 500));
        logs.tidy(&there, 50, hour, SystemTime::now() + hour * 2).unwrap();
        assert_eq!(sizes().keys().map(String::as_str).collect::<Vec<_>>(), ["a.log", "a.log.1", "b.log", "other"]);
        Logs::new("/nonexistent".into()).tidy(&there, 50, hour, SystemTime::now()).unwrap();
    }

    /// A log of 8 bytes at most, written, read and trimmed in this order; what its reader has got at the end.
    fn read_while_trimmed(steps: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (logs, id): (_, SandboxId) = (Logs::new(dir.path().to_owned()), "a".parse().unwrap());
        let mut writer = File::options().create(true).append(true).open(logs.path(&id)).unwrap();
        let (mut position, mut got) = (Position::default(), Vec::new());
        for step in steps {
            match *step {
                "read" => got.extend(logs.next(&id, &mut position).unwrap()),
                "trim" => assert!(logs.trim("a", 8).unwrap()),
                text => writer.write_all(text.as_bytes()).unwrap(),
            }
        }
        loop {
            match logs.next(&id, &mut position).unwrap() {
                part if part.is_empty() => return String::from_utf8(got).unwrap(),
                part => got.extend(part),
            }
        }
    }

    #[test]
    fn whoever_reads_misses_nothing_that_is_kept_when_it_is_trimmed() {
        for (steps, got) in [
            (&["0123456789", "trim", "ab"][..], "6789ab"),
            (&["0123", "read", "456789", "trim", "ab"], "01236789ab"),
            (&["01234567", "read", "89", "trim", "ab", "read", "cd"], "0123456789abcd"),
            (&["0123456789", "read", "trim", "ab"], "0123456789ab"),
            (&["0123456789", "read", "trim", "abcdefghijkl", "read"], "0123456789abcdefghijkl"),
            (&["0123456789", "read", "trim", "abcdefghijkl", "trim", "mn"], "0123456789ijklmn"),
            (&["0123456789", "trim", "abcdefghijkl", "trim", "mn"], "ijklmn"),
        ] {
            assert_eq!(read_while_trimmed(steps), got, "{steps:?}");
        }
    }

    #[test]
    fn the_end_goes_back_into_what_was_trimmed_off_and_on_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, id): (_, SandboxId) = (Logs::new(dir.path().to_owned()), "a".parse().unwrap());
        assert_eq!(logs.end(&id, 9).unwrap(), (vec![], Position::default()), "nothing is written");
        let mut writer = File::options().create(true).append(true).open(logs.path(&id)).unwrap();
        writer.write_all(b"0123456789").unwrap();
        logs.trim("a", 8).unwrap();
        writer.write_all(b"ab").unwrap();
        for (most, end) in [(9, "6789ab"), (3, "9ab"), (2, "ab"), (1, "b"), (0, "")] {
            let (text, mut position) = logs.end(&id, most).unwrap();
            assert_eq!(text, end.as_bytes());
            assert_eq!(logs.next(&id, &mut position).unwrap(), b"", "{most}");
        }
        let (_, mut position) = logs.end(&id, 9).unwrap();
        writer.write_all(b"cd").unwrap();
        assert_eq!(logs.next(&id, &mut position).unwrap(), b"cd");
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        for (text, lines, last) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\n\n\n", 2, "\n\n"),
            ("a\nb", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(last_lines(text.as_bytes(), lines), last.as_bytes(), "{text:?}, {lines}");
        }
    }
}
