//! Typed calls over a sandbox's control socket. Source: gVisor `runsc/boot/controller.go`, `pkg/sentry/control/proc.go`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::urpc::{CallError, PROMPT, call};
use crate::exec::ExecProcess;

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

    /// Starts a process in a container; returns its pid inside the sandbox.
    pub async fn exec(&self, cid: &str, p: &ExecProcess, pty: bool, fds: &[OwnedFd; 3]) -> Result<i32, CallError> {
        let method = "containerManager.ExecuteAsync";
        let capabilities = p
            .capabilities
            .masks()
            .map_err(|name| CallError::Nonsense { method, why: format!("{name:?} is no capability") })?;
        let arg = json!({
            "filename": "", "argv": p.args, "envv": p.env, "wd": p.cwd, "KUID": p.user.uid, "KGID": p.user.gid,
            "ExtraKGIDs": p.user.additional_gids, "Capabilities": capabilities,
            "NoNewPrivileges": p.no_new_privileges, "StdioIsPty": pty, "ContainerID": cid, "GuestFDs": [0, 1, 2],
        });
        let fds = [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()];
        call(&self.0, method, arg, &fds, Some(PROMPT)).await
    }

    /// Waits for an exec; the result is 128 + signal where a signal ended it.
    pub async fn wait_pid(&self, cid: &str, pid: i32) -> Result<u32, CallError> {
        let arg = json!({"PID": pid, "CID": cid});
        call(&self.0, "containerManager.WaitPID", arg, &[], None).await.map(exit_status)
    }

    /// Waits for a container's init.
    pub async fn wait(&self, cid: &str) -> Result<u32, CallError> {
        call(&self.0, "containerManager.Wait", cid, &[], None).await.map(exit_status)
    }

    /// Signals one process or all of a container. Modes: gVisor `SignalDeliveryMode`.
    pub async fn signal(&self, cid: &str, target: Target, signal: u32) -> Result<(), CallError> {
        let (pid, mode) = match target {
            Target::Init => (0, 0),
            Target::All => (0, 1),
            Target::Process(pid) => (pid, 0),
            Target::Foreground(pid) => (pid, 2),
        };
        let arg = json!({"CID": cid, "Signo": signal, "PID": pid, "Mode": mode});
        call::<_, serde_json::Value>(&self.0, "containerManager.Signal", arg, &[], Some(PROMPT)).await.map(drop)
    }

    /// Freezes or thaws the whole sandbox.
    pub async fn pause(&self, pause: bool) -> Result<(), CallError> {
        let method = if pause { "containerManager.Pause" } else { "containerManager.Resume" };
        call::<_, serde_json::Value>(&self.0, method, json!({}), &[], Some(PROMPT)).await.map(drop)
    }
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
