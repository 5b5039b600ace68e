//! One way of a flow: bytes from one socket to the other.
//!
//! A quiet way keeps nothing but what the other end has not taken: the buffer is the thread's, not the flow's. One that carries
//! much gets a pipe, through which the kernel moves pages without copying them (splice(2)). Not here: what may pass (`filter`).

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::refusal::Refusal;

/// How much is read at once, in bytes.
const CHUNK: usize = 128 * 1024;
/// How much is carried before a way gets a pipe, in bytes: most flows end before.
const BULK: u64 = 1024 * 1024;
/// How much a pipe holds, in bytes. What a user's pipes may hold together is bounded (pipe(7)); with less they are slower, not wrong.
const PIPE: usize = 512 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// One way.
#[derive(Debug, Default)]
pub struct Way {
    /// What was read and has not gone on.
    held: Vec<u8>,
    /// How much of that may.
    cleared: usize,
    pipe: Pipe,
    /// Whether the source has said all.
    ended: bool,
    /// Whether the target was told so.
    told: bool,
    /// Bytes that went on.
    carried: u64,
}

/// What much goes through.
#[derive(Debug, Default)]
enum Pipe {
    /// Not needed yet.
    #[default]
    None,
    /// There could be none.
    Refused,
    Open {
        out: OwnedFd,
        into: OwnedFd,
        /// Bytes in it.
        filled: usize,
    },
}

/// What may pass, and what is to be known of it.
pub trait Sieve {
    /// How many of these bytes may go on now; the rest is shown again, with more behind it.
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refusal>;
    /// The source has said all, and this is what did not pass.
    fn ended(&mut self, rest: &[u8]) -> Result<(), Refusal>;
    /// Whether it no longer looks at what passes.
    fn is_free(&self) -> bool;
    /// Whether nothing passes for now, so that nothing need be read.
    fn is_shut(&self) -> bool;
}

/// Why a way stops before its end.
#[derive(Debug)]
pub enum Stop {
    /// One of the sockets is broken. Which, and how, changes nothing: both are reset.
    Broken,
    /// The sieve refuses what was said.
    Refused(Refusal),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Way {
    /// Bytes that went on.
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// Whether something is held that may not go on as it is.
    pub fn holds_back(&self) -> bool {
        self.held.len() > self.cleared
    }

    /// Reads once, and holds what it reads. Returns whether the sieve has let something through, or the source has ended.
    pub fn listen(&mut self, from: &TcpStream, sieve: &mut impl Sieve) -> Result<bool, Stop> {
        let read = BUFFER.with_borrow_mut(|buffer| {
            let read = from.try_read(buffer)?;
            self.held.extend_from_slice(&buffer[..read]);
            Ok(read)
        });
        if would_block(read)? == Some(0) {
            self.end(sieve)?;
        }
        self.cleared += sieve.pass(&self.held[self.cleared..])?;
        Ok(self.ended || self.cleared > 0)
    }

    /// Carries on until there is nothing to do now. Ready once the source has said all, and the target was told so.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        sieve: &mut impl Sieve,
    ) -> Poll<Result<(), Stop>> {
        if self.told {
            return Poll::Ready(Ok(()));
        }
        // What was held back may pass by now.
        if self.holds_back() && !sieve.is_shut() {
            self.cleared += sieve.pass(&self.held[self.cleared..])?;
        }
        loop {
            ready!(self.poll_flush(cx, to))?;
            if self.ended && !self.holds_back() {
                SockRef::from(to).shutdown(Shutdown::Write)?;
                self.told = true;
                return Poll::Ready(Ok(()));
            }
            if self.ended || sieve.is_shut() {
                return Poll::Pending; // woken with the other way, on which it depends
            }
            if self.carried >= BULK && sieve.is_free() && matches!(self.pipe, Pipe::None) {
                self.pipe = Pipe::new();
            }
            ready!(from.poll_read_ready(cx))?;
            let read = match &mut self.pipe {
                Pipe::Open { into, filled, .. } => would_block(from.try_io(Interest::READABLE, || {
                    *filled = splice_some(from, into.as_fd(), PIPE)?;
                    Ok(*filled)
                }))?,
                Pipe::None | Pipe::Refused => self.copy(from, to, sieve)?,
            };
            if read == Some(0) {
                self.end(sieve)?;
            }
        }
    }

    /// Reads once; writes what may pass as far as the target takes it, and holds the rest. Holds nothing that may pass before.
    fn copy(&mut self, from: &TcpStream, to: &TcpStream, sieve: &mut impl Sieve) -> Result<Option<usize>, Stop> {
        BUFFER.with_borrow_mut(|buffer| {
            let Some(read) = would_block(from.try_read(buffer))? else { return Ok(None) };
            let bytes = &buffer[..read];
            if self.holds_back() {
                self.held.extend_from_slice(bytes);
                self.cleared += sieve.pass(&self.held[self.cleared..])?;
                return Ok(Some(read));
            }
            let passed = sieve.pass(bytes)?;
            let mut written = 0;
            while written < passed {
                match would_block(to.try_write(&bytes[written..passed]))? {
                    Some(some) => written += some,
                    None => break,
                }
            }
            self.carried += written as u64;
            self.cleared = passed - written;
            self.held.extend_from_slice(&bytes[written..]);
            Ok(Some(read))
        })
    }

    /// Ready when the target has taken all that may go on.
    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<Result<(), Stop>> {
        while self.cleared > 0 {
            ready!(to.poll_write_ready(cx))?;
            if let Some(written) = would_block(to.try_write(&self.held[..self.cleared]))? {
                self.held.drain(..written);
                self.cleared -= written;
                self.carried += written as u64;
            }
        }
        if self.held.is_empty() {
            self.held = Vec::new(); // an idle flow keeps no buffer
        }
        if let Pipe::Open { out, filled, .. } = &mut self.pipe {
            while *filled > 0 {
                ready!(to.poll_write_ready(cx))?;
                let written = to.try_io(Interest::WRITABLE, || splice_some(out.as_fd(), to, *filled));
                if let Some(written) = would_block(written)? {
                    *filled -= written;
                    self.carried += written as u64;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, sieve: &mut impl Sieve) -> Result<(), Stop> {
        self.ended = true;
        match sieve.is_shut() {
            true => Ok(()),
            false => Ok(sieve.ended(&self.held[self.cleared..])?),
        }
    }
}

impl Pipe {
    fn new() -> Self {
        match pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
            Ok((out, into)) => {
                // Where the kernel gives less, less goes through at once.
                let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
                Self::Open { out, into, filled: 0 }
            }
            Err(error) => {
                tracing::debug!(%error, "no pipe for a flow, which is copied instead");
                Self::Refused
            }
        }
    }
}

/// splice(2), without waiting. The pipe is empty when it is filled, so that a refusal speaks of the socket.
fn splice_some(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(from, None, to, None, most, flags).map_err(io::Error::from)
}

/// None where it would have had to wait.
fn would_block(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
