//! Talks to the shim of a sandbox, over the socket on which containerd talks to it: what a claim and what runs in the sandbox
//! need goes by no other process. Two services stand there: `creto.sandbox.v1.Sandbox` (docs/sandbox.proto) and containerd's
//! `containerd.task.v3.Task`, of which this is the part that needs nothing of containerd's. Each call has a deadline.
//! Not here: which sandbox is claimed and by whom, images, networks; containers are made and removed through containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc::{self, Code, proto::Request};
use serde::Deserialize;
use trust::refusal::Cause;
use trust::sandbox_api::{
    Bound, DESCRIBE, DescribeRequest, Description, Message, Policy, REBIND, RebindRequest, SERVICE, UPDATE_POLICY,
    UpdatePolicyRequest,
};

/// For calls that a shim answers from what it knows.
const PROMPT: Duration = Duration::from_secs(5);
/// For calls that start or end processes of a sandbox.
const BUSY: Duration = Duration::from_secs(30);
/// For a claim: the shim asks the operator's secret providers (10 s each at most), and creto-egress (10 s).
const BIND: Duration = Duration::from_secs(60);
/// What the shim has beyond our own patience.
const MARGIN: Duration = Duration::from_secs(1);
const TASK: &str = "containerd.task.v3.Task";
/// What containerd's clients call the spec of an exec's process.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SCHEME: &str = "unix://";
/// A shim's file with its address is not longer, in bytes.
const LONGEST: u64 = 64 << 10;

/// Where a shim listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    /// A socket's path, with or without `unix://`.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        let path = text.strip_prefix(SCHEME).unwrap_or(text);
        match path.starts_with('/') && !path.contains(['\0', '\n']) {
            true => Ok(Self(path.into())),
            false => Err(BadAddress::NoSocket(text.chars().take(200).collect())),
        }
    }

    /// The address of a container's shim, from what containerd keeps of it under its `state` directory (`/run/containerd`):
    /// `bootstrap.json` (since 2.0) or `address`, in the container's bundle.
    pub fn of(state: &Path, namespace: &str, id: &str) -> Result<Self, BadAddress> {
        #[derive(Deserialize)]
        struct Bootstrap {
            address: String,
            #[serde(default)]
            protocol: String,
        }
        let bundle = state.join("io.containerd.runtime.v2.task").join(namespace).join(id);
        let read = |name: &str| {
            let path = bundle.join(name);
            match fs::metadata(&path) {
                Ok(found) if found.len() > LONGEST => {
                    Err(BadAddress::NoSocket(format!("{} is too long", path.display())))
                }
                _ => fs::read_to_string(&path).map_err(|source| BadAddress::Read { path, source }),
            }
        };
        if let Ok(text) = read("bootstrap.json") {
            let told: Bootstrap = serde_json::from_str(&text).map_err(|e| BadAddress::NoSocket(e.to_string()))?;
            return match told.protocol.as_str() {
                "" | "ttrpc" => Self::parse(&told.address),
                other => Err(BadAddress::Protocol(other.to_owned())),
            };
        }
        Self::parse(read("address")?.trim())
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Why it is not known where a shim listens.
#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    /// containerd has no such task, or is another version.
    #[error("no address of the sandbox's shim: {}: {source}", path.display())]
    Read {
        /// The last file that was looked for.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// What is written there names no socket.
    #[error("no address of the sandbox's shim: {0:?}")]
    NoSocket(String),
    /// It is another runtime's.
    #[error("the sandbox's shim speaks {0:?}: ours speaks ttrpc")]
    Protocol(String),
}

/// Why a shim has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Nobody answers: the sandbox has ended, or its shim was killed. Of a claim it is not known what became.
    #[error("the sandbox's shim does not answer at {}: {why}", path.display())]
    Gone {
        /// Where it was.
        path: PathBuf,
        /// What was heard last.
        why: String,
    },
    /// No answer in time. What was asked may still be done: a claim is asked for again under its own id.
    #[error("the sandbox's shim has not answered {0} in time")]
    Late(&'static str),
    /// For a cause that it says to programs, too. Nothing was changed.
    #[error("{message}")]
    Because {
        /// The cause.
        cause: Cause,
        /// For people.
        message: String,
    },
    /// No such sandbox, process or program.
    #[error("{0}")]
    NotFound(String),
    /// The exec's id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request makes no sense, and names what of it. Nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// The agent may not have the sandbox. Nothing was changed.
    #[error("{0}")]
    Rejected(String),
    /// Not now, or not this one: another claim has it, it is spoilt, it does not run.
    #[error("{0}")]
    Refused(String),
    /// The claim failed half-way: the sandbox has nothing of anybody's in it and is to be destroyed.
    #[error("{0}")]
    Spoilt(String),
    /// Somebody whom the shim needs does not answer. Nothing was changed.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else that went wrong, as the shim says it.
    #[error("{0}")]
    Failed(String),
}

/// A process of a container; an empty `exec` is the container's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process<'a> {
    /// The container.
    pub id: &'a str,
    /// The exec.
    pub exec: &'a str,
}

