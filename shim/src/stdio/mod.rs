//! Where a process's bytes go: the stdio kinds of shim v2. Output FIFOs and files are handed to the sandbox as they are,
//! so nothing is copied and neither a restart of containerd nor a busy shim can lose a byte; a terminal and stdin are
//! copied.

mod binary;
mod console;
mod console_socket;
mod copy;
mod fifo;
mod stdin;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{mkfifo, pipe2};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use binary::Logger;
use console::Console;
pub use console_socket::ConsoleSocket;
use copy::{Sink, set_nonblocking};
use stdin::Stdin;

/// The four stdio fields of Create and Exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// FIFO path; empty for none.
    pub stdin: String,
    /// FIFO path, `file://…`, `binary://…`; empty for none.
    pub stdout: String,
    /// As stdout; empty with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
    /// User and group that own the streams; root without.
    pub owner: Option<(u32, u32)>,
}

/// What the shim holds of a process's stdio as long as the process lives.
#[derive(Default)]
pub struct Io {
    stdin: Option<Stdin>,
    /// Both ends of every output FIFO: with containerd away there is neither an EPIPE nor a lost buffer.
    fifos: Vec<fifo::Ends>,
    logger: Option<Logger>,
    console: Option<Console>,
    typed: Option<UnboundedReceiver<Signal>>,
    /// Of a relayed input: as long as nobody has opened it, it must have a reader.
    relay: Option<OwnedFd>,
}

/// What nobody has read yet; kept until the process is deleted.
#[derive(Default)]
pub struct Unread(#[expect(dead_code, reason = "held, for a FIFO without any end loses its bytes")] Vec<fifo::Ended>);

impl Io {
    fn of(console: Console, request: &Request, keys: Option<UnboundedSender<Signal>>) -> Self {
        let stdin = (!request.stdin.is_empty()).then(|| Stdin::new(&request.stdin, console.input(keys)));
        Self { stdin, console: Some(console), ..Self::default() }
    }

    /// The process runs: its input flows.
    pub fn begin_input(&mut self) {
        if let Some(stdin) = &mut self.stdin
            && let Err(error) = stdin.begin()
        {
            tracing::warn!(%error, "stdin: the process reads its end");
        }
    }

    /// The signals that are typed at the terminal of an exec; nobody else would tell its foreground processes.
    pub fn typed_signals(&mut self) -> Option<UnboundedReceiver<Signal>> {
        self.typed.take()
    }

    /// Resolves when all input has gone to the process; at once where it has none.
    pub fn input_over(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let over = self.stdin.as_mut().and_then(Stdin::over);
        async move {
            if let Some(over) = over {
                let _ = over.await; // its sender goes with the copying
            }
        }
    }

    /// CloseIO.
    pub fn close_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.close();
        }
    }

    /// ResizePty; without a terminal there is nothing to resize.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(columns, rows))
    }

    /// The process has ended: the rest of its output goes out, then its readers may see the end.
    pub async fn finish(self) -> Unread {
        let Self { stdin, fifos, logger, console, typed: _, relay } = self;
        drop((stdin, relay));
        if let Some(console) = console {
            console.finish().await;
        }
        if let Some(logger) = logger {
            logger.finish();
        }
        for fifo in &fifos {
            fifo.drained().await;
        }
        Unread(fifos.into_iter().map(fifo::Ends::end).collect())
    }
}

/// Opens the stdio of a process; the descriptors are the sandbox's 0, 1 and 2.
pub async fn open(request: &Request, namespace: &str, id: &str) -> io::Result<([OwnedFd; 3], Io)> {
    if request.terminal {
        let waiting = open_terminal(request, namespace, id).await?;
        let (console, tty) = Console::open(waiting.output)?;
        let (keys, typed) = mpsc::unbounded_channel();
        let io = Io {
            logger: waiting.logger,
            fifos: waiting.fifos,
            typed: Some(typed),
            ..Io::of(console, request, Some(keys))
        };
        return Ok(([tty.try_clone()?, tty.try_clone()?, tty], io));
    }
    let mut io = Io::default();
    let (stdout, stderr) = match binary::uri(&request.stdout) {
        Some(uri) => {
            let (logger, stdout, stderr) = Logger::start(&uri, namespace, id).await?;
            io.logger = Some(logger);
            (Output::Pipe(stdout), Output::Pipe(stderr))
        }
        None => (output(&request.stdout, &mut io.fifos)?, output(&request.stderr, &mut io.fifos)?),
    };
    let stdin = match request.stdin.as_str() {
        "" => null()?,
        path => {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            io.stdin = Some(Stdin::new(path, Sink::stream(writer)?));
            reader
        }
    };
    let fds = [stdin, stdout.into_fd()?, stderr.into_fd()?];
    if let Some((user, group)) = request.owner {
        for fd in &fds {
            // Not the null device, nor a log file, which are not the workload's.
            if fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFIFO {
                fchown(fd, Some(user), Some(group))?;
            }
        }
    }
    Ok((fds, io))
}

