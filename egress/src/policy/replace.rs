//! Changes a policy's file: one change at a time, and whoever reads it sees the old or the new one whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use trust::id::PolicyName;

use super::edit::EditError;
use super::load::{LoadError, Policies};
use super::model::Policy;
use super::parse::Document;

/// The file in the directory that whoever changes a policy locks; hidden, so no policy.
const LOCK: &str = ".lock";

/// Why a policy's file was not changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The change itself.
    #[error("{path}: {why}")]
    Edit {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        why: EditError,
    },
    /// The policy, as it is or as it would be.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A symbolic link would be replaced by a file.
    #[error("{0} is a symbolic link: change what it points to")]
    Link(PathBuf),
    /// The file system.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        #[source]
        why: io::Error,
    },
}

impl Policies {
    /// Changes the text of a policy's file by `change` (`edit::add_rule`, …) and hands back what `change` does beside it, and
    /// the policy as it is now, with what it includes. A file that is not there is an empty one. Waits for others who do the
    /// same.
    pub fn replace<T>(
        &self,
        name: &PolicyName,
        change: impl FnOnce(&str) -> Result<(String, T), EditError>,
    ) -> Result<(T, Policy), ReplaceError> {
        let path = self.path(name);
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |why| ReplaceError::Io { doing, path, why }
        };
        let lock = self.dir().join(LOCK);
        let guard = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock);
        let guard = guard.map_err(io("opening", &lock))?;
        guard.lock().map_err(io("locking", &lock))?; // until it is dropped
        let bad = |why| ReplaceError::Load(LoadError::File { path: path.clone(), chain: Vec::new(), why });
        let before = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => return Err(ReplaceError::Link(path)),
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io("looking at", &path)(error)),
        };
        let text = self.text(name).map_err(bad)?.unwrap_or_default();
        let edit = |why| ReplaceError::Edit { path: path.clone(), why };
        let (text, more) = change(&text).map_err(edit)?;
        let document = Document::from_toml(&text).map_err(|why| edit(why.into()))?;
        let policy = self.merged_as(name, document)?;
        let fresh = self.dir().join(format!(".{name}.fresh"));
        let written = write(&fresh, &text, before.as_ref()).and_then(|()| fs::rename(&fresh, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&fresh); // an error of this one says less than the first
            return Err(io("writing", &path)(error));
        }
        File::open(self.dir()).and_then(|dir| dir.sync_all()).map_err(io("syncing", self.dir()))?;
        Ok((more, policy))
    }
}

/// With the mode and owner of the file that it takes the place of. What a killed predecessor left is overwritten: the lock is ours.
fn write(fresh: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(fresh)?;
    file.write_all(text.as_bytes())?;
    if let Some(like) = like {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(like.map_or(0o644, |like| like.mode() & 0o7777)))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::edit::{add_rule, remove_rule};
    use super::super::written::WrittenRule;
    use super::*;

    fn rule(host: &str) -> WrittenRule {
        let text = |text: &str| Some(text.to_owned());
        WrittenRule { id: text(host), destination: text(host), action: text("Allow"), ..WrittenRule::default() }
    }

    #[test]
    fn changes_at_the_same_time_all_count() {
        let dir = tempfile::tempdir().unwrap();
        let (policies, name) = (Policies::new(dir.path()), "default".parse().unwrap());
        std::thread::scope(|scope| {
            for n in 0..16 {
                let (policies, name) = (&policies, &name);
                scope.spawn(move || {
                    policies.replace(name, |text| add_rule(text, &rule(&format!("h{n}.example")))).unwrap()
                });
            }
        });
        assert_eq!(policies.named(&name).unwrap().rules.len(), 16);
        let (removed, policy) = policies.replace(&name, |text| remove_rule(text, "h7.example")).unwrap();
        assert_eq!((removed.id.as_str(), policy.rules.len()), ("h7.example", 15));
        assert_eq!(policies.names().unwrap(), [name]);
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_failed_change_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (policies, name) = (Policies::new(dir.path()), "a".parse().unwrap());
        let path = policies.path(&name);
        fs::write(&path, "# mine\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        policies.replace(&name, |text| add_rule(text, &rule("x.example"))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains("# mine"));
        for change in [
            "include = [\"gone\"]",
            "include = [\"a\"]",
            "[[rules]]\ndestination = \"*\"\naction = \"Allow\"",
            "no toml",
        ] {
            policies.replace(&name, |_| Ok((change.to_owned(), ()))).expect_err(change);
            assert_eq!(fs::read_to_string(&path).unwrap(), before, "{change}");
        }
        std::os::unix::fs::symlink(&path, dir.path().join("link.toml")).unwrap();
        let error = policies.replace(&"link".parse().unwrap(), |text| Ok((text.to_owned(), ()))).unwrap_err();
        assert!(matches!(error, ReplaceError::Link(_)), "{error}");
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".lock", "a.toml", "link.toml"]);
    }
}
