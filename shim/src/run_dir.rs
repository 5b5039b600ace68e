//! `/run/creto` of one container: who it is, and the proof. A read-only bind mount of a directory of ours, so that what we
//! replace by rename is seen inside at once; gone with the container.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Where a workload finds it.
const INSIDE: &str = "/run/creto";
/// The directory in it that has what is wiped, not only removed.
const SECRETS: &str = "secrets";

/// Who may read a file of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Everyone in the container.
    All,
    /// The user that the container's init runs as.
    Workload,
}

/// One container's directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    owner: (u32, u32),
}

impl RunDir {
    /// Makes it, for the user that `spec` names.
    pub fn make(path: &Path, spec: &Value) -> io::Result<Self> {
        let id = |pointer: &str| spec.pointer(pointer).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let owner = (id("/process/user/uid").unwrap_or(0), id("/process/user/gid").unwrap_or(0));
        // Not for others on the host to walk through: the gofer does, as root.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let dir = Self { path: path.to_owned(), owner };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(SECRETS))?;
        chown(path.join(SECRETS), Some(owner.0), Some(owner.1))?;
        Ok(dir)
    }

    /// Adds the mount to a spec, above whatever the spec mounts at `/run`.
    pub fn mount(&self, spec: &mut Value) {
        let options = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        let mount = json!({"destination": INSIDE, "type": "bind", "source": self.path, "options": options});
        match spec.get_mut("mounts").and_then(Value::as_array_mut) {
            Some(mounts) => mounts.push(mount),
            None => spec["mounts"] = json!([mount]),
        }
    }

    /// Puts or replaces a file; nobody ever sees half of it.
    pub fn put(&self, name: &str, bytes: &[u8], readers: Readers) -> io::Result<()> {
        let (path, fresh) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let _ = fs::remove_file(&fresh); // of a shim that was killed
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&fresh)?;
        file.write_all(bytes)?;
        match readers {
            Readers::All => file.set_permissions(Permissions::from_mode(0o444))?,
            Readers::Workload => chown(&fresh, Some(self.owner.0), Some(self.owner.1))?,
        }
        drop(file);
        fs::rename(&fresh, &path)
    }

    /// A secret, by its name.
    pub fn put_secret(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put(&format!("{SECRETS}/{name}"), bytes, Readers::Workload)
    }

    /// Removes the directory; secrets are overwritten before, for a tmpfs may have been swapped out.
    pub fn wipe(&self) {
        wipe(&self.path);
    }
}

/// Removes a container's directory, whoever made it.
pub fn wipe(path: &Path) {
    for secret in fs::read_dir(path.join(SECRETS)).into_iter().flatten().flatten() {
        let zeros = vec![0; secret.metadata().map_or(0, |meta| meta.len() as usize)];
        let file = OpenOptions::new().write(true).open(secret.path());
        let _ = file.and_then(|mut file| file.write_all(&zeros)); // it is removed all the same
    }
    let _ = fs::remove_dir_all(path);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_the_workloads_to_read_and_nobodys_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let me = fs::metadata(dir.path()).unwrap();
        let spec = json!({"process": {"user": {"uid": me.uid(), "gid": me.gid()}}});
        let run = RunDir::make(&dir.path().join("c1"), &spec).unwrap();
        run.put("jwks.json", b"{}", Readers::All).unwrap();
        run.put("identity.key", b"private", Readers::Workload).unwrap();
        run.put("identity.key", b"replaced", Readers::Workload).unwrap();
        run.put_secret("db", b"hunter2").unwrap();
        for (name, mode, content) in
            [("jwks.json", 0o444, "{}"), ("identity.key", 0o400, "replaced"), ("secrets/db", 0o400, "hunter2")]
        {
            let path = dir.path().join("c1").join(name);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{name}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        run.wipe();
        assert!(!dir.path().join("c1").exists());
    }

    #[test]
    fn it_is_mounted_last_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::make(&dir.path().join("c1"), &json!({})).unwrap();
        let mut spec = json!({"mounts": [{"destination": "/run", "type": "tmpfs"}]});
        run.mount(&mut spec);
        assert_eq!(spec["mounts"][1]["destination"], "/run/creto");
        assert!(spec["mounts"][1]["options"].as_array().unwrap().contains(&json!("ro")));
        let mut bare = json!({});
        run.mount(&mut bare);
        assert_eq!(bare["mounts"].as_array().unwrap().len(), 1);
    }
}
