//! `/run/creto` of one container: who it is, and the proof. A read-only bind mount of a directory of ours, so that what we
//! replace by rename is seen inside at once; gone with the container.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Where a workload finds it.
const INSIDE: &str = "/run/creto";
/// The sandbox's token.
pub const TOKEN: &str = "identity.jwt";
/// The current statement about it.
pub const ATTESTATION: &str = "attestation.dsse.json";
/// The private half of the sandbox's key: wiped, not only removed.
pub const KEY: &str = "identity.key";
/// The directory in it whose files are wiped as well.
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
        let owner = (on_host(spec, "uid"), on_host(spec, "gid"));
        // Not for others on the host to walk through, who may have the workload's user id: a backend does, as root. In a
        // user namespace it is not the host's root any more.
        let mapped = spec.pointer("/linux/uidMappings").is_some_and(|mappings| !mappings.is_null());
        if let Some(above) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(if mapped { 0o711 } else { 0o700 }).create(above)?;
        }
        // Whatever the umask is, the workload walks through these. None is its own: who owns a directory can put a link
        // into it, where root writes.
        for dir in [path, &path.join(SECRETS)] {
            fs::DirBuilder::new().recursive(true).create(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        }
        Ok(Self { path: path.to_owned(), owner })
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
        let path = self.path.join(name);
        // No name begins with a dot, so this is nobody else's.
        let fresh = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
        let _ = fs::remove_file(&fresh); // of a shim that was killed
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&fresh)?;
        file.write_all(bytes)?;
        match readers {
            Readers::All => file.set_permissions(Permissions::from_mode(0o444))?,
            Readers::Workload => fchown(&file, Some(self.owner.0), Some(self.owner.1))?,
        }
        drop(file);
        fs::rename(&fresh, &path)
    }

    /// A secret, by its name.
    pub fn put_secret(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put(&format!("{SECRETS}/{name}"), bytes, Readers::Workload)
    }

    /// Removes who it is: token, key and secrets. Whatever else happens, each is overwritten and tried; the first that stays is the
    /// error.
    pub fn clear(&self) -> io::Result<()> {
        overwrite(&self.path);
        let secrets = fs::read_dir(self.path.join(SECRETS))?.flatten().map(|secret| secret.path());
        let gone = secrets.chain([TOKEN, KEY].map(|name| self.path.join(name))).map(remove);
        let failed: Vec<_> = gone.filter_map(Result::err).collect();
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// Removes a file of it, if it is there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        remove(self.path.join(name))
    }

    /// Removes the directory; its key and secrets are overwritten before, for a tmpfs may have been swapped out.
    pub fn wipe(&self) {
        wipe(&self.path);
    }
}

/// Of the container's first process, the `uid` or `gid` as the host has it: another one in a user namespace.
fn on_host(spec: &Value, kind: &str) -> u32 {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let id = number(spec.pointer(&format!("/process/user/{kind}"))).unwrap_or(0);
    let mappings = spec.pointer(&format!("/linux/{kind}Mappings")).and_then(Value::as_array);
    let mapped = mappings.into_iter().flatten().find_map(|mapping| {
        let of = |key: &str| number(mapping.get(key));
        let nth = id.checked_sub(of("containerID")?).filter(|nth| Some(*nth) < of("size"))?;
        of("hostID")?.checked_add(nth)
    });
    mapped.unwrap_or(id)
}

fn remove(path: PathBuf) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a container's directory, whoever made it.
pub fn wipe(path: &Path) {
    overwrite(path);
    let _ = fs::remove_dir_all(path);
}

/// Writes zeros over a directory's key and secrets, as far as it can.
fn overwrite(path: &Path) {
    let secrets = fs::read_dir(path.join(SECRETS)).into_iter().flatten().flatten().map(|secret| secret.path());
    for private in secrets.chain([path.join(KEY)]) {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(private);
        let overwrite = |mut file: fs::File| file.write_all(&vec![0; file.metadata()?.len() as usize]);
        let _ = file.and_then(overwrite); // it is removed all the same
    }
}

