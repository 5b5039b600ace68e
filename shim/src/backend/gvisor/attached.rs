//! Processes of a sandbox by runsc's command line: one runsc for each exec, attached to it as long as it runs, and one for
//! each container whose end is waited for. What is asked of them meanwhile is in `calls`.
//! Source: gVisor `runsc/cmd/exec.go`, `runsc/cmd/wait.go`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo, pipe2, read};
use serde::Deserialize;
use tokio::sync::watch;

use super::cli::{Runsc, not_run, said};
use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::task::{Exit, KILLED};
use crate::{reaper, sys};

/// A runsc that has not started its process by then is taken for hung; on a busy machine it takes a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// runsc's own failure; a process of the sandbox may end with it as well.
const FAILED: u32 = 128;
/// What runsc says of a wait is a line.
const MAX_REPLY: u64 = 4096;

/// A runsc that is attached to an exec.
#[derive(Clone, Debug)]
pub struct Attached {
    pid: i32,
    ended: watch::Receiver<Option<Ended>>,
}

#[derive(Clone, Debug)]
struct Ended {
    exit: Exit,
    /// Where it was runsc that failed.
    why: Option<String>,
}

impl Attached {
    /// Runs a process in a container; also its pid inside the sandbox. What passes between runsc and us goes through
    /// `scratch`, a directory that does not exist yet and is gone afterwards.
    pub async fn exec(
        runsc: &Runsc,
        cid: &str,
        process: &ExecProcess,
        pty: bool,
        fds: [OwnedFd; 3],
        scratch: &Path,
    ) -> Result<(i32, Self), TaskError> {
        let what = "runsc exec";
        let failed = |e: io::Error| TaskError::host(what, e);
        // The process's environment is in there.
        DirBuilder::new().mode(0o700).create(scratch).map_err(failed)?;
        let exec = async {
            let [spec, log, said] = ["process.json", "runsc.log", "pid"].map(|file| scratch.join(file));
            fs::write(&spec, spec_of(process, pty).map_err(|e| failed(e.into()))?).map_err(failed)?;
            mkfifo(&said, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed(e.into()))?;
            // With an end to write to as well: its reader waits, and runsc need not.
            let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let pid =
                open(&said, flags, Mode::empty()).map_err(io::Error::from).and_then(sys::watch).map_err(failed)?;
            let log_file = File::options().create(true).append(true).read(true).open(&log).map_err(failed)?;
            let mut command = runsc.command_logging(&log, &[], "exec");
            command.arg("--process").arg(&spec).arg("--internal-pid-file").arg(&said).arg(cid);
            let [stdin, stdout, stderr] = fds;
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            let mut attached = Self::spawn(command, log_file).map_err(|e| not_run(what, &e))?;
            let started = tokio::select! {
                biased;
                pid = inner_pid(&pid) => pid.map_err(|e| e.to_string()),
                ended = attached.end() => Err(ended.why.unwrap_or_else(|| format!("exit status {}", ended.exit.status))),
                () = tokio::time::sleep(PATIENCE) => Err(format!("nothing has run after {} s", PATIENCE.as_secs())),
            };
            if started.is_err() {
                attached.signal(Signal::SIGKILL as u32);
            }
            started.map(|pid| (pid, attached)).map_err(|why| TaskError::host(what, why))
        };
        let made = exec.await;
        let _ = fs::remove_dir_all(scratch); // runsc has read it, and its log stays open
        made
    }

    fn spawn(mut command: Command, mut log: File) -> io::Result<Self> {
        let pid = reaper::spawn(&mut command)?.id() as i32;
        drop(command); // and with it our copies of the process's descriptors
        let (sender, ended) = watch::channel(None);
        // Its end is heard whether or not anyone waits for it yet.
        tokio::spawn(async move {
            let exit = reaper::exit_of(pid).await;
            let mut text = Vec::new();
            let _ = log.read_to_end(&mut text);
            let why = if exit.status == FAILED { said(&text, &["error", "fatal"]) } else { None };
            sender.send_replace(Some(Ended { exit, why }));
        });
        Ok(Self { pid, ended })
    }

    async fn end(&mut self) -> Ended {
        let ended = self.ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        // The sender goes only after it has sent.
        ended.unwrap_or_else(|| Ended { exit: Exit { status: KILLED, at: std::time::SystemTime::now() }, why: None })
    }

