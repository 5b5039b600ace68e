//! A container's input and output. A detached sandbox writes into a log file, by the shim, with nobody in between: what it wrote while
//! the agent was away is there. [`trim`] keeps the file within bounds. One that somebody is attached to has FIFOs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Where input comes from and output goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stdio {
    /// No input; output is lost.
    #[default]
    Null,
    /// No input; both outputs are appended to a file that the shim makes, for root alone.
    Log(PathBuf),
    /// FIFOs: [`Fifos::make`].
    Fifos(Fifos),
}

/// The FIFOs of one attached container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fifos {
    /// A directory of its own.
    pub dir: PathBuf,
    /// One terminal instead of two outputs.
    pub terminal: bool,
}

impl Fifos {
    /// Makes them, in a directory that is not there yet.
    pub fn make(dir: &Path, terminal: bool) -> io::Result<Self> {
        fs::create_dir(dir)?;
        let fifos = Self { dir: dir.to_owned(), terminal };
        for path in fifos.paths().iter().flatten() {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(fifos)
    }

    /// stdin, stdout, and stderr where there is no terminal.
    pub fn paths(&self) -> [Option<PathBuf>; 3] {
        let path = |name: &str| Some(self.dir.join(name));
        [path("stdin"), path("stdout"), if self.terminal { None } else { path("stderr") }]
    }

    /// Removes them.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

impl Stdio {
    /// As a task is told: stdin, stdout, stderr.
    pub(super) fn uris(&self) -> [String; 3] {
        match self {
            Self::Null => Default::default(),
            Self::Log(path) => {
                let uri = format!("file://{}", path.display());
                [String::new(), uri.clone(), uri]
            }
            Self::Fifos(fifos) => {
                fifos.paths().map(|path| path.map(|path| path.display().to_string()).unwrap_or_default())
            }
        }
    }

    /// Whether there is a terminal.
    pub fn terminal(&self) -> bool {
        matches!(self, Self::Fifos(Fifos { terminal: true, .. }))
    }
}

/// Where a log is longer than `most` bytes, keeps its last half of that beside it, as `PATH.1`, and empties it. The shim appends, so it goes on at
/// the start; what it writes between the two steps is lost. Says from where on it was kept, if it was so.
pub fn trim(log: &Path, most: u64) -> io::Result<Option<u64>> {
    let mut file = match File::options().read(true).write(true).open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= most {
        return Ok(None);
    }
    let from = length - most / 2;
    file.seek(SeekFrom::Start(from))?;
    let mut last = Vec::new();
    (&file).take(most / 2).read_to_end(&mut last)?;
    let mut kept = log.as_os_str().to_owned();
    kept.push(".1");
    let mut kept = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&kept)?;
    kept.write_all(&last)?;
    file.set_len(0)?;
    Ok(Some(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_within_bounds_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(trim(&log, 8).unwrap(), None, "there is none");
        let mut writer = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        writer.write_all(b"01234567").unwrap();
        assert_eq!(trim(&log, 8).unwrap(), None);
        writer.write_all(b"89").unwrap();
        assert_eq!(trim(&log, 8).unwrap(), Some(6));
        writer.write_all(b"ab").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"ab", "the writer goes on at the start");
        assert_eq!(fs::read(dir.path().join("log.1")).unwrap(), b"6789");
    }

    #[test]
    fn what_a_task_is_told_fits_the_kind() {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(&dir.path().join("t"), true).unwrap();
        assert!(Fifos::make(&dir.path().join("t"), true).is_err(), "the directory is another's");
        let in_dir = |name: &str| dir.path().join("t").join(name).display().to_string();
        for (stdio, uris, terminal) in [
            (Stdio::Null, [String::new(), String::new(), String::new()], false),
            (Stdio::Log("/l".into()), [String::new(), "file:///l".into(), "file:///l".into()], false),
            (Stdio::Fifos(fifos.clone()), [in_dir("stdin"), in_dir("stdout"), String::new()], true),
        ] {
            assert_eq!((stdio.uris(), stdio.terminal()), (uris, terminal), "{stdio:?}");
        }
        fifos.remove().unwrap();
        assert!(!fifos.dir.exists());
    }
}
