//! Starts the worker, gives it its sockets and its orders, and starts it again when it ends. A sandbox that was bound is bound
//! in the next worker too.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::names::KeptNames;
use super::sockets::Sockets;
use crate::protocol::SandboxKey;
use crate::worker::Attempt;
use crate::worker::authz::setup::Setup;
use crate::worker::control::{Bind, Busy, Notice, Order, Settings};

/// How long an order may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between the starts of a worker that keeps ending: from this, doubled each time, to at most [`SLOWEST`].
const AGAIN: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(5);
/// One that has served for so long has not failed to start.
const SETTLED: Duration = Duration::from_secs(10);
/// How often the names that changed are kept.
const KEEP: Duration = Duration::from_secs(1);
/// Orders that wait.
const ORDERS: usize = 256;

/// How a worker is started.
pub struct Start {
    /// The program: this one.
    pub program: PathBuf,
    /// Whether it logs what it does.
    pub debug: bool,
    /// What it serves with.
    pub settings: Settings,
    /// What it listens on.
    pub sockets: Sockets,
    /// Which synthetic addresses were in use before.
    pub names: KeptNames,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There is no worker, or it ended, or it is silent.
    #[error("the worker of creto-egress does not answer; its log says why")]
    Silent,
    /// It said no.
    #[error("the worker of creto-egress: {0}")]
    Refused(String),
}

/// How the worker is.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its metrics, as OpenMetrics text.
    pub metrics: String,
    /// The sandboxes that it does something for.
    pub busy: Vec<Busy>,
}

/// The worker, whichever runs.
#[derive(Clone)]
pub struct Worker {
    orders: mpsc::Sender<Asked>,
}

/// An order, before it has a number.
enum Given {
    Bind(Bind),
    Unbind(SandboxKey),
    Revoke(SandboxKey),
    Authz(Box<Setup>),
    Report,
}

/// What the keeper is asked.
enum Asked {
    Order(Given, oneshot::Sender<Result<Report, WorkerError>>),
    End(oneshot::Sender<()>),
}

impl Worker {
    /// Keeps a worker running for as long as this lives. What sandboxes try is told to `attempts`, with how many more there were.
    pub fn keep(start: Start, attempts: mpsc::Sender<(Vec<Attempt>, u64)>) -> Self {
        let (orders, given) = mpsc::channel(ORDERS);
        let keeper = Keeper { start, attempts, bound: BTreeMap::new(), waiting: HashMap::new(), number: 0 };
        tokio::spawn(keeper.run(given));
        Self { orders }
    }

    /// Makes a sandbox known, or its new policy.
    pub async fn bind(&self, bind: Bind) -> Result<(), WorkerError> {
        self.order(Given::Bind(bind)).await.map(drop)
    }

    /// Ends all that is done for a sandbox.
    pub async fn unbind(&self, sandbox: &SandboxKey) -> Result<(), WorkerError> {
        self.order(Given::Unbind(sandbox.clone())).await.map(drop)
    }

    /// Ends what the decision point granted.
    pub async fn revoke(&self, sandbox: &SandboxKey) -> Result<(), WorkerError> {
        self.order(Given::Revoke(sandbox.clone())).await.map(drop)
    }

    /// Another decision point, or the same with other files; a bad one is refused and the old one stays.
    pub async fn set_authz(&self, setup: Setup) -> Result<(), WorkerError> {
        self.order(Given::Authz(Box::new(setup))).await.map(drop)
    }

    /// How it is.
    pub async fn report(&self) -> Result<Report, WorkerError> {
        self.order(Given::Report).await
    }

    /// Keeps what the next daemon must know, and ends the worker.
    pub async fn end(&self) {
        let (done, ended) = oneshot::channel();
        if self.orders.send(Asked::End(done)).await.is_ok() {
            let _ = timeout(DEADLINE, ended).await; // one that is just starting may not be there to end
        }
    }

    async fn order(&self, given: Given) -> Result<Report, WorkerError> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(Asked::Order(given, done)).await.ok()?;
            answer.await.ok()
        };
        timeout(DEADLINE, asked).await.ok().flatten().unwrap_or(Err(WorkerError::Silent))
    }
}

struct Keeper {
    start: Start,
    attempts: mpsc::Sender<(Vec<Attempt>, u64)>,
    /// For the next worker.
    bound: BTreeMap<SandboxKey, Bind>,
    waiting: HashMap<u64, oneshot::Sender<Result<Report, WorkerError>>>,
    number: u64,
}

struct Running {
    child: Child,
    write: OwnedWriteHalf,
    read: Lines<BufReader<OwnedReadHalf>>,
    since: Instant,
}

