//! What the daemon must find again after it was killed: a file for each fence, written before the fence stands. It lies on a
//! file system that a reboot empties, as the kernel's rules are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trust::digest::Digest;

use super::netns::Port;
use super::ruleset::Slot;
use crate::policy::Document;
use crate::protocol::{Attach, Fence, SandboxKey};

/// A fence, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// As it was asked for; an update replaces the policy in it.
    pub attach: Attach,
    /// Rules of the sandbox's own.
    pub own_rules: Vec<Value>,
    /// The policy that is enforced, all in all: what holds should its file be gone.
    pub policy: Document,
    /// What it stands around: a sandbox that runs shows its addresses no more.
    pub ports: Vec<Port>,
    /// As it stands, or is about to.
    pub fence: Fence,
    /// What stands in the kernel for it beside its policy's rules, as it was read back: another policy leaves that as it is.
    #[serde(default)]
    pub frame: Option<Digest>,
    /// What was put into the kernel for it. Where a daemon would put something else now, for it is of another version or has
    /// other ports, what stands there is no tampering.
    #[serde(default)]
    pub put: Option<Digest>,
}

impl Kept {
    /// Its place in the kernel's rules.
    pub fn slot(&self) -> Option<Slot> {
        Slot::of_mark(self.fence.mark)
    }
}

/// The files.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// Below this directory.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { dir })
    }

    /// Keeps a fence, in place of what was kept of its sandbox.
    pub fn put(&self, kept: &Kept) -> io::Result<()> {
        let path = self.path(&kept.attach.sandbox);
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(kept)?)?;
        fs::rename(fresh, path)
    }

    /// Forgets a sandbox.
    pub fn remove(&self, sandbox: &SandboxKey) -> io::Result<()> {
        match fs::remove_file(self.path(sandbox)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All that are kept. A file that cannot be read is an error of its own: what it was about stays closed in the kernel.
    pub fn all(&self) -> io::Result<Vec<Result<Kept, (PathBuf, io::Error)>>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                all.push(read(&path).map_err(|error| (path, error)));
            }
        }
        Ok(all)
    }

    /// Sandboxes have names that no file can have.
    fn path(&self, sandbox: &SandboxKey) -> PathBuf {
        let digest = Digest::of(sandbox.to_string().as_bytes()).to_string();
        let hex = digest.rsplit(':').next().unwrap_or_default();
        self.dir.join(format!("{}.json", &hex[..hex.len().min(32)]))
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::PolicyRef;

    fn kept(id: &str, generation: u64) -> Kept {
        let sandbox = SandboxKey { namespace: "n".into(), id: id.into() };
        let policy = PolicyRef::Inline(json!({"rules": []}));
        let none = Digest::of(b"");
        Kept {
            attach: Attach { sandbox: sandbox.clone(), agent: None, netns: "/x".into(), policy, attestation: None },
            own_rules: vec![],
            policy: Document::default(),
            ports: vec![],
            fence: Fence { sandbox, mark: 1, interfaces: vec![], ruleset: none, policy: none, generation },
            frame: None,
            put: None,
        }
    }

    #[test]
    fn what_was_kept_is_found_and_a_damaged_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path().join("s")).unwrap();
        state.put(&kept("a", 1)).unwrap();
        state.put(&kept("a", 2)).unwrap();
        state.put(&kept("../b", 1)).unwrap();
        fs::write(dir.path().join("s/c.json"), "{").unwrap();
        fs::write(dir.path().join("s/d.new"), "half").unwrap();
        let mut found: Vec<_> = state.all().unwrap().into_iter().collect();
        found.sort_by_key(|kept| kept.as_ref().map(|kept| kept.attach.sandbox.id.clone()).ok());
        let found: Vec<_> =
            found.into_iter().map(|kept| kept.map(|k| (k.attach.sandbox.id, k.fence.generation))).collect();
        assert!(matches!(&found[..], [Err(_), Ok((b, 1)), Ok((a, 2))] if b == "../b" && a == "a"), "{found:?}");
        state.remove(&kept("a", 1).attach.sandbox).unwrap();
        state.remove(&kept("a", 1).attach.sandbox).unwrap();
        assert_eq!(state.all().unwrap().len(), 2);
    }
}
