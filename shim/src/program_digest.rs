//! The SHA-256 of a program that was executed: hashed once per build and remembered on disk, for a runsc has 80 MB and every
//! sandbox is attested with it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use trust::digest::Digest;

use crate::error::TaskError;

/// Names one build: the same file, unchanged.
pub fn build(path: &Path) -> String {
    let identity =
        fs::metadata(path).map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()));
    Digest::of(format!("{identity:?}").as_bytes()).hex()[..16].to_owned()
}

/// Of the file behind `path`, which may be `/proc/PID/exe`. `memory` is a directory for what was learnt, root's alone.
pub async fn of(path: &Path, memory: &Path) -> Result<Digest, TaskError> {
    let remembered = memory.join(format!("program-{}.sha256", build(path)));
    if let Some(digest) = fs::read_to_string(&remembered).ok().and_then(|text| text.parse().ok()) {
        return Ok(digest);
    }
    let (program, doing) = (path.to_owned(), || format!("hashing {}", path.display()));
    let hashed = tokio::task::spawn_blocking(move || Digest::of_reader(File::open(program)?)).await;
    let digest = hashed.map_err(|e| TaskError::host(doing(), e))?.map_err(|e| TaskError::host(doing(), e))?;
    if let Err(error) = keep(&remembered, &digest.to_string()) {
        tracing::debug!(%error, "a program's digest could not be kept");
    }
    Ok(digest)
}

/// Whole or not at all, whoever else is keeping the same.
pub fn keep(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension(std::process::id().to_string());
    fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_program_that_changes_has_another_digest_and_one_that_does_not_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "one").unwrap();
        assert_eq!(of(&program, dir.path()).await.unwrap(), Digest::of(b"one"));
        let remembered = dir.path().join(format!("program-{}.sha256", build(&program)));
        fs::write(&remembered, Digest::of(b"remembered").to_string()).unwrap();
        assert_eq!(of(&program, dir.path()).await.unwrap(), Digest::of(b"remembered"));
        fs::write(&remembered, "half").unwrap();
        assert_eq!(of(&program, dir.path()).await.unwrap(), Digest::of(b"one"));
        fs::write(&program, "two!").unwrap();
        assert_eq!(of(&program, dir.path()).await.unwrap(), Digest::of(b"two!"));
    }
}