    /// Resolves with the end of the process. A runsc that cannot say how it ended has lost the sandbox.
    pub async fn exit(mut self) -> Exit {
        let Ended { exit, why } = self.end().await;
        let Some(why) = why else { return exit };
        tracing::debug!(why, "no exit status from the sandbox");
        Exit { status: KILLED, ..exit }
    }

    /// Of a process with a terminal: runsc passes signals on to whoever is in the foreground there.
    pub fn signal(&self, signal: u32) {
        let signal = i32::try_from(signal).ok().and_then(|number| Signal::try_from(number).ok());
        if self.ended.borrow().is_none() {
            let _ = kill(Pid::from_raw(self.pid), signal); // already gone: fine
        }
    }
}

/// The process as runsc reads it. By what we understand of it, not as it came: the control socket is told no more, and both
/// ways must give a process the same.
fn spec_of(process: &ExecProcess, pty: bool) -> serde_json::Result<Vec<u8>> {
    let mut spec = serde_json::to_value(process)?;
    if let Some(members) = spec.as_object_mut() {
        members.insert("terminal".into(), pty.into());
    }
    serde_json::to_vec(&spec)
}

/// What runsc writes once the process runs. It writes a FIFO in place, in one piece.
async fn inner_pid(fifo: &tokio::io::unix::AsyncFd<OwnedFd>) -> io::Result<i32> {
    let mut text = [0; 16];
    let length = loop {
        let mut ready = fifo.readable().await?;
        match ready.try_io(|fd| Ok(read(fd.get_ref().as_fd(), &mut text)?)) {
            Ok(length) => break length?,
            Err(_would_block) => continue,
        }
    };
    let text = String::from_utf8_lossy(&text[..length]);
    text.trim().parse().map_err(|_| io::Error::other(format!("runsc says that the process's pid is {text:?}")))
}

/// `runsc wait`: the status of a container's init or of one process; 128 + signal where a signal ended it. `None` where
/// the sandbox cannot say any more.
pub async fn wait(runsc: &Runsc, cid: &str, pid: Option<i32>) -> io::Result<Option<u32>> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = runsc.command("wait");
    if let Some(pid) = pid {
        command.arg("--pid").arg(pid.to_string());
    }
    command.arg(cid).stdout(writer);
    let exit = reaper::run_to_end(&mut command).await?;
    drop(command); // the other writer: what is in the pipe now is all
    let mut text = Vec::new();
    File::from(reader).take(MAX_REPLY).read_to_end(&mut text)?;
    Ok(if exit.status == 0 { status(&text) } else { None })
}

fn status(text: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Reply {
        exit_status: u32,
    }
    serde_json::from_slice::<Reply>(text).ok().map(|reply| reply.exit_status)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::well_known_types::any::Any;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn runsc_is_told_of_a_process_what_the_control_socket_is_told() {
        let told = |spec: Value, pty| {
            let spec = Any { value: spec.to_string().into_bytes(), ..Default::default() };
            let text = spec_of(&ExecProcess::parse(&spec, None).unwrap(), pty).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()
        };
        let user = json!({"uid": 1, "gid": 2, "additionalGids": [3]});
        let capabilities =
            json!({"bounding": ["CAP_KILL"], "effective": [], "inheritable": [], "permitted": [], "ambient": []});
        let whole = json!({
            "args": ["a"], "env": ["B=c"], "cwd": "/", "user": user, "capabilities": capabilities,
            "noNewPrivileges": true, "terminal": true,
        });
        assert_eq!(told(whole.clone(), true), whole);
        // Whatever it says of its terminal, what counts is what it gets; and what it does not say is none, not the
        // container's.
        let bare = told(json!({"args": ["a"], "cwd": "/", "terminal": true}), false);
        assert_eq!((&bare["terminal"], &bare["noNewPrivileges"]), (&json!(false), &json!(false)));
        assert_eq!((&bare["capabilities"]["bounding"], &bare["user"]["uid"]), (&json!([]), &json!(0)));
    }

    #[test]
    fn what_runsc_says_of_a_wait_is_read() {
        assert_eq!(status(b"{\"id\":\"c\",\"exitStatus\":137}\n"), Some(137));
        for nonsense in [&b""[..], b"{}", b"{\"exitStatus\":-1}", b"\xff"] {
            assert_eq!(status(nonsense), None, "{nonsense:?}");
        }
    }
}
