//! Typed calls over a sandbox's control socket. Source: gVisor `runsc/boot/controller.go`, `pkg/sentry/control/proc.go`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::urpc::{CallError, MISFIT, PROMPT, call};
use crate::exec::ExecProcess;

const EXEC: &str = "containerManager.ExecuteAsync";
const WAIT_PID: &str = "containerManager.WaitPID";
const WAIT: &str = "containerManager.Wait";
const SIGNAL: &str = "containerManager.Signal";
const PAUSE: &str = "containerManager.Pause";
const RESUME: &str = "containerManager.Resume";

/// One sandbox's control socket.
#[derive(Clone, Debug)]
pub struct Control(PathBuf);

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The container's init.
    Init,
    /// Every process of the container.
    All,
    /// One process, by its pid inside the sandbox.
    Process(i32),
    /// Those that the terminal of this process is with.
    Foreground(i32),
}

impl Control {
    /// Does not connect yet.
    pub fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// Asks everything of a container that is not there, so that nothing happens: a build that can says so, another says
    /// that it knows no such method or takes something else. Ok is the first method that it cannot, and why.
    pub async fn lacks(&self) -> Result<Option<(&'static str, String)>, CallError> {
        let nobody = "nobody";
        let nothing = ExecProcess { args: vec![nobody.into()], ..ExecProcess::default() };
        let questions = [
            (EXEC, exec_arg(nobody, &nothing, false).map_err(|why| CallError::Nonsense { method: EXEC, why })?),
            (WAIT_PID, wait_pid_arg(nobody, 1)),
            (WAIT, json!(nobody)),
            (SIGNAL, signal_arg(nobody, Target::Process(i32::MAX), 1)),
        ];
        for (method, arg) in questions {
            match call::<_, Value>(&self.0, method, arg, &[], Some(PROMPT)).await {
                Err(CallError::Refused(_)) => {}
                Err(CallError::Unable { method, why } | CallError::Nonsense { method, why }) => {
                    return Ok(Some((method, why)));
                }
                Err(error) => return Err(error),
                Ok(_) => return Ok(Some((method, "it does so for a container that is not there".into()))),
            }
        }
        // These take nothing and name no container. Whoever knows them refuses an argument of another type.
        for method in [PAUSE, RESUME] {
            match call::<_, Value>(&self.0, method, true, &[], Some(PROMPT)).await {
                Err(CallError::Unable { why, .. }) if why.starts_with(MISFIT) => {}
                Err(CallError::Unable { method, why } | CallError::Nonsense { method, why }) => {
                    return Ok(Some((method, why)));
                }
                Err(CallError::Refused(why)) => return Ok(Some((method, why))),
                Err(error) => return Err(error),
                Ok(_) => return Ok(Some((method, "it takes anything".into()))),
            }
        }
        Ok(None)
    }

    /// Starts a process in a container; returns its pid inside the sandbox.
    pub async fn exec(&self, cid: &str, p: &ExecProcess, pty: bool, fds: &[OwnedFd; 3]) -> Result<i32, CallError> {
        let arg = exec_arg(cid, p, pty).map_err(|why| CallError::Nonsense { method: EXEC, why })?;
        let fds = [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()];
        call(&self.0, EXEC, arg, &fds, Some(PROMPT)).await
    }

    /// Waits for an exec; the result is 128 + signal where a signal ended it.
    pub async fn wait_pid(&self, cid: &str, pid: i32) -> Result<u32, CallError> {
        call(&self.0, WAIT_PID, wait_pid_arg(cid, pid), &[], None).await.map(exit_status)
    }

    /// Waits for a container's init.
    pub async fn wait(&self, cid: &str) -> Result<u32, CallError> {
        call(&self.0, WAIT, cid, &[], None).await.map(exit_status)
    }

    /// Signals one process or all of a container.
    pub async fn signal(&self, cid: &str, target: Target, signal: u32) -> Result<(), CallError> {
        let arg = signal_arg(cid, target, signal);
        call::<_, Nothing>(&self.0, SIGNAL, arg, &[], Some(PROMPT)).await.map(drop)
    }

    /// Freezes or thaws the whole sandbox.
    pub async fn pause(&self, pause: bool) -> Result<(), CallError> {
        let method = if pause { PAUSE } else { RESUME };
        call::<_, Nothing>(&self.0, method, json!({}), &[], Some(PROMPT)).await.map(drop)
    }
}

/// The result of a method that has none: an empty object.
#[derive(Debug, Deserialize)]
struct Nothing {}

fn exec_arg(cid: &str, p: &ExecProcess, pty: bool) -> Result<Value, String> {
    let capabilities = p.capabilities.masks().map_err(|name| format!("{name:?} is no capability"))?;
    Ok(json!({
        "filename": "", "argv": p.args, "envv": p.env, "wd": p.cwd, "KUID": p.user.uid, "KGID": p.user.gid,
        "ExtraKGIDs": p.user.additional_gids, "Capabilities": capabilities,
        "NoNewPrivileges": p.no_new_privileges, "StdioIsPty": pty, "ContainerID": cid, "GuestFDs": [0, 1, 2],
    }))
}

fn wait_pid_arg(cid: &str, pid: i32) -> Value {
    json!({"PID": pid, "CID": cid})
}

/// Modes: gVisor `SignalDeliveryMode`.
fn signal_arg(cid: &str, target: Target, signal: u32) -> Value {
    let (pid, mode) = match target {
        Target::Init => (0, 0),
        Target::All => (0, 1),
        Target::Process(pid) => (pid, 0),
        Target::Foreground(pid) => (pid, 2),
    };
    json!({"CID": cid, "Signo": signal, "PID": pid, "Mode": mode})
}

/// A raw wait status (wait(2)) as a shell's exit status.
fn exit_status(raw: u32) -> u32 {
    match raw & 0x7f {
        0 => (raw >> 8) & 0xff,
        signal => 128 + signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_read_like_a_shells() {
        assert_eq!([0, 7 << 8, 9, 15].map(exit_status), [0, 7, 137, 143]);
    }
}
