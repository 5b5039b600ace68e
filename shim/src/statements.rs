//! The statements that are kept of sandboxes, `attestations/NAMESPACE/ID/00000001.dsse.json` and so on. A sandbox that lives
//! keeps all of its own; those of ended ones go once they are old, or too many. Whichever shim sees a sandbox end prunes
//! for all of the node, once an hour at most.
//! Not here: what a statement says (`trust::attestation`), looking at them (`creto-runtime-cli attestation`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::settings::AttestationSettings;

/// What says when it was pruned last; no namespace begins with a dot.
const PRUNED: &str = ".pruned";
/// What a directory that is being removed is called, so that nobody takes half a chain for a whole one.
const GONE: &str = ".gone-";
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Those of one sandbox that lives: nobody prunes them while this is held.
#[derive(Debug)]
pub struct Statements {
    dir: PathBuf,
    _lives: File,
}

impl Statements {
    /// Of the sandbox with this directory, which need not be there.
    pub fn hold(dir: &Path) -> io::Result<Self> {
        loop {
            // It may be pruned under our hands: between the two looks of `create_dir_all`, or before it is opened.
            match fs::create_dir_all(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_dir_or_gone(dir) => continue,
                made => made?,
            }
            let lives = match File::open(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            lives.lock_shared()?;
            if fs::metadata(dir).is_ok_and(|there| there.ino() == lives.metadata().map_or(0, |held| held.ino())) {
                return Ok(Self { dir: dir.to_owned(), _lives: lives });
            }
        }
    }

    /// Adds one, the newest. Returns where it is.
    pub fn keep(&self, envelope: &str) -> io::Result<PathBuf> {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.split('.').next()?.parse::<u32>().ok();
        let last = fs::read_dir(&self.dir)?.flatten().filter_map(number).max().unwrap_or(0);
        let path = self.dir.join(format!("{:08}.dsse.json", last + 1));
        let fresh = self.dir.join(".new"); // of a killed shim it is the next one's to replace
        fs::write(&fresh, envelope)?;
        fs::rename(fresh, &path)?;
        Ok(path)
    }
}

/// Brings a kept statement to the disk. It takes milliseconds: a create does not wait for it.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Removes the statements of ended sandboxes as the operator has decided, unless that was done within the hour. Returns of
/// how many sandboxes.
pub fn prune_if_due(root: &Path, settings: &AttestationSettings, now: SystemTime) -> io::Result<usize> {
    let stamp = root.join(PRUNED);
    let ago = fs::metadata(&stamp).and_then(|stamp| stamp.modified()).map(|last| now.duration_since(last));
    if ago.is_ok_and(|ago| ago.is_ok_and(|ago| ago < EVERY)) {
        return Ok(0);
    }
    fs::write(stamp, "")?; // before, so that of many shims one does it
    prune(root, settings, now)
}

fn prune(root: &Path, settings: &AttestationSettings, now: SystemTime) -> io::Result<usize> {
    let mut all = Vec::new();
    for namespace in fs::read_dir(root)?.flatten() {
        let name = namespace.file_name();
        if name.as_encoded_bytes().starts_with(GONE.as_bytes()) {
            fs::remove_dir_all(namespace.path())?; // of a shim that was killed
        }
        for sandbox in fs::read_dir(namespace.path()).into_iter().flatten().flatten() {
            if let Ok(newest) = sandbox.metadata().and_then(|dir| dir.modified()) {
                all.push((newest, name.clone(), sandbox.path()));
            }
        }
    }
    all.sort_by(|(one, ..), (other, ..)| other.cmp(one));
    let mut removed = 0;
    for (n, (newest, namespace, dir)) in all.iter().enumerate() {
        let old = now.duration_since(*newest).is_ok_and(|age| age > settings.keep);
        if !old && n < settings.keep_most {
            continue;
        }
        if let Some(_nobody_begins) = ended(dir)? {
            let id = dir.file_name().unwrap_or_default().to_string_lossy();
            let gone = root.join(format!("{GONE}{}-{id}", namespace.to_string_lossy()));
            fs::rename(dir, &gone).and_then(|()| fs::remove_dir_all(&gone))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_dir_or_gone(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(there) => there.is_dir(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Where no shim holds the sandbox's statements: what keeps any from beginning to. One that waits for it then finds its
/// directory gone, and makes another.
fn ended(dir: &Path) -> io::Result<Option<File>> {
    let lives = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // somebody else has pruned it
        opened => opened?,
    };
    match lives.try_lock() {
        Ok(()) => Ok(Some(lives)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// Keeps a statement of a sandbox that was last spoken of so many days ago.
    fn kept(root: &Path, name: &str, days: u32, now: SystemTime) -> Statements {
        let statements = Statements::hold(&root.join(name)).unwrap();
        statements.keep("{}").unwrap();
        File::open(root.join(name)).unwrap().set_modified(now - DAY * days).unwrap();
        statements
    }

    fn names(root: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn statements_are_numbered_and_the_newest_is_last() {
        let dir = tempfile::tempdir().unwrap();
        let statements = Statements::hold(&dir.path().join("default/c")).unwrap();
        for n in 1..=3 {
            let path = statements.keep(&n.to_string()).unwrap();
            sync(&path).unwrap();
        }
        assert_eq!(names(&dir.path().join("default/c")), [1, 2, 3].map(|n| format!("{n:08}.dsse.json")));
        assert_eq!(fs::read_to_string(dir.path().join("default/c/00000003.dsse.json")).unwrap(), "3");
    }

    #[test]
    fn those_of_ended_sandboxes_go_by_age_and_number_and_those_of_live_ones_stay() {
        let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let root = dir.path();
        let lives = [kept(root, "default/lives", 400, now), kept(root, "k8s.io/lives", 3, now)];
        for (name, days) in [("default/old", 91), ("default/new", 1), ("k8s.io/two", 2), ("k8s.io/five", 5)] {
            kept(root, name, days, now);
        }
        fs::create_dir_all(root.join(".gone-default-x/y")).unwrap();
        let by_age = AttestationSettings::default();
        assert_eq!(prune(root, &by_age, now).unwrap(), 1);
        assert_eq!(names(&root.join("default")), ["lives", "new"]);
        let by_number = AttestationSettings { keep_most: 2, ..by_age.clone() };
        assert_eq!(prune(root, &by_number, now).unwrap(), 1, "the two newest, and what lives");
        assert_eq!(names(&root.join("k8s.io")), ["lives", "two"]);
        assert_eq!(names(root), ["default", "k8s.io"]);
        drop(lives);
        assert_eq!(prune(root, &by_number, now).unwrap(), 2);
        assert_eq!(
            (names(&root.join("default")), names(&root.join("k8s.io"))),
            (vec!["new".into()], vec!["two".into()])
        );
    }

    #[test]
    fn many_shims_prune_once_an_hour() {
        let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let settings = AttestationSettings { keep_most: 0, ..AttestationSettings::default() };
        for (at, removed) in [(now, 1), (now + EVERY / 2, 0), (now + EVERY * 2, 1)] {
            kept(dir.path(), "default/c", 1, now);
            assert_eq!(prune_if_due(dir.path(), &settings, at).unwrap(), removed);
        }
    }

    #[test]
    fn who_begins_while_its_directory_is_removed_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let (path, root) = (dir.path().join("default/c"), dir.path().to_owned());
        let settings = AttestationSettings { keep_most: 0, ..AttestationSettings::default() };
        let pruning = std::thread::spawn(move || {
            (0..200).map(|_| prune(&root, &settings, SystemTime::now()).unwrap_or(0)).sum::<usize>()
        });
        for _ in 0..200 {
            let statements = Statements::hold(&path).unwrap();
            assert!(statements.keep("{}").unwrap().exists(), "held, so nobody removes it");
        }
        pruning.join().unwrap();
    }
}
