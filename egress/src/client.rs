//! Asks the daemon, over egress.sock. Blocking, for callers that have no runtime to spare; each question has a deadline, and
//! without an answer there is no fence.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::{Answer, Ask, Attach, Fence, MAX_LINE, Question, Refusal};

/// How long an answer may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "creto-egress does not answer at {path}: {error}; start it (systemctl start creto-egress) or give the sandbox no network"
    )]
    Down {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// It answered no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It stopped answering, or said something else.
    #[error("creto-egress gave no answer: {0}")]
    NoAnswer(String),
}

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects; `deadline` is for each answer from here on.
    pub fn connect(path: &Path, deadline: Duration) -> Result<Self, ClientError> {
        let down = |error| ClientError::Down { path: path.to_owned(), error };
        let stream = UnixStream::connect(path).map_err(down)?;
        let timed = stream.set_read_timeout(Some(deadline)).and_then(|()| stream.set_write_timeout(Some(deadline)));
        timed.map_err(down)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer. A refusal is an error.
    pub fn ask(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        let no = |error: &dyn std::fmt::Display| ClientError::NoAnswer(error.to_string());
        let line = Question::line(ask).map_err(|e| no(&e))?;
        self.stream.get_mut().write_all(&line).map_err(|e| no(&e))?;
        self.next()
    }

    /// Asks for a fence.
    pub fn attach(&mut self, attach: Attach) -> Result<Fence, ClientError> {
        self.fence(Ask::Attach(attach))
    }

    /// Asks what is answered with a fence.
    pub fn fence(&mut self, ask: Ask) -> Result<Fence, ClientError> {
        match self.ask(ask)? {
            Answer::Fence(fence) => Ok(fence),
            other => Err(ClientError::NoAnswer(format!("{other:?} instead of a fence"))),
        }
    }

    /// Asks what is answered with `done`.
    pub fn done(&mut self, ask: Ask) -> Result<(), ClientError> {
        match self.ask(ask)? {
            Answer::Done => Ok(()),
            other => Err(ClientError::NoAnswer(format!("{other:?} instead of done"))),
        }
    }

    fn next(&mut self) -> Result<Answer, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
        read.map_err(|e| ClientError::NoAnswer(e.to_string()))?;
        if line.last() != Some(&b'\n') {
            return Err(ClientError::NoAnswer("it closed the connection".into()));
        }
        match serde_json::from_slice(&line).map_err(|e| ClientError::NoAnswer(e.to_string()))? {
            Answer::Refused(refusal) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }
}
