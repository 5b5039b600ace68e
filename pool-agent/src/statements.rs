//! The statements that the shim has kept: `attestations/<namespace>/<id>/00000001.dsse.json` and so on, the newest last.
//! Only looked up here, never believed: what is in a file, `trust::attestation` says.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use trust::attestation::dsse;
use trust::id::{Namespace, SandboxId};

const EXTENSION: &str = ".dsse.json";

/// The statements about one sandbox name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// containerd's namespace.
    pub namespace: Namespace,
    /// The sandbox.
    pub id: SandboxId,
    dir: PathBuf,
}

/// Why there is no statement to look at.
#[derive(Debug, thiserror::Error)]
pub enum StatementsError {
    /// No such sandbox here, or it was never attested.
    #[error(
        "there is no statement about sandbox {id}{} below {}\nof one that runs: is it its id, and not its name? (creto-runtime-cli get {id})",
        within(namespace),
        root.display()
    )]
    None {
        /// Which.
        id: SandboxId,
        /// Where it was looked for; everywhere if nowhere.
        namespace: Option<Namespace>,
        /// Where statements are.
        root: PathBuf,
    },
    /// Which of them?
    #[error("sandbox {id} is in several namespaces, {}: choose with --namespace", namespaces.join(" and "))]
    Several {
        /// Which.
        id: SandboxId,
        /// Where.
        namespaces: Vec<String>,
    },
    /// The file system refused.
    #[error("reading {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// The cause.
        #[source]
        why: io::Error,
    },
}

fn within(namespace: &Option<Namespace>) -> String {
    namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default()
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> StatementsError {
    move |why| StatementsError::Read { path: path.to_owned(), why }
}

/// All sandboxes about which there are statements, by namespace and id.
pub fn list(root: &Path) -> Result<Vec<Kept>, StatementsError> {
    let mut all = Vec::new();
    for (namespace, dir) in entries::<Namespace>(root)? {
        for (id, dir) in entries::<SandboxId>(&dir)? {
            all.push(Kept { namespace: namespace.clone(), id, dir });
        }
    }
    all.sort();
    Ok(all)
}

/// The one sandbox of that id; without a namespace, in whichever it is.
pub fn find(root: &Path, id: &SandboxId, namespace: Option<&Namespace>) -> Result<Kept, StatementsError> {
    let here = |(found, dir): (Namespace, PathBuf)| {
        let dir = dir.join(id.to_string());
        let fits = namespace.is_none_or(|namespace| found == *namespace) && dir.is_dir();
        fits.then(|| Kept { namespace: found, id: id.clone(), dir })
    };
    let mut found: Vec<_> = entries(root)?.into_iter().filter_map(here).collect();
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(kept), true) => Ok(kept),
        (None, _) => {
            Err(StatementsError::None { id: id.clone(), namespace: namespace.cloned(), root: root.to_owned() })
        }
        (Some(last), false) => {
            let namespaces = found.iter().chain([&last]).map(|kept| kept.namespace.to_string()).collect();
            Err(StatementsError::Several { id: id.clone(), namespaces })
        }
    }
}

impl Kept {
    /// The files, oldest first.
    pub fn files(&self) -> Result<Vec<PathBuf>, StatementsError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(reading(&self.dir))? {
            let path = entry.map_err(reading(&self.dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(EXTENSION));
            if let Some(number) = name.and_then(|name| name.parse::<u32>().ok()) {
                files.push((number, path));
            }
        }
        files.sort();
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }

    /// The current statement's envelope, as stored.
    pub fn current(&self) -> Result<Vec<u8>, StatementsError> {
        let none = || StatementsError::None {
            id: self.id.clone(),
            namespace: Some(self.namespace.clone()),
            root: self.dir.clone(),
        };
        read(&self.files()?.pop().ok_or_else(none)?)
    }
}

/// A file's bytes; of one that is no statement, as many as show that it is none.
pub fn read(path: &Path) -> Result<Vec<u8>, StatementsError> {
    fs::File::open(path).and_then(bounded).map_err(reading(path))
}

/// No more than one byte above what an envelope may have.
pub fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(dsse::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directories whose names are of this kind; nothing where there is no directory.
fn entries<T: std::str::FromStr>(dir: &Path) -> Result<Vec<(T, PathBuf)>, StatementsError> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(reading(dir))?,
    };
    let mut named = Vec::new();
    for entry in listing {
        let path = entry.map_err(reading(dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(name) = name.filter(|_| path.is_dir()) {
            named.push((name, path));
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }

    #[test]
    fn the_highest_number_is_the_current_statement() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00000002", "00000010", "00000009", "100000000"] {
            keep(dir.path(), &format!("default/a/{name}{EXTENSION}"));
        }
        keep(dir.path(), "default/a/.4711"); // half-written
        keep(dir.path(), "default/a/zz.dsse.json");
        let kept = find(dir.path(), &"a".parse().unwrap(), None).unwrap();
        assert_eq!(kept.current().unwrap(), b"100000000.dsse.json");
        assert_eq!(kept.files().unwrap().len(), 4);
    }

    #[test]
    fn a_name_in_two_namespaces_must_be_chosen() {
        let dir = tempfile::tempdir().unwrap();
        keep(dir.path(), "default/a/00000001.dsse.json");
        keep(dir.path(), "k8s.io/a/00000001.dsse.json");
        keep(dir.path(), "k8s.io/b/00000001.dsse.json");
        let find = |id: &str, namespace: Option<&str>| {
            let namespace = namespace.map(|namespace| namespace.parse().unwrap());
            find(dir.path(), &id.parse().unwrap(), namespace.as_ref()).map_err(|e| e.to_string())
        };
        assert_eq!(find("b", None).unwrap().namespace.to_string(), "k8s.io");
        assert_eq!(find("a", Some("default")).unwrap().namespace.to_string(), "default");
        let error = find("a", None).unwrap_err();
        assert!(error.contains("default and k8s.io") && error.contains("--namespace"), "{error}");
        let error = find("b", Some("default")).unwrap_err();
        assert!(error.contains("sandbox b in namespace default"), "{error}");
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn no_file_is_read_without_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        fs::write(&path, vec![b' '; dsse::MAX_BYTES * 2]).unwrap();
        assert_eq!(read(&path).unwrap().len(), dsse::MAX_BYTES + 1);
    }
}