impl<'a> Process<'a> {
    /// The container's own.
    pub fn init(id: &'a str) -> Self {
        Self { id, exec: "" }
    }
}

/// A further process to be run in a container.
#[derive(Clone, Debug)]
pub struct Exec<'a> {
    /// Where, and under which name.
    pub process: Process<'a>,
    /// `process` of an OCI spec.
    pub spec: &'a serde_json::Value,
    /// A FIFO's path, or nothing.
    pub stdin: &'a str,
    /// A FIFO's path, a `file://` or `binary://` URI, or nothing.
    pub stdout: &'a str,
    /// The same; with a terminal it is nothing.
    pub stderr: &'a str,
    /// It gets a terminal.
    pub terminal: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, and not started.
    Created,
    /// It runs: its pid on the host.
    Running(u32),
    /// It is frozen.
    Paused(u32),
    /// It has ended.
    Stopped(Exit),
}

/// A connection to one sandbox's shim. Clones share it; calls do not wait for each other.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    path: PathBuf,
}

impl Shim {
    /// Connects.
    pub async fn connect(address: &Address) -> Result<Self, ShimError> {
        let path = address.path().to_owned();
        let text = format!("{SCHEME}{}", path.display());
        match tokio::time::timeout(PROMPT, Client::connect(&text)).await {
            Ok(Ok(client)) => Ok(Self { client, path }),
            Ok(Err(error)) => Err(ShimError::Gone { path, why: error.to_string() }),
            Err(_) => Err(ShimError::Gone { path, why: format!("it takes no connection within {PROMPT:?}") }),
        }
    }

    /// What the sandbox is now.
    pub async fn describe(&self, sandbox: &str) -> Result<Description, ShimError> {
        self.own(DESCRIBE, &DescribeRequest { sandbox: sandbox.to_owned() }, PROMPT).await
    }

    /// Hands the sandbox over. Under the same `claim_id` the answer is the same, however often it is asked for.
    pub async fn rebind(&self, request: &RebindRequest) -> Result<Bound, ShimError> {
        self.own(REBIND, request, BIND).await
    }

    /// Another network policy for the sandbox.
    pub async fn update_policy(&self, sandbox: &str, policy: Policy) -> Result<Bound, ShimError> {
        let request = UpdatePolicyRequest { sandbox: sandbox.to_owned(), policy: Some(policy) };
        self.own(UPDATE_POLICY, &request, BIND).await
    }

    /// Registers a further process; [`Shim::start`] runs it.
    pub async fn exec(&self, exec: &Exec<'_>) -> Result<(), ShimError> {
        let spec = Any { type_url: PROCESS.into(), value: exec.spec.to_string().into_bytes(), ..Default::default() };
        let request = api::ExecProcessRequest {
            id: exec.process.id.to_owned(),
            exec_id: exec.process.exec.to_owned(),
            terminal: exec.terminal,
            stdin: exec.stdin.to_owned(),
            stdout: exec.stdout.to_owned(),
            stderr: exec.stderr.to_owned(),
            spec: protobuf::MessageField::some(spec),
            ..Default::default()
        };
        self.task::<_, api::Empty>("Exec", &request, PROMPT).await.map(drop)
    }

    /// Runs a process. Returns its pid on the host.
    pub async fn start(&self, process: Process<'_>) -> Result<u32, ShimError> {
        let (id, exec_id) = names(process);
        let request = api::StartRequest { id, exec_id, ..Default::default() };
        self.task::<_, api::StartResponse>("Start", &request, BUSY).await.map(|started| started.pid)
    }

    /// Waits for a process's end, for so long at most.
    pub async fn wait(&self, process: Process<'_>, patience: Duration) -> Result<Exit, ShimError> {
        let (id, exec_id) = names(process);
        let request = api::WaitRequest { id, exec_id, ..Default::default() };
        let ended: api::WaitResponse = self.task("Wait", &request, patience).await?;
        Ok(exit(ended.exit_status, &ended.exited_at))
    }

    /// Signals a process, or with `all` each of its container.
    pub async fn kill(&self, process: Process<'_>, signal: u32, all: bool) -> Result<(), ShimError> {
        let (id, exec_id) = names(process);
        let request = api::KillRequest { id, exec_id, signal, all, ..Default::default() };
        self.task::<_, api::Empty>("Kill", &request, BUSY).await.map(drop)
    }

