//! Exits of child processes, by pid. Those that come before anyone asks are kept, for a process may die before its
//! pid is known here. As subreaper we also inherit sandboxes, whose starter has gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::task::Exit;

/// How many unclaimed exits are kept; grandchildren that nobody waits for would else pile up.
const KEPT: usize = 1024;

#[derive(Default)]
struct Table {
    waiting: HashMap<i32, Vec<oneshot::Sender<Exit>>>,
    early: Vec<(i32, Exit)>,
}

thread_local! {
    // The shim is single-threaded: one table, no lock.
    static TABLE: RefCell<Table> = RefCell::default();
}

/// Reaps for ever; spawned once, before the first child.
pub async fn run() -> io::Result<()> {
    let mut child = signal(SignalKind::child())?;
    loop {
        reap();
        child.recv().await;
    }
}

fn reap() {
    loop {
        let (pid, status) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code as u32),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as u32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Err(Errno::EINTR) | Ok(_) => continue,
            Err(error) => return tracing::error!(%error, "waitpid failed"),
        };
        let exit = Exit { status, at: SystemTime::now() };
        TABLE.with_borrow_mut(|table| match table.waiting.remove(&pid) {
            Some(waiters) => {
                for waiter in waiters {
                    let _ = waiter.send(exit); // nobody waits any more: fine
                }
            }
            None => {
                if table.early.len() == KEPT {
                    table.early.remove(0);
                }
                table.early.push((pid, exit));
            }
        });
    }
}

/// Resolves when the process with this pid has been reaped, also if that was before the call.
pub async fn exit_of(pid: i32) -> Exit {
    let receiver = TABLE.with_borrow_mut(|table| {
        if let Some(at) = table.early.iter().position(|(early, _)| *early == pid) {
            return Err(table.early.remove(at).1);
        }
        let (sender, receiver) = oneshot::channel();
        table.waiting.entry(pid).or_default().push(sender);
        Ok(receiver)
    });
    match receiver {
        Err(exit) => exit,
        // The table lives as long as its thread, so the sender is dropped only with the runtime.
        Ok(receiver) => receiver.await.unwrap_or(Exit { status: 255, at: SystemTime::now() }),
    }
}

/// Starts a command whose end `exit_of` is asked for.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let child = command.spawn()?;
    // An exit that is kept under its pid is another process's, which had the pid before: nothing was reaped since.
    TABLE.with_borrow_mut(|table| table.early.retain(|(pid, _)| *pid != child.id() as i32));
    Ok(child)
}

/// Runs a command to its end.
pub async fn run_to_end(command: &mut Command) -> io::Result<Exit> {
    let pid = spawn(command)?.id() as i32;
    Ok(exit_of(pid).await)
}

/// Tests share one process, and a reaper takes every child of it: those that reap run one at a time.
#[cfg(test)]
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_exit_is_heard_whether_asked_for_before_or_after() {
        let _alone = ALONE.lock().await;
        let reaping = tokio::spawn(run());
        assert_eq!(run_to_end(Command::new("sh").args(["-c", "exit 7"])).await.unwrap().status, 7);
        assert_eq!(run_to_end(Command::new("sh").args(["-c", "kill -9 $$"])).await.unwrap().status, 137);
        reaping.abort();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pid_that_was_another_ones_before_does_not_end_with_it() {
        let _alone = ALONE.lock().await;
        let reaping = tokio::spawn(run());
        let before = Command::new("true").spawn().unwrap().id() as i32;
        let stale = Exit { status: 99, at: SystemTime::now() };
        TABLE.with_borrow_mut(|table| table.early.extend((before + 1..before + 1000).map(|pid| (pid, stale))));
        assert_eq!(run_to_end(&mut Command::new("true")).await.unwrap().status, 0);
        reaping.abort();
    }
}
