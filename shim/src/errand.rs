//! A short-lived child of this very program that asks somebody something: what it takes to ask (HTTP/2, TLS) is in memory only
//! as long as it asks, for a node multiplies a shim's memory by its sandboxes. Question and answer are JSON, on the child's stdin
//! and stdout. Not here: what is asked (`image`, `identity`).

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::reaper;

/// This program, also where its file has been replaced or removed since.
const SELF: &str = "/proc/self/exe";
/// No answer is longer, in bytes; a pipe holds as much, so that a child never waits for us to read.
const LONGEST: usize = 64 << 10;

/// A child that is asking.
pub struct Errand {
    pid: i32,
    answer: OwnedFd,
    reaped: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The child could not be started, or told.
    #[error("asking: {0}")]
    Start(#[source] std::io::Error),
    /// It took too long, and was killed.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It died, or said what makes no sense.
    #[error("the child that asks ended with status {0}")]
    Died(u32),
    /// It was told why not.
    #[error("{0}")]
    Refused(String),
}

impl Errand {
    /// Sends a child out with a question; `action` is what [`crate::args`] knows it by. It has no stderr: what it has to say is
    /// its answer.
    pub fn start(action: &str, question: &impl Serialize) -> Result<Self, NoAnswer> {
        let mut command = Command::new(SELF);
        command.arg0(format!("creto-{action}")).arg(action);
        Self::send(command, question)
    }

    fn send(mut command: Command, question: &impl Serialize) -> Result<Self, NoAnswer> {
        let question = serde_json::to_vec(question).map_err(|e| NoAnswer::Start(e.into()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = reaper::spawn(&mut command).map_err(NoAnswer::Start)?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(NoAnswer::Start(std::io::Error::other("it has no pipes")));
        };
        let errand = Self { pid: child.id() as i32, answer: stdout.into(), reaped: false };
        match stdin.write_all(&question) {
            // A pipe has room for it; a child that has died already is told by its status.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(NoAnswer::Start(error)),
            _ => Ok(errand),
        }
    }

    /// What it brings back, within this time from now.
    pub async fn answer<A: DeserializeOwned>(mut self, patience: Duration) -> Result<A, NoAnswer> {
        let answer = self.answer.try_clone().and_then(pipe::Receiver::from_owned_fd).map_err(NoAnswer::Start)?;
        let (mut text, pid) = (Vec::new(), self.pid);
        let heard = async {
            let read = answer.take(LONGEST as u64).read_to_end(&mut text).await;
            (read, reaper::exit_of(pid).await)
        };
        let (read, exit) = tokio::time::timeout(patience, heard).await.map_err(|_| NoAnswer::Late(patience))?;
        self.reaped = true;
        read.map_err(NoAnswer::Start)?;
        match serde_json::from_slice::<Result<A, String>>(&text) {
            Ok(answer) if exit.status == 0 => answer.map_err(NoAnswer::Refused),
            _ => Err(NoAnswer::Died(exit.status)),
        }
    }
}

impl Drop for Errand {
    /// Nobody wants the answer any more.
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// The child's side: reads the question, and prints what `ask` finds out within this time; for whoever sent it may be gone.
pub fn run<Q, A, E>(
    ask: impl AsyncFnOnce(Q) -> Result<A, E>,
    patience: Duration,
) -> Result<(), Box<dyn std::error::Error>>
where
    Q: DeserializeOwned,
    A: Serialize,
    E: std::fmt::Display,
{
    let mut question = Vec::new();
    std::io::stdin().take(LONGEST as u64).read_to_end(&mut question)?;
    let question: Q = serde_json::from_slice(&question)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(patience, ask(question)).await });
    let answer: Result<A, String> = match answer {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {patience:?}")),
    };
    std::io::stdout().write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_is_what_the_child_prints_and_a_child_without_one_is_an_error() {
        let _alone = reaper::ALONE.lock().await;
        let reaping = tokio::spawn(reaper::run());
        for (script, patience, expected) in [
            ("read question; echo \"{\\\"Ok\\\": $question}\"", 60_000, Ok("who?")),
            ("echo '{\"Err\": \"nobody\"}'", 60_000, Err("nobody")),
            ("echo '{\"Ok\": \"x\"}'; exit 7", 60_000, Err("status 7")),
            ("echo x", 60_000, Err("status 0")),
            ("kill -9 $$", 60_000, Err("status 137")),
            ("exec sleep 1000", 1, Err("no answer within 1ms")),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let errand = Errand::send(command, &"who?");
            let said = match errand {
                Ok(errand) => errand.answer::<String>(Duration::from_millis(patience)).await,
                Err(error) => Err(error),
            };
            match (said, expected) {
                (Ok(said), Ok(expected)) => assert_eq!(said, expected),
                (Err(said), Err(expected)) => assert!(said.to_string().contains(expected), "{script}: {said}"),
                (said, expected) => panic!("{script}: {said:?}, expected {expected:?}"),
            }
        }
        reaping.abort();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_whose_answer_nobody_wants_does_not_go_on() {
        let _alone = reaper::ALONE.lock().await;
        let reaping = tokio::spawn(reaper::run());
        let mut command = Command::new("sleep");
        command.arg("1000");
        let errand = Errand::send(command, &()).unwrap();
        let pid = errand.pid;
        drop(errand);
        assert_eq!(reaper::exit_of(pid).await.status, 137);
        reaping.abort();
    }
}
