//! Whether a member that runs is ready: its probe is asked, again and again, until it is met, the member ends or its time is over.
//!
//! All probes are asked from inside, by one more process of the sandbox that its shim runs: the fence lets nothing in, and files may be in the
//! sandbox's memory alone (gVisor's overlay). The program of `exec` is the image's; of images nothing is known, so `tcp` and `file` are asked
//! by the holder, which is mounted for that ([`crate::making::First`]). Not here: what becomes of a member that is not ready.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use trust::id::SandboxId;

use crate::error::SpawnError;
use crate::making::fresh_id;
use crate::pool::template::{Probe, Readiness};
use crate::ports::Ports;
use crate::running::{self, Command};
use crate::shim::{Exec, Process, Shim, ShimError};
use crate::spawn::HOLDER;
use crate::spec::BadSpec;

/// So much of what was written last is told, in bytes.
const TOLD: u64 = 1024;
/// What is executed for nothing may take so long: the node may be busy.
const REHEARSAL: Duration = Duration::from_secs(30);
/// A probe's process that was killed is gone within.
const KILLED: Duration = Duration::from_secs(5);

/// What came of asking once.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It is ready.
    Met,
    /// Not yet, and what it said.
    Not(String),
    /// It never will be.
    Ended(u32),
}

/// Returns when the member is ready; without a probe that is as soon as it runs.
pub async fn wait(ports: &Ports, id: &SandboxId, readiness: Option<&Readiness>) -> Result<(), SpawnError> {
    let Some(readiness) = readiness else {
        return match ports.exits.of(id) {
            Some(status) => Err(SpawnError::NotReady(told(&ended(status), &last_of(ports, id)))),
            None => Ok(()),
        };
    };
    let asker = Asker::new(ports, id, &readiness.probe)?;
    match until_met(readiness, &asker).await {
        Ok(()) => Ok(()),
        Err(why) => Err(SpawnError::NotReady(told(&why, &last_of(ports, id)))),
    }
}

/// Has a member that is held execute something, as a claim will: the first process beside a sandbox's own costs twice what a later one
/// does, and that is paid here, not by whoever claims. One in which nothing can be executed is not ready.
pub async fn rehearse(ports: &Ports, id: &SandboxId) -> Result<(), SpawnError> {
    let not_ready = |why: String| SpawnError::NotReady(told(&why, &last_of(ports, id)));
    let root = "/".parse().map_err(|e: BadSpec| not_ready(e.to_string()))?;
    match Asker::new(ports, id, &Probe::File(root))?.ask(REHEARSAL).await {
        Answer::Met => Ok(()),
        Answer::Not(said) => Err(not_ready(format!("nothing can be executed in it: {said}"))),
        Answer::Ended(status) => Err(not_ready(ended(status))),
    }
}

/// Of a member that runs no more.
pub fn ended(status: u32) -> String {
    format!("it has ended with {status} before anybody claimed it")
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Ready,
    /// It is asked again, after the interval.
    Again,
    /// It is given up, and why.
    Over(String),
}

/// After an answer that came so long after the first question was asked.
fn then(readiness: &Readiness, elapsed: Duration, answer: Answer) -> Then {
    match answer {
        Answer::Met => Then::Ready,
        Answer::Ended(status) => Then::Over(ended(status)),
        Answer::Not(_) if elapsed + readiness.interval < readiness.deadline => Then::Again,
        Answer::Not(said) => {
            let (probe, deadline) = (&readiness.probe, humantime::format_duration(readiness.deadline));
            Then::Over(format!("its probe ({probe}) was not met within {deadline}; it said last: {said}"))
        }
    }
}

/// Asks until it is met. Why not, else.
async fn until_met(readiness: &Readiness, asker: &Asker<'_>) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let answer = asker.ask(readiness.timeout.min(readiness.deadline.saturating_sub(began.elapsed()))).await;
        match then(readiness, began.elapsed(), answer) {
            Then::Ready => return Ok(()),
            Then::Over(why) => return Err(why),
            Then::Again => tokio::time::sleep(readiness.interval).await,
        }
    }
}

/// What a member is asked by.
struct Asker<'a> {
    ports: &'a Ports,
    id: &'a SandboxId,
    spec: Value,
    /// Where the probe's process writes.
    output: PathBuf,
}

