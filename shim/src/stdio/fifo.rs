//! Named pipes. The shim holds both ends of every output, so that with containerd away neither an EPIPE nor a lost
//! buffer can happen; opening both ends at once also never waits for the other side.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Both ends of one FIFO.
pub struct Ends {
    /// Non-blocking read end.
    pub reader: OwnedFd,
    /// Non-blocking write end.
    pub writer: OwnedFd,
}

/// Opens both ends; an error names the path, and anything but a FIFO is refused.
pub fn open(path: &Path) -> io::Result<Ends> {
    if !std::fs::metadata(path).map_err(|e| named(path, e))?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a FIFO", path.display())));
    }
    // The reader first: a writer without one is refused (ENXIO) in non-blocking mode.
    Ok(Ends { reader: open_reader(path)?, writer: open_writer(path)? })
}

/// A read end, non-blocking.
pub fn open_reader(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| named(path, e))?.into())
}

/// One more write end, of an open file description of its own: the sandbox changes flags on what it gets.
pub fn open_writer(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| named(path, e))?.into())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
