//! Programs that a test runs: their output is read while they run, and none runs for ever.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, poll, wait_until};

/// What a program that has ended said.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status; 128 + n where signal n ended it.
    pub status: i32,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Its stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stdout; the test fails where the program did.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.text()
    }
}

/// A running program.
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: [Stream; 2],
}

struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn read(source: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let reader = source.map(|mut source| {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(n @ 1..) = source.read(&mut buffer) {
                    sink.lock().unwrap().extend_from_slice(&buffer[..n]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Running {
    /// Starts `command` with pipes on all three descriptors.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::start_as_is(command)
    }

    /// Starts `command` with the descriptors that the caller gave it.
    #[track_caller]
    pub fn start_as_is(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {what}: {error}"));
        let stdin = child.stdin.take();
        let output = [Stream::read(child.stdout.take()), Stream::read(child.stderr.take())];
        Self { what, child, stdin, output }
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output[0].so_far()).into_owned()
    }

    /// Writes to its stdin.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("its stdin is open").write_all(bytes).expect("it reads its stdin");
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has written `text` to stdout.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let seen = poll(|| self.stdout().contains(text).then_some(()));
        assert!(seen.is_some(), "no {text:?} from {}: {:?} {:?}", self.what, self.stdout(), self.stderr());
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output[1].so_far()).into_owned()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; the test fails where it does not come.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        use std::os::unix::process::ExitStatusExt;
        let ended = poll(|| self.child.try_wait().unwrap());
        let Some(status) = ended else {
            let (out, err) = (self.stdout(), self.stderr());
            panic!("{} still runs after {} s; so far: {out:?} {err:?}", self.what, PATIENCE.as_secs());
        };
        for stream in &mut self.output {
            if let Some(reader) = stream.reader.take() {
                wait_until("the end of a dead program's output", || reader.is_finished());
                reader.join().unwrap();
            }
        }
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Finished { status, stdout: self.output[0].so_far(), stderr: self.stderr() }
    }

    /// Closes its stdin, then waits for its end.
    #[track_caller]
    pub fn finish_without_input(mut self) -> Finished {
        self.close_stdin();
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // does nothing where it has been waited for
        let _ = self.child.wait();
    }
}
