//! Named pipes. The shim holds both ends of every output, so that with containerd away neither an EPIPE nor a lost
//! buffer can happen; opening both ends at once also never waits for the other side.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::task::JoinHandle;

use crate::sys;

/// How often an ended process looks for a late client.
const LOOK: Duration = Duration::from_millis(20);
/// How long an exit waits for a client that does not read on.
const STALLED: Duration = Duration::from_secs(1);
/// How long for one that reads, while others write: what a process leaves behind in its container may have its output.
const TOO_LONG: Duration = Duration::from_secs(5);

/// Both ends of one FIFO.
pub struct Ends {
    /// Non-blocking read end.
    pub reader: OwnedFd,
    /// Non-blocking write end.
    pub writer: OwnedFd,
    path: PathBuf,
}

/// An output that has ended. As long as it is held, nothing in it is lost.
pub struct Ended {
    waiting: Option<JoinHandle<()>>,
    _unread: Option<OwnedFd>,
}

impl Ends {
    /// Resolves when the client has read what was written, or does not read on. containerd's client closes its end when
    /// it hears of the exit (`client/task.go`, Delete), so the exit must not overtake the output.
    pub async fn drained(&self) {
        let begun = Instant::now();
        let (mut least, mut since) = (usize::MAX, begun);
        while let Ok(unread @ 1..) = sys::unread(self.reader.as_fd()) {
            if unread < least {
                (least, since) = (unread, Instant::now());
            }
            if since.elapsed() > STALLED || begun.elapsed() > TOO_LONG {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Nothing more is written. A client that reads sees the end; one that has yet to open the FIFO (containerd opens it
    /// on a thread of its own, or is away) finds a writer, without which its open(2) would never return (fifo(7)).
    pub fn end(self) -> Ended {
        match self.end_if_read() {
            Ok(unread) => Ended { waiting: None, _unread: unread },
            Err(mut ends) => {
                let late = tokio::spawn(async move {
                    let _unread = loop {
                        tokio::time::sleep(LOOK).await;
                        match ends.end_if_read() {
                            Ok(unread) => break unread,
                            Err(still) => ends = still,
                        }
                    };
                    std::future::pending::<()>().await; // until the process is deleted
                });
                Ended { waiting: Some(late), _unread: None }
            }
        }
    }

    /// Gives up the writer if there is a reader beside ours; what is left keeps the bytes. `None`: the FIFO is gone.
    fn end_if_read(self) -> Result<Option<OwnedFd>, Self> {
        let Self { reader, writer, path } = self;
        drop(reader);
        let mut asked = [PollFd::new(writer.as_fd(), PollFlags::empty())];
        let polled = poll(&mut asked, PollTimeout::ZERO);
        // A writer without any reader is in error (poll(2)).
        let alone = polled.is_ok() && asked[0].revents().is_some_and(|e| e.contains(PollFlags::POLLERR));
        match (open_reader(&path), alone) {
            (Ok(reader), true) => Err(Self { reader, writer, path }),
            (reader, _) => Ok(reader.ok()),
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            waiting.abort();
        }
    }
}

/// Opens both ends; an error names the path, and anything but a FIFO is refused.
pub fn open(path: &Path) -> io::Result<Ends> {
    if !std::fs::metadata(path).map_err(|e| named(path, e))?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a FIFO", path.display())));
    }
    // The reader first: a writer without one is refused (ENXIO) in non-blocking mode.
    Ok(Ends { reader: open_reader(path)?, writer: open_writer(path)?, path: path.to_owned() })
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn opened() -> (tempfile::TempDir, PathBuf, Ends) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let ends = open(&path).unwrap();
        (dir, path, ends)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_opens_after_the_end_reads_all_and_the_end() {
        let (_dir, path, ends) = opened();
        nix::unistd::write(&ends.writer, b"last words").unwrap();
        let _held = ends.end();
        let late = tokio::task::spawn_blocking(move || {
            let mut got = String::new();
            std::fs::File::open(path).and_then(|mut fifo| fifo.read_to_string(&mut got)).map(|_| got)
        });
        assert_eq!(late.await.unwrap().unwrap(), "last words");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_waits_for_a_client_that_reads() {
        let (_dir, path, ends) = opened();
        nix::unistd::write(&ends.writer, b"last words").unwrap();
        let client = open_reader(&path).unwrap();
        let drained = tokio::spawn(async move { ends.drained().await });
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        assert_eq!(nix::unistd::read(&client, &mut [0; 64]), Ok(10));
        drained.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_reads_sees_the_end_at_once() {
        let (_dir, path, ends) = opened();
        let client = open_reader(&path).unwrap();
        let held = ends.end();
        assert!(held.waiting.is_none());
        assert_eq!(nix::unistd::read(&client, &mut [0; 8]), Ok(0));
    }
}