impl Keeper {
    async fn run(mut self, mut given: mpsc::Receiver<Asked>) {
        let mut pause = AGAIN;
        loop {
            let began = Instant::now();
            match self.start_one().await {
                Ok(running) => {
                    let since = running.since;
                    let why = self.serve(running, &mut given).await;
                    self.waiting.clear(); // each hears that it is silent
                    let Some(why) = why else { return }; // nobody gives orders any more
                    tracing::error!(why, "the worker has ended: names fail until the next one serves");
                    pause = if since.elapsed() > SETTLED { AGAIN } else { (pause * 2).min(SLOWEST) };
                }
                Err(error) => {
                    tracing::error!(%error, "the worker cannot be started");
                    pause = (pause * 2).min(SLOWEST);
                }
            }
            sleep_until(began + pause).await;
        }
    }

    async fn start_one(&mut self) -> io::Result<Running> {
        let (ours, theirs) = StdStream::pair()?;
        let child = Command::new(&self.start.program)
            .arg("worker")
            .args(self.start.debug.then_some("--debug"))
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .current_dir("/")
            .kill_on_drop(true)
            .spawn()?;
        let (counts, fds) = self.start.sockets.fds();
        sendmsg::<()>(
            ours.as_raw_fd(),
            &[IoSlice::new(&counts)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )?;
        ours.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        let read = BufReader::new(read).lines();
        let mut running = Running { child, write, read, since: Instant::now() };
        let ready = async {
            send(&mut running.write, &Order::Begin(Box::new(self.start.settings.clone()))).await?;
            match running.read.next_line().await?.as_deref().map(serde_json::from_str) {
                Some(Ok(Notice::Ready)) => {}
                other => return Err(io::Error::other(format!("it should be ready, and said {other:?}"))),
            }
            let given = self.start.names.all();
            send(&mut running.write, &Order::Names { number: 0, given }).await?;
            for bind in self.bound.values() {
                let bind = Bind { number: 0, ..bind.clone() };
                send(&mut running.write, &Order::Bind(bind)).await?;
            }
            Ok(())
        };
        timeout(DEADLINE, ready).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
        tracing::info!(pid = running.child.id(), sandboxes = self.bound.len(), "the worker serves");
        Ok(running)
    }

    /// Until it ends, and says why; or nothing, where no more orders can come.
    async fn serve(&mut self, mut running: Running, given: &mut mpsc::Receiver<Asked>) -> Option<String> {
        let mut keep = interval(KEEP);
        loop {
            let sent = tokio::select! {
                order = given.recv() => match order? {
                    Asked::Order(order, done) => self.send(&mut running.write, order, done).await,
                    Asked::End(done) => {
                        self.start.names.keep();
                        let _ = done.send(()); // it may have stopped waiting
                        return None;
                    }
                },
                _ = keep.tick() => {
                    self.start.names.keep();
                    Ok(())
                }
                line = running.read.next_line() => match line {
                    Ok(Some(line)) => self.heard(&line),
                    Ok(None) => Err(io::Error::other(format!("it closed its socket: {:?}", running.child.wait().await))),
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = sent {
                return Some(error.to_string());
            }
        }
    }

    async fn send(
        &mut self,
        write: &mut OwnedWriteHalf,
        given: Given,
        done: oneshot::Sender<Result<Report, WorkerError>>,
    ) -> io::Result<()> {
        self.number += 1;
        let number = self.number;
        self.waiting.insert(number, done);
        let order = match given {
            Given::Bind(bind) => {
                let bind = Bind { number, ..bind };
                self.bound.insert(bind.sandbox.clone(), bind.clone());
                Order::Bind(bind)
            }
            Given::Unbind(sandbox) => {
                self.bound.remove(&sandbox);
                self.start.names.forget(&sandbox);
                Order::Unbind { number, sandbox }
            }
            Given::Revoke(sandbox) => Order::Revoke { number, sandbox },
            Given::Authz(setup) => {
                self.start.settings.authz = (*setup).clone(); // the next worker's, too
                Order::Authz { number, setup }
            }
            Given::Report => Order::Report { number },
        };
        let sent = timeout(DEADLINE, send(write, &order)).await;
        sent.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    fn heard(&mut self, line: &str) -> io::Result<()> {
        let (number, result) = match serde_json::from_str(line)? {
            Notice::Ready => return Ok(()),
            Notice::Name(change) => {
                self.start.names.change(change);
                return Ok(());
            }
            Notice::Acknowledged { number, error: None } => (number, Ok(Report::default())),
            Notice::Acknowledged { number, error: Some(error) } => (number, Err(WorkerError::Refused(error))),
            Notice::Report { number, metrics, busy } => (number, Ok(Report { metrics, busy })),
            Notice::Attempts { attempts, lost } => {
                if let Err(error) = self.attempts.try_send((attempts, lost)) {
                    tracing::warn!(%error, "attempts are lost to the record");
                }
                return Ok(());
            }
        };
        if let Some(waiting) = self.waiting.remove(&number) {
            let _ = waiting.send(result); // it may have stopped waiting
        }
        Ok(())
    }
}

async fn send(write: &mut OwnedWriteHalf, order: &Order) -> io::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    write.write_all(&line).await
}
