//! One more process in a running sandbox, with somebody at its other end: FIFOs, which its shim opens, and we carry. Its end, or that
//! of whoever asked for it, ends both. And the output of the sandbox's own command, from its log, until that ends.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use trust::id::SandboxId;

use crate::channels::{Frame, STDIN, Size};
use crate::containerd::stdio::Fifos;
use crate::idle::InUse;
use crate::logs::Position;
use crate::making::fresh_id;
use crate::ports::Ports;
use crate::running::{self, Command, RunError};
use crate::sandbox::{Phase, Sandbox};
use crate::shim::{Exec, Process, Shim, ShimError};

/// A process may run for as long as it likes.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A log that grows is looked at so often.
const LOOK: Duration = Duration::from_millis(5);
/// Whether its sandbox is there still is asked once for so many looks …
const PRESENT: u32 = 200;
/// … and from then on, while nothing comes, the next look is so many times later.
const QUIET: u32 = 10;
/// What is carried at once, in bytes.
const PART: usize = 32 << 10;

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It waits for a claim, or has ended.
    #[error("sandbox {0} does not run: claim it, or spawn another")]
    NotRunning(SandboxId),
    /// What is to run?
    #[error("name a command")]
    NoCommand,
    /// The sandbox does not run it.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The FIFOs.
    #[error("the process's input and output")]
    Io(#[from] io::Error),
}

impl From<ShimError> for ExecError {
    fn from(error: ShimError) -> Self {
        Self::Run(error.into())
    }
}

/// A process that runs, and its ends. Dropped, the process is killed and nothing of it is left.
pub struct Session {
    shim: Shim,
    id: String,
    exec: Guard,
    ends: Ends,
    _in_use: InUse,
}

/// Where the process's bytes come and go.
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
}

/// Takes an exec away, however its session ends.
struct Guard {
    shim: Shim,
    id: String,
    exec: String,
    fifos: Fifos,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (shim, id, exec, ended) = (self.shim.clone(), self.id.clone(), self.exec.clone(), self.ended);
        if let Err(error) = self.fifos.remove() {
            tracing::warn!(%error, "FIFOs are left");
        }
        tokio::spawn(async move {
            let process = Process { id: &id, exec: &exec };
            if !ended {
                let _ = shim.kill(process, Signal::SIGKILL as u32, false).await; // it may have ended by now
                let _ = shim.wait(process, Duration::from_secs(5)).await;
            }
            if let Err(error) = shim.delete(process).await {
                tracing::debug!(%error, sandbox = id, "an exec is left to its sandbox's end");
            }
        });
    }
}

