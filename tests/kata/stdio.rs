//! A process's stdio: FIFOs of the caller on one side, pipes or a terminal on the other, copied by threads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::pty::openpty;

/// What Create or Exec asked for; empty where there is none.
#[derive(Clone, Default)]
pub struct Paths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The workload's stdin, open.
type Sink = Box<dyn Write + Send>;

/// When the caller's FIFO ended, and the workload's stdin, which is closed by CloseIO alone.
pub struct Input {
    ended: Sender<Sink>,
    end: Option<Receiver<Sink>>,
}

impl Input {
    /// Of a process that is yet to start.
    pub fn new(paths: &Paths) -> Self {
        let (ended, end) = channel();
        Self { ended, end: (!paths.stdin.is_empty()).then_some(end) }
    }

    /// §3: waits until the FIFO's writers are gone, then closes the workload's stdin.
    pub fn close(&mut self) {
        drop(self.end.take().map(|end| end.recv()));
    }
}

/// Stdio that a process is about to be started on.
pub struct Stdios {
    paths: Paths,
    /// Our end of the terminal, where there is one.
    pub terminal: Option<File>,
}

impl Stdios {
    /// Puts them on `command`.
    pub fn put_on(command: &mut Command, paths: &Paths) -> io::Result<Self> {
        let mut terminal = None;
        if paths.terminal {
            let pty = openpty(None, None)?;
            let end = || pty.slave.try_clone();
            command.stdin(end()?).stdout(end()?).stderr(end()?);
            terminal = Some(File::from(pty.master));
        } else {
            let pipe = |path: &str| if path.is_empty() { Stdio::null() } else { Stdio::piped() };
            command.stdin(pipe(&paths.stdin)).stdout(pipe(&paths.stdout)).stderr(pipe(&paths.stderr));
        }
        Ok(Self { paths: paths.clone(), terminal })
    }

    /// Copies between the started process and the FIFOs; gives the threads that end with its output.
    pub fn connect(&self, child: &mut Child, input: &Input) -> io::Result<Vec<JoinHandle<()>>> {
        let mut outputs: Vec<JoinHandle<()>> = Vec::new();
        let mut sink: Option<Sink> = child.stdin.take().map(|stdin| Box::new(stdin) as Sink);
        if let Some(terminal) = &self.terminal {
            sink = Some(Box::new(terminal.try_clone()?));
            outputs.push(copy_out(terminal.try_clone()?, &self.paths.stdout));
        }
        outputs.extend(child.stdout.take().map(|stdout| copy_out(stdout, &self.paths.stdout)));
        outputs.extend(child.stderr.take().map(|stderr| copy_out(stderr, &self.paths.stderr)));
        if let Some(mut sink) = sink
            && !self.paths.stdin.is_empty()
        {
            let (path, ended) = (self.paths.stdin.clone(), input.ended.clone());
            std::thread::spawn(move || {
                let _ = File::open(path).and_then(|mut fifo| io::copy(&mut fifo, &mut sink));
                let _ = ended.send(sink);
            });
        }
        Ok(outputs)
    }
}

fn copy_out(mut from: impl Read + Send + 'static, path: &str) -> JoinHandle<()> {
    let path = path.to_owned();
    std::thread::spawn(move || {
        let to = match path.strip_prefix("file://") {
            Some(file) => File::options().create(true).append(true).open(file),
            // For reading too: so it opens at once, and a reader that is late misses nothing.
            None => File::options().read(true).write(true).open(path),
        };
        let _ = to.and_then(|mut to| io::copy(&mut from, &mut to));
    })
}
