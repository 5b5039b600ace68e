//! The key directory on disk. A file is written beside its place, synced and renamed into it, so a reader sees all of it or
//! none; whoever changes anything holds the lock, which the kernel takes back from a killed process.
//! Not here: what is in the files (`keys`).

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::KeyError;

const LOCK: &str = "lock";
const JWKS: &str = "jwks.json";
/// Begins the name of a file that is not yet in its place.
const UNFINISHED: &str = ".new-";
/// No file here is larger, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The directory, known to be ours alone.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    keys: PathBuf,
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    move |why| KeyError::Io { doing, path: path.to_owned(), why }
}

impl Store {
    /// Makes the directory where it is missing, and refuses one that others could change or read.
    pub fn prepare(root: &Path) -> Result<Self, KeyError> {
        let keys = root.join("keys");
        fs::create_dir_all(root).map_err(io("making", root))?;
        match DirBuilder::new().mode(0o700).create(&keys) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io("making", &keys)(error)),
            _ => {}
        }
        // Whoever may write the root may put another directory in the place of `keys`, or another jwks.json.
        ours(root, &fs::metadata(root).map_err(io("looking at", root))?, 0o022, 0o755)?;
        let metadata = fs::symlink_metadata(&keys).map_err(io("looking at", &keys))?;
        if !metadata.is_dir() {
            return Err(KeyError::Kind { path: keys, wanted: "directory" });
        }
        ours(&keys, &metadata, 0o077, 0o700)?;
        Ok(Self { root: root.to_owned(), keys })
    }

    /// Where a file is, for errors.
    pub fn path(&self, name: &str) -> PathBuf {
        self.keys.join(name)
    }

    /// A file's bytes, wiped on drop; none where there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let path = self.path(name);
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("reading", &path)(error)),
        };
        let metadata = file.metadata().map_err(io("reading", &path))?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(KeyError::Kind { path, wanted: "file" });
        }
        ours(&path, &metadata, 0o077, 0o600)?;
        // Never reallocated, or a copy would stay behind unwiped.
        let mut bytes = Zeroizing::new(vec![0; metadata.len() as usize]);
        (&file).read_exact(&mut bytes).map_err(io("reading", &path))?;
        Ok(Some(bytes))
    }

    /// Held until dropped. Only writers wait for it.
    pub fn lock(&self) -> Result<File, KeyError> {
        let path = self.path(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(io("opening", &path))?;
        file.lock().map_err(io("locking", &path))?;
        Ok(file)
    }

    /// Puts a private file into its place.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
        place(&self.keys, name, bytes, 0o600)
    }

    /// Puts jwks.json into its place, for everybody to read.
    pub fn publish(&self, jwks: &[u8]) -> Result<(), KeyError> {
        place(&self.root, JWKS, jwks, 0o644)
    }

    /// What jwks.json says; none where it is missing.
    pub fn published(&self) -> Result<Option<Vec<u8>>, KeyError> {
        let path = self.root.join(JWKS);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("reading", &path)(error)),
        }
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), KeyError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what killed writers left unfinished. Only under the lock: a living writer's file looks the same.
    pub fn sweep(&self) -> Result<(), KeyError> {
        for dir in [&self.root, &self.keys] {
            for entry in fs::read_dir(dir).map_err(io("reading", dir))? {
                let entry = entry.map_err(io("reading", dir))?;
                if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                    fs::remove_file(entry.path()).map_err(io("removing", &entry.path()))?;
                }
            }
        }
        Ok(())
    }
}

/// Writes, syncs, renames, syncs the directory. Under the lock, so the unfinished name needs no more than `name`.
fn place(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let (unfinished, path) = (dir.join(format!("{UNFINISHED}{name}")), dir.join(name));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("removing", &unfinished)(error)),
        _ => {}
    }
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        // The umask may have taken bits that readers need.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    written().map_err(io("writing", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(io("renaming", &unfinished))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("syncing", dir))
}

/// Whether only we can get at it: our own, and none of the `forbidden` permission bits.
fn ours(path: &Path, metadata: &Metadata, forbidden: u32, wanted: u32) -> Result<(), KeyError> {
    let (owner, us) = (metadata.uid(), geteuid().as_raw());
    if owner != us {
        return Err(KeyError::Owner { path: path.to_owned(), owner, us });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(KeyError::Loose { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}
