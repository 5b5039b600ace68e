//! Where things are on the host: the shim's socket, and each sandbox's directory.

use std::path::{Path, PathBuf};

use egress::paths::Paths;
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
    root.join("sandboxes").join(&digest[..16])
}

/// The bundle that a backend sees of one of a sandbox's containers.
pub fn bundle(sandbox: &Path, id: &str) -> PathBuf {
    sandbox.join("bundles").join(id)
}

/// The containers of a sandbox that have a bundle.
pub fn bundles(sandbox: &Path) -> Vec<String> {
    let bundles = std::fs::read_dir(bundle(sandbox, "")).into_iter().flatten().flatten();
    bundles.filter_map(|bundle| bundle.file_name().into_string().ok()).collect()
}

/// runsc's name for a container. runsc matches ids by prefix, so all have one length; and it puts them into socket
/// names, so they are short.
pub fn runsc_id(id: &str) -> String {
    hex_digest(id)[..12].to_owned()
}

/// A link to the runsc that the sandbox was made with, where one was chosen.
pub fn program(sandbox: &Path) -> PathBuf {
    sandbox.join("runsc-program")
}

/// runsc's own state of a sandbox.
pub fn runsc_root(sandbox: &Path) -> PathBuf {
    sandbox.join("runsc")
}

/// Whether runsc can listen there. Where it cannot it falls back to a directory that all sandboxes share, in which
/// equal names meet; so that is refused.
pub fn has_room(sandbox: &Path) -> bool {
    const SUN_PATH: usize = 107; // unix(7), less the final NUL
    runsc_root(sandbox).join(format!("runsc-{}.sock", runsc_id(""))).as_os_str().len() <= SUN_PATH
}

/// Where this node's things are.
fn node() -> Paths {
    Paths::new(std::env::var_os("CRETO_ROOT").as_deref().map(Path::new))
}

/// Volatile state.
pub fn state_root() -> PathBuf {
    node().run().to_owned()
}

/// What outlives a reboot.
pub fn lib_root() -> PathBuf {
    node().lib().to_owned()
}

/// The operator's settings.
pub fn settings() -> PathBuf {
    node().etc().join("runtime.toml")
}

/// The agents of the node, a file each.
pub fn agents() -> PathBuf {
    node().etc().join("agents.d")
}

/// Where creto-egress answers.
pub fn egress() -> PathBuf {
    node().socket()
}

/// The network policies of the node, a file each.
pub fn policies() -> PathBuf {
    node().policies()
}

/// The directory that a sandbox sees as `/run/creto`.
pub fn run_dir(sandbox: &Path) -> PathBuf {
    sandbox.join("creto")
}

/// All statements about all sandboxes: `NAMESPACE/ID/` each, the newest last.
pub fn statements() -> PathBuf {
    lib_root().join("attestations")
}

/// A program as execvp(3) finds it; one with a path of its own is found there.
pub fn in_path(program: &Path) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
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
        assert!(has_room(&dir), "{dir:?}");
        assert!(!has_room(Path::new(&"/x".repeat(40))));
        assert_eq!(runsc_id("a").len(), runsc_id("ab").len());
        assert_ne!(runsc_id("a"), runsc_id("ab"));
    }
}
