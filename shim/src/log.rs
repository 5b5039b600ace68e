//! Where the shim's log lines go: the FIFO `log` in the bundle, which containerd copies into its own log. Without a
//! reader, or while it is slow, lines are lost; the shim never waits for its log.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing::Level;

/// Sends events to the bundle's FIFO and reports panics there. A missing FIFO means no log.
pub fn to_bundle(bundle: &Path, debug: bool) {
    // Read and write: with containerd away the pipe has still a reader, and no write ends in EPIPE.
    let fifo = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log"));
    if let Ok(fifo) = fifo {
        let level = if debug { Level::DEBUG } else { Level::INFO };
        tracing_subscriber::fmt().with_ansi(false).with_max_level(level).with_writer(Mutex::new(Lossy(fifo))).init();
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "the shim ends")));
}

struct Lossy(std::fs::File);

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.write(line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(line.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
