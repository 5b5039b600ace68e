//! creto-hold: the first process of a sandbox that waits to be claimed, and of one that was. It does nothing but be there: it
//! buries whatever is left to it, and ends with status 0 when it is told to. What was claimed is executed beside it.
//!
//! With words behind its name it is asked something about the sandbox that it is executed in, and ends with status 0 where that is so
//! ([`probe`]): `creto-hold tcp PORT`, `creto-hold file PATH`.
//!
//! It is put into images of which nothing is known, so it is linked statically, and it is multiplied by the sandboxes of a node,
//! so it waits without waking, takes no memory while it does, and is a crate of its own that needs little:
//! `cargo rustc --locked --release -p creto-hold -- -C target-feature=+crt-static`.
#![forbid(unsafe_code)]

mod probe;

use std::env;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> ExitCode {
    let asked: Vec<_> = env::args_os().skip(1).collect();
    if !asked.is_empty() {
        return probe::answer(&asked);
    }
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => ExitCode::from(u8::try_from(errno as i32).unwrap_or(u8::MAX)), // nobody reads what it could say
    }
}

/// Until SIGTERM, or SIGINT.
fn hold() -> Result<(), Errno> {
    // Blocked, they wait for us: the first process of a container is not ended by a signal that it has no answer to.
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    loop {
        match awaited.wait()? {
            Signal::SIGCHLD => bury()?,
            _ => return Ok(()),
        }
    }
}

/// Several may have ended by the time of one signal.
fn bury() -> Result<(), Errno> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Err(error) if error != Errno::EINTR => return Err(error),
            _ => {}
        }
    }
}
