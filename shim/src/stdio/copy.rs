//! Bytes from one descriptor to another, where the shim must stand in between (a terminal, stdin).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::sys;

/// Where bytes go.
#[derive(Clone)]
pub enum Sink {
    /// A FIFO, pipe or terminal.
    Stream(Arc<AsyncFd<OwnedFd>>),
    /// A terminal that is nobody's controlling terminal on the host: what a key would signal is said here instead.
    Terminal(Arc<AsyncFd<OwnedFd>>, UnboundedSender<Signal>),
    /// A regular file, which is always ready and cannot be polled.
    File(Arc<OwnedFd>),
}

impl Sink {
    /// A sink that never makes the shim's one thread wait.
    pub fn stream(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd, true)?;
        Ok(Self::Stream(Arc::new(sys::watch(fd)?)))
    }

    async fn write_all(&self, mut rest: &[u8]) -> io::Result<()> {
        if let Self::Terminal(primary, signals) = self {
            for signal in typed_signals(primary.get_ref(), rest) {
                let _ = signals.send(signal); // nobody listens any more: the process has ended
            }
        }
        while !rest.is_empty() {
            let written = match self {
                Self::File(file) => unistd::write(file.as_fd(), rest)?,
                Self::Stream(stream) | Self::Terminal(stream, _) => {
                    let mut guard = stream.writable().await?;
                    match guard.try_io(|fd| Ok(unistd::write(fd.get_ref().as_fd(), rest)?)) {
                        Ok(written) => written?,
                        Err(_would_block) => continue,
                    }
                }
            };
            rest = &rest[written..];
        }
        Ok(())
    }
}

/// The signals of typed bytes, if the terminal is in a mode in which keys are signals (termios(3), ISIG).
fn typed_signals(terminal: &OwnedFd, typed: &[u8]) -> Vec<Signal> {
    let Ok(mode) = tcgetattr(terminal) else { return Vec::new() };
    if !mode.local_flags.contains(LocalFlags::ISIG) {
        return Vec::new();
    }
    let key = |at: SpecialCharacterIndices| mode.control_chars[at as usize];
    let keys = [
        (key(SpecialCharacterIndices::VINTR), Signal::SIGINT),
        (key(SpecialCharacterIndices::VQUIT), Signal::SIGQUIT),
        (key(SpecialCharacterIndices::VSUSP), Signal::SIGTSTP),
    ];
    let signal = |byte: &u8| keys.iter().find(|(key, _)| key == byte && *key != 0).map(|(_, signal)| *signal);
    typed.iter().filter_map(signal).collect()
}

/// Whether reads and writes of this descriptor wait. gVisor shows the flag to the process inside, so what a workload
/// gets must wait, as workloads expect.
pub fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Copies until the source ends. Where `ended` is given, an empty source after it was notified is the end too.
pub async fn copy(from: &AsyncFd<OwnedFd>, to: &Sink, ended: Option<&Notify>) -> io::Result<()> {
    let mut buffer = vec![0; 8 << 10];
    let mut over = false;
    loop {
        let n = if over {
            match unistd::read(from.get_ref().as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => n,
            }
        } else {
            let end = async {
                match ended {
                    Some(ended) => ended.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = from.readable() => {
                    match ready?.try_io(|fd| Ok(unistd::read(fd.get_ref().as_fd(), &mut buffer)?)) {
                        Ok(Ok(0)) => return Ok(()),
                        Ok(read) => read?,
                        Err(_would_block) => continue,
                    }
                }
                () = end => {
                    over = true;
                    continue;
                }
            }
        };
        to.write_all(&buffer[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_signals_only_where_the_terminal_says_so() {
        let pair = nix::pty::openpty(None, None).unwrap();
        assert_eq!(typed_signals(&pair.master, b"a\x03b\x1c"), [Signal::SIGINT, Signal::SIGQUIT]);
        let mut raw = tcgetattr(&pair.slave).unwrap();
        raw.local_flags.remove(LocalFlags::ISIG);
        nix::sys::termios::tcsetattr(&pair.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
        assert_eq!(typed_signals(&pair.master, b"a\x03"), []);
    }
}
