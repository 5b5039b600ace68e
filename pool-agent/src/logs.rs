//! The sandboxes' output on the disk: bounded while they run, and removed some time after they are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::containerd::stdio;
use crate::ports::Ports;
use crate::store::{Filter, StoreError};

/// What an output's file ends in; what was trimmed off it ends in `.log.1`.
const EXTENSIONS: [&str; 2] = [".log", ".log.1"];

/// Why output is not tidied.
#[derive(Debug, thiserror::Error)]
pub enum TidyError {
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory.
    #[error("the directory of the sandboxes' output")]
    Io(#[from] io::Error),
}

/// Trims what is too long, and removes what is kept too long.
pub async fn tidy(ports: &Ports) -> Result<(), TidyError> {
    let there = ports.store.sandboxes(&Filter::of_node(&ports.node)).await?;
    let there: BTreeSet<String> = there.into_iter().map(|sandbox| sandbox.id.to_string()).collect();
    let (dir, limits) = (ports.logs(), ports.config.limits.clone());
    let tidied = tokio::task::spawn_blocking(move || {
        tidy_directory(&dir, &there, limits.log_bytes, limits.keep_logs, SystemTime::now())
    });
    Ok(tidied.await.map_err(io::Error::other)??)
}

fn tidy_directory(dir: &Path, there: &BTreeSet<String>, most: u64, keep: Duration, now: SystemTime) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, extension)) = EXTENSIONS.iter().find_map(|e| Some((name.strip_suffix(e)?, *e))) else { continue };
        if !there.contains(id) {
            let since = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if since > keep {
                fs::remove_file(entry.path())?;
            }
        } else if extension == EXTENSIONS[0] && stdio::trim(&entry.path(), most)? {
            tracing::info!(sandbox = id, most, "its output was trimmed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_while_its_sandbox_is_there_and_goes_some_time_after() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| fs::write(dir.path().join(name), vec![b'x'; bytes]).unwrap();
        for (name, bytes) in [("a.log", 100), ("b.log", 10), ("gone.log", 100), ("gone.log.1", 5), ("other", 500)] {
            write(name, bytes);
        }
        let there = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let hour = Duration::from_secs(3600);
        let sizes = || {
            let size = |e: io::Result<fs::DirEntry>| {
                let e = e.unwrap();
                (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())
            };
            fs::read_dir(dir.path()).unwrap().map(size).collect::<std::collections::BTreeMap<_, _>>()
        };
        tidy_directory(dir.path(), &there, 50, hour, SystemTime::now()).unwrap();
        assert_eq!((sizes()["a.log"], sizes()["a.log.1"], sizes()["b.log"]), (0, 25, 10));
        assert_eq!((sizes()["gone.log"], sizes()["other"]), (100, 500));
        tidy_directory(dir.path(), &there, 50, hour, SystemTime::now() + hour * 2).unwrap();
        assert_eq!(sizes().keys().map(String::as_str).collect::<Vec<_>>(), ["a.log", "a.log.1", "b.log", "other"]);
        tidy_directory(Path::new("/nonexistent"), &there, 50, hour, SystemTime::now()).unwrap();
    }
}
