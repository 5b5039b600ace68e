//! Where a process's bytes go: the stdio kinds of shim v2. FIFOs and files are handed to the sandbox as they are, so
//! nothing is copied and neither a restart of containerd nor a busy shim can lose a byte; a terminal is copied.

mod binary;
pub mod console;
mod fifo;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use binary::Logger;

/// The four stdio fields of Create and Exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// FIFO path; empty for none.
    pub stdin: String,
    /// FIFO path, `file://…`, `binary://…`; empty for none.
    pub stdout: String,
    /// As stdout; empty with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// What the sandbox gets as descriptors 0, 1 and 2.
pub struct Child {
    /// stdin, stdout, stderr.
    pub fds: [OwnedFd; 3],
}

/// What the shim holds as long as the process lives.
#[derive(Default)]
pub struct Held {
    stdin: Option<OwnedFd>,
    writers: Vec<OwnedFd>,
    readers: Vec<OwnedFd>,
    logger: Option<Logger>,
}

impl Held {
    /// CloseIO: after this, stdin ends when the client has closed its end.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The process has ended: readers may see the end of its output. What nobody has read yet is kept until the
    /// process is deleted.
    pub fn finish_output(&mut self) {
        self.stdin = None;
        self.writers.clear();
        if let Some(logger) = self.logger.take() {
            logger.finish();
        }
    }
}

/// Opens the three streams of a process without a terminal.
pub async fn open(request: &Request, namespace: &str, id: &str) -> io::Result<(Child, Held)> {
    let mut held = Held::default();
    let stdin = match request.stdin.as_str() {
        "" => null()?,
        path => {
            let ends = fifo::open(Path::new(path))?;
            held.stdin = Some(ends.writer);
            // Our reader must not stay: bytes would wait for it after the process has ended.
            fifo::blocking(ends.reader)?
        }
    };
    let (stdout, stderr) = match binary::uri(&request.stdout) {
        Some(uri) => {
            let (logger, stdout, stderr) = Logger::start(&uri, namespace, id).await?;
            held.logger = Some(logger);
            (stdout, stderr)
        }
        None => (output(&request.stdout, &mut held)?, output(&request.stderr, &mut held)?),
    };
    Ok((Child { fds: [stdin, stdout, stderr] }, held))
}

fn output(uri: &str, held: &mut Held) -> io::Result<OwnedFd> {
    if uri.is_empty() {
        return null();
    }
    if let Some(path) = uri.strip_prefix("file://") {
        let path = Path::new(path.split('?').next().unwrap_or(path));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        return Ok(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.into());
    }
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    if path.contains("://") {
        let text = format!("stdio {uri:?}: use a FIFO's path, file://PATH or binary://PROGRAM");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let ends = fifo::open(Path::new(path))?;
    let child = fifo::blocking(fifo::open_writer(Path::new(path))?)?;
    held.writers.push(ends.writer);
    held.readers.push(ends.reader);
    Ok(child)
}

fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}
