//! Where things are on the host: the shim's socket, and each sandbox's directory. Pure.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// containerd's own directory for shim sockets; short, since a socket's path holds 107 bytes.
const SOCKETS: &str = "/run/containerd/s";

/// A pod's shim is reached here; the same for every container of the group.
pub fn socket(address: &str, namespace: &str, group: &str, socket_dir: Option<&str>) -> PathBuf {
    let dir = socket_dir.filter(|d| !d.is_empty()).unwrap_or(SOCKETS);
    Path::new(dir).join(hex_digest(&format!("creto/{address}/{namespace}/{group}")))
}

/// Everything of one sandbox that must be found again after a crash, by its first container.
pub fn sandbox(root: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = hex_digest(&format!("{address}/{namespace}/{group}"));
    root.join("sandboxes").join(&digest[..24])
}

/// The bundle that runsc sees of one of a sandbox's containers.
pub fn bundle(sandbox: &Path, id: &str) -> PathBuf {
    sandbox.join("bundles").join(id)
}

/// runsc's name for a container. runsc matches ids by prefix, so all have one length; and it puts them into socket
/// names, so they are short.
pub fn runsc_id(id: &str) -> String {
    hex_digest(id)[..16].to_owned()
}

/// Volatile state: `CRETO_ROOT/run`, else `/run/creto`.
pub fn state_root() -> PathBuf {
    match std::env::var_os("CRETO_ROOT") {
        Some(root) => Path::new(&root).join("run"),
        None => PathBuf::from("/run/creto"),
    }
}

fn hex_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_never_prefixes_of_each_other() {
        let long = "x".repeat(76);
        assert!(socket("/run/containerd/containerd.sock", "default", &long, None).as_os_str().len() <= 106);
        let dir = sandbox(Path::new("/run/creto"), "a", "ns", &long);
        let control = dir.join("runsc").join(format!("runsc-{}.sock", runsc_id(&long)));
        assert!(control.as_os_str().len() <= 106, "{control:?}");
        assert_eq!(runsc_id("a").len(), runsc_id("ab").len());
        assert_ne!(runsc_id("a"), runsc_id("ab"));
    }
}