/// The stdio of a process that another shim runs, which opens what the returned request names. Its input passes through
/// `input`, a FIFO of ours, so that it ends when the client's has, and a closing that waits for the end finds it. Of its
/// outputs we hold both ends beside it: with containerd away nothing is lost, whatever that shim does.
pub fn relayed(request: &Request, input: &Path) -> io::Result<(Request, Io)> {
    let mut io = Io::default();
    for uri in [&request.stdout, &request.stderr] {
        let path = uri.strip_prefix("fifo://").unwrap_or(uri);
        if !path.is_empty() && !path.contains("://") {
            io.fifos.push(fifo::open(Path::new(path))?);
        }
    }
    let mut theirs = request.clone();
    if !request.stdin.is_empty() {
        mkfifo(input, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let fifo::Ends { reader, writer, .. } = fifo::open(input)?;
        io.stdin = Some(Stdin::new(&request.stdin, Sink::stream(writer)?));
        io.relay = Some(reader);
        theirs.stdin = input.to_string_lossy().into_owned();
    }
    Ok((theirs, io))
}

/// The client's side of a terminal that is still to come.
pub struct Terminal {
    output: Option<Sink>,
    logger: Option<Logger>,
    fifos: Vec<fifo::Ends>,
}

impl Terminal {
    /// The terminal is here.
    pub fn over(self, primary: OwnedFd, request: &Request) -> io::Result<Io> {
        let Self { output, logger, fifos } = self;
        Ok(Io { logger, fifos, ..Io::of(Console::over(primary, output)?, request, None) })
    }
}

/// Opens the client's side of a terminal. Its stderr, which some clients name, is never opened: there is one stream.
pub async fn open_terminal(request: &Request, namespace: &str, id: &str) -> io::Result<Terminal> {
    let mut fifos = Vec::new();
    let (output, logger) = match binary::uri(&request.stdout) {
        Some(uri) => {
            let (logger, stdout, _) = Logger::start(&uri, namespace, id).await?;
            (Output::Pipe(stdout), Some(logger))
        }
        None => (output(&request.stdout, &mut fifos)?, None),
    };
    Ok(Terminal { output: output.into_sink()?, logger, fifos })
}

/// Where one output stream goes.
enum Output {
    Nowhere,
    Pipe(OwnedFd),
    File(OwnedFd),
}

impl Output {
    /// For the sandbox to write to.
    fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Nowhere => null(),
            Self::Pipe(fd) | Self::File(fd) => Ok(fd),
        }
    }

    /// For the shim to write to.
    fn into_sink(self) -> io::Result<Option<Sink>> {
        Ok(match self {
            Self::Nowhere => None,
            Self::Pipe(fd) => Some(Sink::stream(fd)?),
            Self::File(fd) => Some(Sink::File(Arc::new(fd))),
        })
    }
}

fn output(uri: &str, fifos: &mut Vec<fifo::Ends>) -> io::Result<Output> {
    if uri.is_empty() {
        return Ok(Output::Nowhere);
    }
    if let Some(path) = uri.strip_prefix("file://") {
        let path = Path::new(path.split('?').next().unwrap_or(path));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        return Ok(Output::File(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.into()));
    }
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    if path.contains("://") {
        let text = format!("stdio {uri:?}: use a FIFO's path, file://PATH or binary://PROGRAM");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    fifos.push(fifo::open(Path::new(path))?);
    let child = fifo::open_writer(Path::new(path))?;
    set_nonblocking(&child, false)?;
    Ok(Output::Pipe(child))
}

fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn input_that_was_closed_before_the_process_ran_still_arrives_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdin");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let request = Request { stdin: path.to_string_lossy().into_owned(), ..Request::default() };
        let (fds, mut io) = open(&request, "ns", "c1").await.unwrap();
        let client = std::thread::spawn(move || std::fs::write(path, "last words"));
        io.close_stdin();
        io.begin_input();
        let [stdin, ..] = fds;
        set_nonblocking(&stdin, true).unwrap();
        let (from, mut got) = (crate::sys::watch(stdin).unwrap(), Vec::new());
        let mut buffer = [0; 64];
        loop {
            let mut ready = from.readable().await.unwrap();
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref().as_fd(), &mut buffer)?)) {
                Ok(n) => match n.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&buffer[..n]),
                },
                Err(_would_block) => continue,
            }
        }
        client.join().unwrap().unwrap();
        assert_eq!(got, b"last words");
    }
}
