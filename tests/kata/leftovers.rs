//! The files that a sandbox makes on the host, and which of them stay (§5). They lie below `CRETO_E2E_VC`, or `vc` in
//! the working directory, where the real ones lie below /run/vc and /run/kata-containers.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

/// One sandbox's files.
#[derive(Clone)]
pub struct Leftovers {
    root: PathBuf,
    id: String,
}

impl Leftovers {
    /// Of a sandbox, made or not.
    pub fn of(id: &str) -> io::Result<Self> {
        let root = match std::env::var_os("CRETO_E2E_VC") {
            Some(root) => PathBuf::from(root),
            None => std::env::current_dir()?.join("vc"),
        };
        Ok(Self { root, id: id.to_owned() })
    }

    /// `/run/vc/sbs/ID`.
    pub fn sandbox(&self) -> PathBuf {
        self.root.join("sbs").join(&self.id)
    }

    /// `/run/vc/vm/ID`; the VMM has it on its command line.
    pub fn vm(&self) -> PathBuf {
        self.root.join("vm").join(&self.id)
    }

    fn shared(&self) -> PathBuf {
        self.root.join("shared/sandboxes").join(&self.id)
    }

    /// Makes them. Sockets are empty files here: a bundle's path is too long for a socket's.
    pub fn make(&self, vmm: u32, virtiofsd: u32) -> io::Result<()> {
        for dir in [self.sandbox(), self.vm(), self.shared().join("mounts"), self.shared().join("shared")] {
            fs::create_dir_all(dir)?;
        }
        for socket in ["clh-api.sock", "clh.sock", "virtiofsd.sock"] {
            fs::write(self.vm().join(socket), "")?;
        }
        fs::write(self.sandbox().join("shim-monitor.sock"), "")?;
        let persisted = json!({
            "Version": 2, "State": "running", "SandboxContainer": self.id,
            "HypervisorState": {
                "Type": "clh", "Pid": vmm, "VirtiofsDaemonPid": virtiofsd, "APISocket": self.vm().join("clh-api.sock"),
            },
        });
        fs::write(self.sandbox().join("persist.json"), persisted.to_string())
    }

    /// The VMM's and virtiofsd's pids, from disk.
    pub fn pids(&self) -> io::Result<[i32; 2]> {
        let persisted: Value = serde_json::from_slice(&fs::read(self.sandbox().join("persist.json"))?)?;
        let pid = |key: &str| persisted["HypervisorState"][key].as_i64().and_then(|pid| i32::try_from(pid).ok());
        Ok([pid("Pid").unwrap_or_default(), pid("VirtiofsDaemonPid").unwrap_or_default()])
    }

    /// A good end leaves nothing.
    pub fn remove_all(&self) {
        self.remove_but_shared();
        let _ = fs::remove_dir_all(self.shared());
    }

    /// The `delete` action leaves the directories of the shared file system, empty.
    pub fn remove_but_shared(&self) {
        let _ = fs::remove_dir_all(self.sandbox());
        let _ = fs::remove_dir_all(self.vm());
    }
}
