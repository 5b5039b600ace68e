//! The RPC table: Task API v2 alone, one lock for all, and §3's answers. What takes more than a few lines is in
//! `lifecycle`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::*;
use containerd_shim_protos::cgroups::metrics::{MemoryEntry, MemoryStat, Metrics, PidsStat};
use containerd_shim_protos::events::task::*;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageDyn, MessageField};
use containerd_shim_protos::shim_sync::{Task, create_task};
use containerd_shim_protos::topics::*;
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::proto::{Request, Response};
use containerd_shim_protos::ttrpc::{self, Code, MethodHandler, TtrpcContext, get_status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Call;
use crate::events::{AFTER_REPLY, Events, exited_at};
use crate::inside::ProcessSpec;
use crate::sandbox::{Phase, Process, Sandbox};
use crate::stdio::Paths;

type Answer<T> = ttrpc::Result<T>;
type Methods = HashMap<String, Box<dyn MethodHandler + Send + Sync>>;

/// The service of one sandbox.
#[derive(Clone)]
pub struct Service {
    sandbox: Arc<Mutex<Sandbox>>,
    pub events: Events,
    pub call: Arc<Call>,
}

/// §3: most errors have no code of their own.
pub fn unknown(text: impl ToString) -> ttrpc::Error {
    get_rpc_status(Code::UNKNOWN, text)
}

/// What the server serves: v2; the generated code knows only v3, whose messages are the same.
pub fn methods(service: Service) -> Methods {
    let mut methods: Methods = HashMap::new();
    for (name, method) in create_task(Arc::new(service)) {
        methods.insert(name.replace(".v3.", ".v2."), method);
        methods.insert(name, Box::new(NoSuchService));
    }
    methods
}

/// What Go's ttrpc answers for a service that is not there.
struct NoSuchService;

impl MethodHandler for NoSuchService {
    fn handler(&self, context: TtrpcContext, request: Request) -> Answer<()> {
        let mut response = Response::new();
        response.set_status(get_status(Code::UNIMPLEMENTED, format!("service {}", request.service)));
        context.respond(context.mh.stream_id, response)
    }
}

impl Service {
    /// Of the sandbox that `call` names.
    pub fn new(call: Call) -> Self {
        Self { sandbox: Arc::default(), events: Events::new(call.namespace.clone()), call: Arc::new(call) }
    }

    /// The service lock; every RPC takes it, and so does the end of a process (§3, CloseIO).
    pub fn lock(&self) -> MutexGuard<'_, Sandbox> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event that may come before or after the reply.
    pub fn tell(&self, sandbox: &Sandbox, topic: &str, event: &dyn MessageDyn) {
        drop(self.events.publish(topic, event, sandbox.config.events, AFTER_REPLY / 2));
    }

    fn freeze(&self, id: &str, from: Phase, to: Phase, signal: Signal, refusal: &str) -> Answer<Empty> {
        let mut sandbox = self.lock();
        let container = sandbox.container(id)?;
        if container.init.phase != from {
            return Err(unknown(refusal));
        }
        container.holder.scope.signal(signal);
        container.init.phase = to;
        let container_id = id.to_owned();
        match to {
            Phase::Paused => {
                self.tell(&sandbox, TASK_PAUSED_EVENT_TOPIC, &TaskPaused { container_id, ..Default::default() })
            }
            _ => self.tell(&sandbox, TASK_RESUMED_EVENT_TOPIC, &TaskResumed { container_id, ..Default::default() }),
        }
        Ok(Empty::new())
    }
}

impl Task for Service {
    fn create(&self, _: &TtrpcContext, req: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let pid = self.make(&mut self.lock(), &req)?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    fn start(&self, _: &TtrpcContext, req: StartRequest) -> Answer<StartResponse> {
        Ok(StartResponse { pid: self.begin(&req.id, &req.exec_id)?, ..Default::default() })
    }

    fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> Answer<DeleteResponse> {
        let mut sandbox = self.lock();
        let exit = match req.exec_id.as_str() {
            "" => self.remove(&mut sandbox, &req.id)?,
            exec => {
                let exit = sandbox.process(&req.id, exec)?.ending.exit();
                sandbox.container(&req.id)?.execs.remove(exec); // §3: no event
                exit
            }
        };
        Ok(DeleteResponse {
            pid: sandbox.pid,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exited_at(exit),
            ..Default::default()
        })
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        let mut sandbox = self.lock();
        if sandbox.containers.is_empty() {
            self.leave(&mut sandbox);
        }
        Ok(Empty::new()) // §3: with tasks nothing happens
    }

    fn state(&self, _: &TtrpcContext, req: StateRequest) -> Answer<StateResponse> {
        let mut sandbox = self.lock();
        let pid = sandbox.pid;
        let bundle = sandbox.container(&req.id)?.bundle.clone();
        let process = sandbox.process(&req.id, &req.exec_id)?;
        let status = match process.phase {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped => Status::STOPPED,
        };
        let exit = process.ending.exit();
        let is_exec = !req.exec_id.is_empty();
        // §3: an exec's id is a UUID and its exec_id is empty; before it starts its status is 255
        let unstarted = if is_exec && process.phase == Phase::Created { 255 } else { 0 };
        Ok(StateResponse {
            id: if is_exec { process.uuid.clone() } else { req.id },
            bundle,
            pid,
            status: status.into(),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            exit_status: exit.map_or(unstarted, |exit| exit.status),
            exited_at: exited_at(exit),
            ..Default::default()
        })
    }

    fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> Answer<WaitResponse> {
        let (ending, init) = {
            let mut sandbox = self.lock();
            let init = sandbox.process(&req.id, "")?.ending.clone();
            (sandbox.process(&req.id, &req.exec_id)?.ending.clone(), init)
        };
        let exit = ending.wait().ok_or_else(|| unknown("the process is lost"))?;
        // §3: an exec's time is its container's
        let exited_at = exited_at(init.exit());
        Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    fn kill(&self, _: &TtrpcContext, req: KillRequest) -> Answer<Empty> {
        let signal = i32::try_from(req.signal).ok().and_then(|number| Signal::try_from(number).ok());
        let signal = signal.ok_or_else(|| unknown(format!("invalid signal {}", req.signal)))?;
        let mut sandbox = self.lock();
        let is_exec = !req.exec_id.is_empty();
        let process = sandbox.process(&req.id, &req.exec_id)?;
        let (phase, pid) = (process.phase, process.pid);
        match (phase, is_exec) {
            (Phase::Created, true) => return Err(get_rpc_status(Code::NOT_FOUND, "The exec process does not exist")),
            (Phase::Stopped, true) => {}
            (Phase::Stopped, false) if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) => {}
            (Phase::Created | Phase::Stopped, false) => return Err(unknown("Sandbox not running")),
            (_, true) => drop(pid.map(|pid| kill(Pid::from_raw(pid), signal))),
            // §3: `all` is always set
            (_, false) => sandbox.container(&req.id)?.holder.scope.signal(signal),
        }
        Ok(Empty::new())
    }

    fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> Answer<Empty> {
        let mut sandbox = self.lock();
        let container = sandbox.container(&req.id)?;
        if container.execs.contains_key(&req.exec_id) {
            let text = format!("exec {}: already exists", req.exec_id);
            return Err(get_rpc_status(Code::ALREADY_EXISTS, text));
        }
        let spec: ProcessSpec = serde_json::from_slice(&req.spec.value).map_err(unknown)?;
        let paths = Paths { stdin: req.stdin, stdout: req.stdout, stderr: req.stderr, terminal: req.terminal };
        container.execs.insert(req.exec_id.clone(), Process::new(spec, paths));
        let event = TaskExecAdded { container_id: req.id, exec_id: req.exec_id, ..Default::default() };
        self.tell(&sandbox, TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }

    fn pids(&self, _: &TtrpcContext, _: PidsRequest) -> Answer<PidsResponse> {
        let process = ProcessInfo { pid: self.lock().pid, ..Default::default() }; // §3: whatever the id
        Ok(PidsResponse { processes: vec![process], ..Default::default() })
    }

    fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> Answer<ConnectResponse> {
        let task_pid = self.lock().pid;
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    fn stats(&self, _: &TtrpcContext, req: StatsRequest) -> Answer<StatsResponse> {
        let processes = self.lock().container(&req.id)?.holder.scope.processes();
        let kilobytes = |pid: &i32| -> Option<u64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let usage =
            MemoryEntry { usage: processes.iter().filter_map(kilobytes).sum::<u64>() * 1024, ..Default::default() };
        let metrics = Metrics {
            pids: MessageField::some(PidsStat { current: processes.len() as u64, ..Default::default() }),
            memory: MessageField::some(MemoryStat { usage: MessageField::some(usage), ..Default::default() }),
            ..Default::default()
        };
        let value = metrics.write_to_bytes().map_err(unknown)?;
        let any = Any { type_url: "io.containerd.cgroups.v1.Metrics".into(), value, ..Default::default() };
        Ok(StatsResponse { stats: MessageField::some(any), ..Default::default() })
    }

    fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> Answer<Empty> {
        let refusal = "Container not running, impossible to pause";
        self.freeze(&req.id, Phase::Running, Phase::Paused, Signal::SIGSTOP, refusal)
    }

    fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> Answer<Empty> {
        let refusal = "Container not paused, impossible to resume";
        self.freeze(&req.id, Phase::Paused, Phase::Running, Signal::SIGCONT, refusal)
    }

    fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> Answer<Empty> {
        let mut sandbox = self.lock();
        if !sandbox.created {
            std::process::exit(2); // §3: a panic
        }
        if req.resources.type_url.is_empty() {
            return Err(get_rpc_status(Code::NOT_FOUND, "type with url : not found"));
        }
        sandbox.container(&req.id)?;
        Ok(Empty::new())
    }

    fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        Err(get_rpc_status(Code::UNIMPLEMENTED, "service Checkpoint: not implemented"))
    }

    fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> Answer<Empty> {
        let mut sandbox = self.lock();
        if let Some(terminal) = &sandbox.process(&req.id, &req.exec_id)?.terminal {
            // A program, since the call would need unsafe code.
            let mut stty = std::process::Command::new("stty");
            stty.args(["rows", &req.height.to_string(), "columns", &req.width.to_string()]);
            stty.stdin(terminal.try_clone().map_err(unknown)?).status().map_err(unknown)?;
        }
        Ok(Empty::new())
    }

    fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> Answer<Empty> {
        // §3: the lock is kept until the FIFO's writers are gone, however long that is
        self.lock().process(&req.id, &req.exec_id)?.input.close();
        Ok(Empty::new())
    }
}