impl<'a> Asker<'a> {
    fn new(ports: &'a Ports, id: &'a SandboxId, probe: &Probe) -> Result<Self, SpawnError> {
        let word = |text: &str| text.to_owned();
        let args = match probe {
            Probe::Exec(command) => command.clone(),
            Probe::Tcp(port) => vec![word(HOLDER), word("tcp"), port.to_string()],
            Probe::File(path) => vec![word(HOLDER), word("file"), path.to_string()],
        };
        let failed = |e: String| SpawnError::NotReady(format!("its probe cannot be asked: {e}"));
        let config = running::config(ports, id).map_err(|e| failed(e.to_string()))?;
        let spec = running::process(&config, &Command { args, ..Command::default() }, false);
        let dir = ports.root.run().join("io");
        std::fs::create_dir_all(&dir).map_err(|e| failed(format!("{}: {e}", dir.display())))?;
        let output = dir.join(format!("{id}.probe"));
        Ok(Self { ports, id, spec: spec.map_err(|e| failed(e.to_string()))?, output })
    }

    async fn ask(&self, patience: Duration) -> Answer {
        if let Some(status) = self.ports.exits.of(self.id) {
            return Answer::Ended(status);
        }
        match self.run(patience).await {
            Ok(0) => Answer::Met,
            Ok(status) => Answer::Not(told(&format!("status {status}"), &last(&self.output))),
            Err(ShimError::Late(_)) => {
                let said = format!("no answer within {}", humantime::format_duration(patience));
                Answer::Not(told(&said, &last(&self.output)))
            }
            Err(error) => Answer::Not(error.to_string()),
        }
    }

    /// One more process in the sandbox, to its end or its time's. Nothing of it is left.
    async fn run(&self, patience: Duration) -> Result<u32, ShimError> {
        let shim = self.ports.shim(self.id).await?;
        let exec = fresh_id("probe").map_err(|e| ShimError::Failed(e.to_string()))?.to_string();
        let id = self.id.to_string();
        let process = Process { id: &id, exec: &exec };
        let _ = std::fs::remove_file(&self.output); // of the question before
        let output = format!("file://{}", self.output.display());
        let asked = Exec { process, spec: &self.spec, stdin: "", stdout: &output, stderr: &output, terminal: false };
        shim.exec(&asked).await?;
        let ended = async {
            shim.start(process).await?;
            shim.wait(process, patience).await
        };
        let ended = ended.await;
        if ended.is_err() {
            kill(&shim, process).await;
        }
        if let Err(error) = shim.delete(process).await {
            tracing::debug!(sandbox = id, %error, "a probe's process is left to its sandbox's end");
        }
        ended.map(|exit| exit.status)
    }
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.output); // it is not there where nothing ran
    }
}

async fn kill(shim: &Shim, process: Process<'_>) {
    let _ = shim.kill(process, Signal::SIGKILL as u32, false).await; // it may not have started, or have ended by now
    let _ = shim.wait(process, KILLED).await;
}

/// The end of the member's own output, for people.
fn last_of(ports: &Ports, id: &SandboxId) -> String {
    match last(&ports.log(id)) {
        said if said.is_empty() => said,
        said => format!("the sandbox has written last: {said}"),
    }
}

/// The end of a file; nothing where it cannot be read.
fn last(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TOLD)))?;
        let mut end = Vec::new();
        file.take(TOLD).read_to_end(&mut end)?;
        Ok(end)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

fn told(what: &str, said: &str) -> String {
    if said.is_empty() { what.to_owned() } else { format!("{what}; {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_asked_until_it_is_met_the_member_ends_or_its_time_is_over() {
        let (interval, deadline) = (Duration::from_secs(1), Duration::from_secs(10));
        let readiness = Readiness { interval, deadline, ..Readiness::of(Probe::Tcp(80.try_into().unwrap())) };
        let not = || Answer::Not("connection refused".into());
        let never = "its probe (tcp 80) was not met within 10s; it said last: connection refused";
        let ended = "it has ended with 7 before anybody claimed it";
        for (seconds, answer, expected) in [
            (0, Answer::Met, Then::Ready),
            (11, Answer::Met, Then::Ready),
            (0, not(), Then::Again),
            (8, not(), Then::Again),
            (9, not(), Then::Over(never.into())), // it would be asked when its time is over
            (60, not(), Then::Over(never.into())),
            (1, Answer::Ended(7), Then::Over(ended.into())),
        ] {
            assert_eq!(then(&readiness, Duration::from_secs(seconds), answer), expected, "after {seconds} s");
        }
    }

    #[test]
    fn of_what_was_written_the_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(told("x", &last(&path)), "x", "nothing was written");
        std::fs::write(&path, format!("{}the end\n", "a".repeat(5000))).unwrap();
        let end = last(&path);
        assert!(end.len() < 1024 && end.ends_with("athe end"), "{end}");
        assert_eq!(told("status 1", "no"), "status 1; no");
    }
}