impl Session {
    /// Runs a command in a sandbox.
    pub async fn start(
        ports: &Ports,
        sandbox: &Sandbox,
        command: &Command,
        terminal: bool,
        stdin: bool,
    ) -> Result<Self, ExecError> {
        if sandbox.phase != Phase::Running {
            return Err(ExecError::NotRunning(sandbox.id.clone()));
        }
        if command.args.is_empty() {
            return Err(ExecError::NoCommand);
        }
        let in_use = ports.sessions.begin(&sandbox.id);
        let spec = running::process(&running::config(ports, &sandbox.id)?, command, terminal)?;
        let shim = ports.shim(&sandbox.id).await?;
        let exec = fresh_id("exec").map_err(|e| io::Error::other(e.to_string()))?.to_string();
        let all = ports.root.run().join("io");
        std::fs::create_dir_all(&all)?;
        let fifos = Fifos::make(&all.join(&exec), terminal)?;
        let id = sandbox.id.to_string();
        let mut guard = Guard { shim: shim.clone(), id: id.clone(), exec: exec.clone(), fifos, ended: true };
        let [input, output, errors] = guard.fifos.paths();
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let input = input.filter(|_| stdin);
        let process = Process { id: &id, exec: &exec };
        let (stdin, stdout, stderr) = (text(&input), text(&output), text(&errors));
        shim.exec(&Exec { process, spec: &spec, stdin: &stdin, stdout: &stdout, stderr: &stderr, terminal }).await?;
        guard.ended = false;
        // Both ends open theirs at once: each open waits for the other, but for stdin, which nobody reads where the process has ended already.
        let opened = async {
            let stdin = input.as_ref().map(|path| pipe::OpenOptions::new().read_write(true).open_sender(path));
            let stdin = stdin.transpose()?;
            let stdout = match &output {
                Some(path) => pipe::Receiver::from_file(open(path).await?)?,
                None => return Err(io::Error::other("no stdout")),
            };
            let stderr = match &errors {
                Some(path) => Some(pipe::Receiver::from_file(open(path).await?)?),
                None => None,
            };
            Ok(Ends { stdin, stdout, stderr })
        };
        let (started, ends) = tokio::join!(shim.start(process), async {
            tokio::time::timeout(Duration::from_secs(10), opened)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        if let Err(error) = started {
            guard.ended = true;
            return Err(error.into());
        }
        Ok(Self { shim, id, exec: guard, ends: ends?, _in_use: in_use })
    }

    /// Carries both ways until the process has ended and all that it wrote is told. Gives its exit code, or 128 + the signal.
    pub async fn run(self, from: mpsc::Receiver<Frame>, to: mpsc::Sender<Frame>) -> Result<u32, ExecError> {
        let Self { shim, id, mut exec, ends, _in_use } = self;
        let name = exec.exec.clone();
        let process = Process { id: &id, exec: &name };
        let Ends { stdin, stdout, stderr } = ends;
        let input = carry_in(&shim, process, stdin, from);
        let output = async {
            let errors = async {
                if let Some(stderr) = stderr {
                    carry_out(stderr, &to, Frame::Stderr).await;
                }
            };
            tokio::join!(carry_out(stdout, &to, Frame::Stdout), errors);
        };
        let ended = async {
            let (exit, ()) = tokio::join!(shim.wait(process, LIFE), output);
            exit
        };
        let exit = tokio::select! {
            exit = ended => exit?,
            () = input => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
        };
        exec.ended = true;
        Ok(exit.status)
    }
}

/// Opens a FIFO to read when it is opened to write.
async fn open(path: &Path) -> io::Result<std::fs::File> {
    let path = path.to_owned();
    // Without O_NONBLOCK it waits; what is read later must not.
    tokio::task::spawn_blocking(move || std::fs::File::open(path)).await.map_err(io::Error::other)?
}

async fn carry_out(mut from: pipe::Receiver, to: &mpsc::Sender<Frame>, wrap: fn(Bytes) -> Frame) {
    let mut part = vec![0; PART];
    while let Ok(length @ 1..) = from.read(&mut part).await {
        if to.send(wrap(Bytes::copy_from_slice(&part[..length]))).await.is_err() {
            return;
        }
    }
}

/// Ends only when the client is gone.
async fn carry_in(shim: &Shim, process: Process<'_>, mut stdin: Option<pipe::Sender>, mut from: mpsc::Receiver<Frame>) {
    while let Some(heard) = from.recv().await {
        match heard {
            Frame::Stdin(bytes) => {
                if let Some(open) = &mut stdin
                    && open.write_all(&bytes).await.is_err()
                {
                    stdin = None; // the process reads no more
                }
            }
            Frame::Close(STDIN) => {
                stdin = None;
                if let Err(error) = shim.close_io(process).await {
                    tracing::debug!(%error, "the end of input is not told");
                }
            }
            Frame::Resize(Size { width, height }) => {
                if let Err(error) = shim.resize_pty(process, width, height).await {
                    tracing::debug!(%error, "the terminal keeps its size");
                }
            }
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::End(_) | Frame::Close(_) => {} // not a client's to say
        }
    }
}

/// The sandbox's own output from `position` on, until its command has ended; gives the exit code. Also of one that has ended since.
pub async fn attached<T: Send + 'static>(
    ports: &Ports,
    id: &SandboxId,
    mut position: Position,
    to: mpsc::Sender<T>,
    wrap: fn(Bytes) -> T,
) -> Result<u32, ExecError> {
    let mut looks = 0;
    loop {
        let exit = ports.exits.of(id); // before the look at the log: what it wrote last is there then
        let (logs, log) = (ports.logs.clone(), id.clone());
        let read = tokio::task::spawn_blocking(move || logs.next(&log, &mut position).map(|part| (part, position)));
        let part;
        (part, position) = read.await.map_err(io::Error::other)??;
        if !part.is_empty() {
            looks = 0;
            if to.send(wrap(part.into())).await.is_err() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
            continue;
        }
        if let Some(status) = exit {
            return Ok(status);
        }
        // An agent that was restarted meanwhile may not have heard of the end.
        looks += 1;
        if looks % PRESENT == 0
            && ports.store.sandbox(id).await.is_ok_and(|found| found.is_none())
            && ports.exits.of(id).is_none()
        {
            return Err(ExecError::NotRunning(id.clone()));
        }
        let pause = if looks < PRESENT { LOOK } else { LOOK * QUIET };
        tokio::select! {
            () = to.closed() => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