    /// Where a process is in its life.
    pub async fn state(&self, process: Process<'_>) -> Result<State, ShimError> {
        let (id, exec_id) = names(process);
        let request = api::StateRequest { id, exec_id, ..Default::default() };
        let state: api::StateResponse = self.task("State", &request, PROMPT).await?;
        match state.status.enum_value() {
            Ok(api::Status::CREATED) => Ok(State::Created),
            Ok(api::Status::RUNNING) => Ok(State::Running(state.pid)),
            Ok(api::Status::PAUSED | api::Status::PAUSING) => Ok(State::Paused(state.pid)),
            Ok(api::Status::STOPPED) => Ok(State::Stopped(exit(state.exit_status, &state.exited_at))),
            Ok(api::Status::UNKNOWN) | Err(_) => {
                Err(ShimError::Failed(format!("the shim says state {:?} of the process", state.status)))
            }
        }
    }

    /// A process's terminal has this size now, in characters.
    pub async fn resize_pty(&self, process: Process<'_>, columns: u16, rows: u16) -> Result<(), ShimError> {
        let (id, exec_id) = names(process);
        let (width, height) = (columns.into(), rows.into());
        let request = api::ResizePtyRequest { id, exec_id, width, height, ..Default::default() };
        self.task::<_, api::Empty>("ResizePty", &request, PROMPT).await.map(drop)
    }

    /// A process's input ends with what is written already.
    pub async fn close_io(&self, process: Process<'_>) -> Result<(), ShimError> {
        let (id, exec_id) = names(process);
        let request = api::CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.task::<_, api::Empty>("CloseIO", &request, PROMPT).await.map(drop)
    }

    /// Forgets a process that has ended.
    pub async fn delete(&self, process: Process<'_>) -> Result<Exit, ShimError> {
        let (id, exec_id) = names(process);
        let request = api::DeleteRequest { id, exec_id, ..Default::default() };
        let deleted: api::DeleteResponse = self.task("Delete", &request, BUSY).await?;
        Ok(exit(deleted.exit_status, &deleted.exited_at))
    }

    async fn own<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        patience: Duration,
    ) -> Result<A, ShimError> {
        let answer = self.call(SERVICE, method, request.encode_to_vec(), patience).await?;
        A::decode(answer.as_slice()).map_err(|e| ShimError::Failed(format!("the shim's answer to {method}: {e}")))
    }

    async fn task<Q: protobuf::Message, A: protobuf::Message>(
        &self,
        method: &'static str,
        request: &Q,
        patience: Duration,
    ) -> Result<A, ShimError> {
        let failed = |e: protobuf::Error| ShimError::Failed(format!("{method} of the shim: {e}"));
        let payload = request.write_to_bytes().map_err(failed)?;
        A::parse_from_bytes(&self.call(TASK, method, payload, patience).await?).map_err(failed)
    }

    async fn call(
        &self,
        service: &str,
        method: &'static str,
        payload: Vec<u8>,
        patience: Duration,
    ) -> Result<Vec<u8>, ShimError> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            // For the shim, which then forgets the call. Our own time is up before, for ttrpc's error would not tell it from others.
            timeout_nano: i64::try_from((patience + MARGIN).as_nanos()).unwrap_or(i64::MAX),
            payload,
            ..Default::default()
        };
        let answered = tokio::time::timeout(patience, self.client.request(request)).await;
        match answered.map_err(|_| ShimError::Late(method))? {
            Ok(response) => Ok(response.payload),
            Err(ttrpc::Error::RpcStatus(status)) => Err(refused(method, status.code(), status.message)),
            Err(error) => Err(ShimError::Gone { path: self.path.clone(), why: error.to_string() }),
        }
    }
}

fn names(process: Process<'_>) -> (String, String) {
    (process.id.to_owned(), process.exec.to_owned())
}

fn refused(method: &'static str, code: Code, message: String) -> ShimError {
    match Cause::of(&message) {
        // What has gone half-way is spoilt, whatever has spoilt it.
        Some((_, message)) if code == Code::ABORTED => return ShimError::Spoilt(message),
        Some((cause, message)) => return ShimError::Because { cause, message },
        None => {}
    }
    match code {
        Code::DEADLINE_EXCEEDED => ShimError::Late(method),
        Code::NOT_FOUND => ShimError::NotFound(message),
        Code::ALREADY_EXISTS => ShimError::AlreadyExists(message),
        Code::INVALID_ARGUMENT => ShimError::Invalid(message),
        Code::PERMISSION_DENIED => ShimError::Rejected(message),
        Code::FAILED_PRECONDITION => ShimError::Refused(message),
        Code::ABORTED => ShimError::Spoilt(message),
        Code::UNAVAILABLE => ShimError::Unavailable(message),
        _ => ShimError::Failed(message),
    }
}

fn exit(status: u32, at: &protobuf::MessageField<protobuf::well_known_types::timestamp::Timestamp>) -> Exit {
    let at = at.as_ref().map_or(SystemTime::UNIX_EPOCH, |at| at.clone().into());
    Exit { status, at }
}

#[cfg(test)]
mod tests;
