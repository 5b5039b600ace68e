//! Tokens seen on this node: each is good once, in whichever process it is shown. One empty file per token, made with
//! O_EXCL, so the file system decides who was first; in a directory named after the minute in which the token ends.
//! On a persistent file system the memory outlives a reboot; entries are not synced, so a power cut may lose the last seconds.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::id::AgentId;

const MINUTE: u64 = 60;
/// One token pays for the removal of this many old ones.
const SWEPT: usize = 64;

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It came before.
    #[error("jti was used before: a token is good for one sandbox")]
    Replayed,
    /// It cannot be known whether it came before.
    #[error("cannot keep the token's jti in {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        why: io::Error,
    },
}

/// The directory of seen tokens.
#[derive(Clone, Debug)]
pub struct SeenTokens {
    dir: PathBuf,
}

impl SeenTokens {
    /// In this directory, which is made when the first token comes.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Takes a token, once. `until` is when it is no longer accepted anyway.
    pub fn take(&self, agent: &AgentId, jti: &str, until: Timestamp, now: Timestamp) -> Result<(), ReplayError> {
        self.sweep(now);
        let ends = self.dir.join((until.unix() / MINUTE).to_string());
        // A SPIFFE ID has no NUL, so no agent can use up another's names.
        let path = ends.join(Digest::of(format!("{agent}\0{jti}").as_bytes()).hex());
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let made = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(&ends).and_then(|()| create()),
            tried => tried,
        };
        match made {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(ReplayError::Replayed),
            Err(why) => Err(ReplayError::Io { path, why }),
        }
    }

    /// Ours alone; what lies above is others' to look into.
    fn make(&self, ends: &Path) -> io::Result<()> {
        self.dir.parent().map_or(Ok(()), fs::create_dir_all)?;
        DirBuilder::new().recursive(true).mode(0o700).create(ends)
    }

    /// Forgets tokens that have ended a minute ago or more; the minute is for a process that was held up between looking at
    /// the clock and coming here. A failure is no reason to refuse anybody: entries stay, which is safe.
    fn sweep(&self, now: Timestamp) {
        for ends in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let minute = ends.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if minute.is_none_or(|minute| (minute + 2) * MINUTE > now.unix()) {
                continue;
            }
            for entry in fs::read_dir(ends.path()).into_iter().flatten().flatten().take(SWEPT) {
                let _ = fs::remove_file(entry.path());
            }
            let _ = fs::remove_dir(ends.path()); // fails while there are more
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn agent(name: &str) -> AgentId {
        format!("spiffe://example.org/{name}").parse().unwrap()
    }

    #[test]
    fn of_fifty_that_show_one_token_one_gets_through() {
        let dir = tempfile::tempdir().unwrap();
        let (barrier, now) = (Barrier::new(50), Timestamp::from_unix(1_800_000_000));
        let won = thread::scope(|scope| {
            let show = || {
                barrier.wait();
                let seen = SeenTokens::new(dir.path().join("jti")); // each as a process of its own would
                seen.take(&agent("a"), "j", now.plus(LIFE), now).is_ok()
            };
            let threads: Vec<_> = (0..50).map(|_| scope.spawn(show)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn a_token_is_good_once_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let (seen, now) = (SeenTokens::new(dir.path()), Timestamp::from_unix(1_800_000_000));
        let until = now.plus(LIFE);
        let take = |name, jti, now| seen.take(&agent(name), jti, until, now);
        take("a", "j", now).unwrap();
        for later in [now, now.plus(LIFE / 2), until, until.plus(LIFE)] {
            assert!(matches!(take("a", "j", later), Err(ReplayError::Replayed)), "{later}");
        }
        take("b", "j", now).unwrap();
        take("a", "../../j", now).unwrap();
        seen.take(&agent("a"), "j", until.plus(LIFE * 10), now).unwrap(); // another token by the same name
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (seen, mut now) = (SeenTokens::new(dir.path()), Timestamp::from_unix(1_800_000_000));
        for round in 0..10 {
            for n in 0..100 {
                seen.take(&agent("a"), &format!("{round}-{n}"), now.plus(LIFE), now).unwrap();
            }
            now = now.plus(LIFE);
        }
        let minutes = fs::read_dir(dir.path()).unwrap().map(|minute| minute.unwrap().path());
        let entries: usize = minutes.map(|minute| fs::read_dir(minute).unwrap().count()).sum();
        assert_eq!(entries, 300, "of 1000");
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let now = Timestamp::from_unix(1_800_000_000);
        let error = SeenTokens::new(&file).take(&agent("a"), "j", now, now).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}
