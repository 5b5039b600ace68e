//! The imitation of Kata's shim, driven by hand: no containerd, its Task API by ttrpc, its events taken by the test.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::*;
use containerd_shim_protos::events::task::*;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_sync::{Client, Events, create_events};
use containerd_shim_protos::ttrpc::proto::Request;
use containerd_shim_protos::ttrpc::{self, Code, Server, TtrpcContext};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Finished, Running};
use super::{PATIENCE, images, leaks, wait_until};

/// One sandbox of the imitation, in a bundle of its own.
pub struct Kata {
    dir: TempDir,
    id: String,
    address: String,
    told: Told,
    server: Server,
}

/// What was told: a line for each event, `topic container id pid status`.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

/// A refused call.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// With the server's code and text.
    Status(Code, String),
    /// The connection has ended.
    Closed,
    /// No answer came within the call's deadline.
    Late,
}

impl Events for Told {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let (topic, bytes) = (&request.envelope.topic, &request.envelope.event.value);
        let line = match topic.as_str() {
            "/tasks/exit" => {
                let e = TaskExit::parse_from_bytes(bytes).unwrap();
                format!("exit {} {} {} {}", e.container_id, e.id, e.pid, e.exit_status)
            }
            "/tasks/delete" => {
                let e = TaskDelete::parse_from_bytes(bytes).unwrap();
                format!("delete {} {} {}", e.container_id, e.pid, e.exit_status)
            }
            "/tasks/exec-started" => {
                let e = TaskExecStarted::parse_from_bytes(bytes).unwrap();
                format!("exec-started {} {} {}", e.container_id, e.exec_id, e.pid)
            }
            other => other.trim_start_matches("/tasks/").to_owned(),
        };
        self.0.lock().unwrap().push(line);
        Ok(Empty::new())
    }
}

/// The program.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_creto-e2e-kata"))
}

impl Kata {
    /// Runs the `start` action of the sandbox `id`, with these switches (TOML).
    pub fn start(id: &str, switches: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        images::unpack(&dir.path().join("rootfs"));
        fs::write(dir.path().join("switches.toml"), switches).unwrap();
        mkfifo(&dir.path().join("log"), Mode::S_IRWXU).unwrap();
        let told = Told::default();
        let events = format!("unix://{}", dir.path().join("events.sock").display());
        let server = Server::new().bind(&events).unwrap().register_service(create_events(Arc::new(told.clone())));
        let mut kata = Self { dir, id: id.to_owned(), address: String::new(), told, server };
        kata.server.start().unwrap();
        // It must have a reader before the daemon looks; what it says is of no interest.
        let log = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(kata.path("log")).unwrap();
        kata.address = kata.action("start").ok();
        kata.call::<_, ConnectResponse>("Connect", &ConnectRequest::new()).unwrap(); // it has opened its log
        drop(log);
        kata
    }