/// Removes the directories of all containers of a pod, which lie in this one.
pub fn wipe_all(pod: &Path) {
    for dir in fs::read_dir(pod).into_iter().flatten().flatten() {
        wipe(&dir.path());
    }
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
    fn others_on_the_host_have_no_way_in() {
        let dir = tempfile::tempdir().unwrap();
        RunDir::make(&dir.path().join("pod/c1"), &json!({})).unwrap();
        for (path, mode) in [("pod", 0o700), ("pod/c1", 0o755), ("pod/c1/secrets", 0o755)] {
            assert_eq!(fs::metadata(dir.path().join(path)).unwrap().mode() & 0o777, mode, "{path}");
        }
    }

    #[test]
    fn a_secret_may_be_called_what_another_ones_file_was_before_it_was_whole() {
        let dir = tempfile::tempdir().unwrap();
        let me = fs::metadata(dir.path()).unwrap();
        let spec = json!({"process": {"user": {"uid": me.uid(), "gid": me.gid()}}});
        let run = RunDir::make(&dir.path().join("c1"), &spec).unwrap();
        run.put_secret("db.new", b"1").unwrap();
        run.put_secret("db", b"2").unwrap();
        assert_eq!(fs::read(dir.path().join("c1/secrets/db.new")).unwrap(), b"1");
    }

    #[test]
    fn a_link_among_the_secrets_is_removed_and_what_it_leads_to_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::make(&dir.path().join("pod/c1"), &json!({})).unwrap();
        let stranger = dir.path().join("stranger");
        fs::write(&stranger, "untouched").unwrap();
        std::os::unix::fs::symlink(&stranger, run.path.join("secrets/db")).unwrap();
        nix::unistd::mkfifo(&run.path.join("secrets/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        wipe_all(&dir.path().join("pod"));
        assert!(!run.path.exists());
        assert_eq!(fs::read_to_string(&stranger).unwrap(), "untouched");
    }

    #[test]
    fn whoever_still_holds_a_private_file_reads_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let me = fs::metadata(dir.path()).unwrap();
        let spec = json!({"process": {"user": {"uid": me.uid(), "gid": me.gid()}}});
        let run = RunDir::make(&dir.path().join("c1"), &spec).unwrap();
        run.put(KEY, b"private", Readers::Workload).unwrap();
        run.put_secret("db", b"hunter2").unwrap();
        let open = |name: &str| fs::File::open(run.path.join(name)).unwrap();
        let held = [open(KEY), open("secrets/db")];
        run.wipe();
        assert_eq!(held.map(|file| std::io::read_to_string(file).unwrap()), ["\0".repeat(7), "\0".repeat(7)]);
    }

    #[test]
    fn of_who_it_was_nothing_is_left_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let me = fs::metadata(dir.path()).unwrap();
        let spec = json!({"process": {"user": {"uid": me.uid(), "gid": me.gid()}}});
        let run = RunDir::make(&dir.path().join("c1"), &spec).unwrap();
        run.clear().unwrap(); // there is nothing yet
        run.put("jwks.json", b"{}", Readers::All).unwrap();
        run.put(TOKEN, b"token", Readers::Workload).unwrap();
        run.put(KEY, b"private", Readers::Workload).unwrap();
        run.put_secret("db", b"hunter2").unwrap();
        let held = fs::File::open(run.path.join(KEY)).unwrap();
        run.clear().unwrap();
        assert_eq!(std::io::read_to_string(held).unwrap(), "\0".repeat(7));
        let names = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(&run.path.join(SECRETS)), [""; 0]);
        assert_eq!(names(&run.path).len(), 2, "jwks.json and the directory of secrets: {:?}", names(&run.path));
        // What cannot be removed is an error, and keeps nothing else from being removed.
        run.put(TOKEN, b"token", Readers::Workload).unwrap();
        fs::create_dir(run.path.join("secrets/dir")).unwrap();
        run.clear().unwrap_err();
        assert!(!run.path.join(TOKEN).exists());
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
