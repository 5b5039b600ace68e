//! Whether what a file or directory says may be believed: whoever may write it decides what it says.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::unistd::geteuid;

/// Belongs to root or to us, and nobody else may write it; otherwise why not, and what to do.
pub fn guarded(metadata: &Metadata) -> Result<(), String> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!("belongs to uid {owner}: chown it to root"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("mode {mode:04o} lets others write: chmod go-w"));
    }
    Ok(())
}