    /// A path in the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The text of a file in the bundle.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// What `start` said.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The socket's file.
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(self.address.trim_start_matches("unix://"))
    }

    /// Runs an action as containerd would.
    pub fn action(&self, action: &str) -> Finished {
        let mut command = Command::new(program());
        command.args(["-namespace", "ns", "-id", &self.id, "-address"]).arg(self.path("containerd.sock")).arg(action);
        command.current_dir(self.dir.path()).env("TTRPC_ADDRESS", self.path("events.sock"));
        command.env("CRETO_E2E_KATA_CONFIG", self.path("switches.toml"));
        Running::start(command).finish_without_input()
    }

    /// Calls a method of the Task API, on a connection of its own.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        self.call_service("containerd.task.v2.Task", method, request)
    }

    /// The same, of a server that may not answer.
    pub fn call_in_time<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        patience: Duration,
    ) -> Result<A, Refusal> {
        self.request("containerd.task.v2.Task", method, request, patience)
    }

    /// The same, of any service.
    pub fn call_service<Q: Message, A: Message>(&self, service: &str, method: &str, request: &Q) -> Result<A, Refusal> {
        self.request(service, method, request, PATIENCE)
    }

    fn request<Q: Message, A: Message>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        patience: Duration,
    ) -> Result<A, Refusal> {
        let client = Client::connect(&self.address).map_err(|_| Refusal::Closed)?;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes().unwrap(),
            timeout_nano: patience.as_nanos() as i64,
            ..Default::default()
        };
        match client.request(request) {
            Ok(answer) => Ok(A::parse_from_bytes(&answer.payload).unwrap()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Refusal::Status(status.code(), status.message().to_owned())),
            Err(ttrpc::Error::Others(text)) if text.contains("Receiver timeout") => Err(Refusal::Late),
            Err(_) => Err(Refusal::Closed),
        }
    }

    /// Creates a container that runs `args`, with FIFOs as in [`fifo`]; `change` may change its config.json.
    pub fn create(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<u32, Refusal> {
        let bundle = if id == self.id { self.path("") } else { self.path(id) };
        fs::create_dir_all(&bundle).unwrap();
        let mut config = json!({
            "root": {"path": self.path("rootfs")},
            "process": process(args),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
        });
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let request = CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_string_lossy().into_owned(),
            stdin: self.fifo(&format!("{id}.in")),
            stdout: self.fifo(&format!("{id}.out")),
            terminal: config["process"]["terminal"].as_bool().unwrap_or_default(),
            ..Default::default()
        };
        self.call("Create", &request).map(|answer: CreateTaskResponse| answer.pid)
    }

    /// Registers a process of a container, with stdout as in [`fifo`].
    pub fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Result<Empty, Refusal> {
        let spec = containerd_shim_protos::protobuf::well_known_types::any::Any {
            value: process(args).to_string().into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdout: self.fifo(&format!("{exec}.out")),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.call("Exec", &request)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        if !path.exists() {
            mkfifo(&path, Mode::S_IRWXU).unwrap();
        }
        path.to_string_lossy().into_owned()
    }

    /// Reads a FIFO until its writers are gone.
    pub fn read_to_end(&self, name: &str) -> std::thread::JoinHandle<String> {
        let path = self.path(name);
        std::thread::spawn(move || {
            let mut text = String::new();
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            text
        })
    }

    /// Start of a container's first process, or of an exec.
    pub fn begin(&self, id: &str, exec: &str) -> Result<u32, Refusal> {
        let request = StartRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Start", &request).map(|answer: StartResponse| answer.pid)
    }

    /// Wait: status and seconds.
    pub fn wait(&self, id: &str, exec: &str) -> Result<(u32, i64), Refusal> {
        let request = WaitRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Wait", &request).map(|answer: WaitResponse| (answer.exit_status, answer.exited_at.seconds))
    }

    /// Delete: pid, status, seconds.
    pub fn delete(&self, id: &str, exec: &str) -> Result<(u32, u32, i64), Refusal> {
        let request = DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Delete", &request).map(|a: DeleteResponse| (a.pid, a.exit_status, a.exited_at.seconds))
    }

    /// Kill.
    pub fn kill(&self, id: &str, exec: &str, signal: Signal) -> Result<Empty, Refusal> {
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        self.call("Kill", &KillRequest { id, exec_id, signal: signal as u32, ..Default::default() })
    }

    /// State.
    pub fn state(&self, id: &str, exec: &str) -> Result<StateResponse, Refusal> {
        self.call("State", &StateRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() })
    }

    /// Shutdown.
    pub fn shutdown(&self) -> Result<Empty, Refusal> {
        self.call("Shutdown", &ShutdownRequest { id: self.id.clone(), ..Default::default() })
    }

    /// What events have told so far.
    pub fn told(&self) -> Vec<String> {
        self.told.0.lock().unwrap().clone()
    }

    /// Waits for an event.
    #[track_caller]
    pub fn wait_told(&self, line: &str) {
        wait_until(line, || self.told().iter().any(|told| told == line));
    }

    /// Its processes: daemon, VMM, virtiofsd, and what runs in the VM.
    pub fn processes(&self) -> Vec<leaks::Process> {
        leaks::processes_of(self.dir.path())
    }

    /// The daemon's pid.
    pub fn daemon(&self) -> Pid {
        Pid::from_raw(self.text("shim.pid").parse().unwrap())
    }
}

fn process(args: &[&str]) -> Value {
    json!({"args": args, "cwd": "/", "env": ["PATH=/bin", "GREETING=hello"], "user": {"uid": 0, "gid": 0}})
}

impl Drop for Kata {
    fn drop(&mut self) {
        wait_until("the imitation's processes to go", || {
            let left = self.processes();
            for process in &left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL); // it may just have ended
            }
            left.is_empty()
        });
        let _ = fs::remove_file(self.socket());
    }
}
