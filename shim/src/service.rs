//! The Task RPCs of one pod, under both of containerd's names for them; wire types end here.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::backend::gvisor::cli::Runsc;
use crate::backend::gvisor::control::{Control, ExecProcess};
use crate::backend::gvisor::urpc::CallError;
use crate::error::TaskError;
use crate::events::{Events, timestamp};
use crate::stdio::console::Console;
use crate::task::{Exit, Heard, Input, KILLED, Phase, step};
use crate::{mounts, paths, reaper, stdio};

type Key = (String, String);

/// An init (its exec id is empty) or an exec.
struct Process {
    phase: Phase,
    pid: i32,
    inner_pid: i32,
    stdio: stdio::Request,
    held: stdio::Held,
    console: Option<Console>,
    exec: Option<ExecProcess>,
    bundle: PathBuf,
    done: watch::Sender<Option<Exit>>,
}

/// The tasks of one pod and what they share.
pub struct Pod {
    dir: PathBuf,
    root_id: String,
    namespace: String,
    runsc: Runsc,
    events: Events,
    processes: Mutex<HashMap<Key, Process>>,
    creating: tokio::sync::Mutex<()>,
    /// Notified when the last task is gone and containerd asked for the end.
    pub over: Notify,
}

/// The service that ttrpc calls.
#[derive(Clone)]
pub struct Service(pub Arc<Pod>);

impl Pod {
    /// A pod without tasks, whose state is kept in `dir`.
    pub fn new(dir: PathBuf, group: &str, namespace: String, events: Events) -> Self {
        let (runsc, root_id) = (Runsc::new(&dir), paths::runsc_id(group));
        let (processes, creating, over) = Default::default();
        Self { dir, root_id, namespace, runsc, events, processes, creating, over }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, key: &Key, f: impl FnOnce(&mut Process) -> T) -> Result<T, TaskError> {
        self.table().get_mut(key).map(f).ok_or_else(|| TaskError::NotFound(name(key)))
    }

    fn control(&self) -> Result<Control, TaskError> {
        self.runsc.control_socket(&self.root_id).map(|socket| Control::new(&socket))
    }

    /// Moves a process on and publishes what containerd must hear of it.
    fn advance(&self, key: &Key, verb: &'static str, input: Input) -> Result<(), TaskError> {
        let (heard, pid, stopped) = self.with(key, |p| {
            let (phase, heard) =
                step(p.phase, input).ok_or(TaskError::WrongPhase { verb, what: name(key), phase: p.phase })?;
            p.phase = phase;
            let stopped = if let Phase::Stopped(exit) = phase { Some(exit) } else { None };
            Ok::<_, TaskError>((heard, p.pid as u32, stopped))
        })??;
        for heard in heard {
            self.publish(key, pid, heard);
        }
        if let Some(exit) = stopped {
            self.with(key, |p| p.done.send_replace(Some(exit)).is_some())?;
        }
        Ok(())
    }

    fn publish(&self, (id, exec): &Key, pid: u32, heard: Heard) {
        let container_id = id.clone();
        match heard {
            Heard::Start if exec.is_empty() => {
                self.events.publish("/tasks/start", &ev::TaskStart { container_id, pid, ..Default::default() });
            }
            Heard::Start => {
                let event = ev::TaskExecStarted { container_id, exec_id: exec.clone(), pid, ..Default::default() };
                self.events.publish("/tasks/exec-started", &event);
            }
            Heard::Exit(exit) => {
                let event = ev::TaskExit {
                    id: if exec.is_empty() { id.clone() } else { exec.clone() },
                    container_id,
                    pid,
                    exit_status: exit.status,
                    exited_at: MessageField::some(timestamp(exit.at)),
                    ..Default::default()
                };
                self.events.publish("/tasks/exit", &event);
            }
            Heard::Paused => {
                self.events.publish("/tasks/paused", &ev::TaskPaused { container_id, ..Default::default() });
            }
            Heard::Resumed => {
                self.events.publish("/tasks/resumed", &ev::TaskResumed { container_id, ..Default::default() });
            }
        }
    }

    /// A process has ended: its execs first, its output to the end, then the event.
    async fn ended(&self, key: &Key, exit: Exit) {
        let consoles = self.with(key, |p| {
            p.held.finish_output();
            p.console.take()
        });
        if let Ok(Some(mut console)) = consoles {
            console.finish().await;
        }
        if key.1.is_empty() {
            let running = |(k, p): (&Key, &Process)| {
                (k.0 == key.0 && !k.1.is_empty() && !matches!(p.phase, Phase::Created | Phase::Stopped(_)))
                    .then(|| p.done.subscribe())
            };
            let execs: Vec<_> = self.table().iter().filter_map(running).collect();
            for mut done in execs {
                let _ = tokio::time::timeout(Duration::from_secs(2), done.wait_for(Option::is_some)).await;
            }
        }
        if let Err(error) = self.advance(key, "end", Input::Exited(exit)) {
            tracing::debug!(%error, "an exit nobody waits for");
        }
    }

    async fn open(
        &self,
        key: &Key,
        request: &stdio::Request,
    ) -> Result<([OwnedFd; 3], stdio::Held, Option<Console>), TaskError> {
        let failed = |e| TaskError::host("opening stdio", e);
        if request.terminal {
            let (console, tty) = Console::open(request).map_err(failed)?;
            let fds = [tty.try_clone().map_err(failed)?, tty.try_clone().map_err(failed)?, tty];
            return Ok((fds, stdio::Held::default(), Some(console)));
        }
        let (child, held) = stdio::open(request, &self.namespace, &key.0).await.map_err(failed)?;
        Ok((child.fds, held, None))
    }

    /// Create, step by step; a failing step undoes those before it.
    async fn create(self: &Arc<Self>, req: CreateTaskRequest) -> Result<i32, TaskError> {
        let _one_at_a_time = self.creating.lock().await;
        let key = (req.id.clone(), String::new());
        if self.table().contains_key(&key) {
            return Err(TaskError::AlreadyExists(name(&key)));
        }
        if !req.checkpoint.is_empty() {
            return Err(TaskError::Unimplemented("restoring from a checkpoint is not implemented yet".into()));
        }
        let bundle = PathBuf::from(&req.bundle);
        let (rootfs, own, rid) = (bundle.join("rootfs"), paths::bundle(&self.dir, &req.id), paths::runsc_id(&req.id));
        let made = async {
            mounts::mount_all(&req.rootfs, &rootfs).map_err(|why| TaskError::host("rootfs", why))?;
            self.write_spec(&bundle, &own)?;
            let (stdin, stdout, stderr) = (req.stdin.clone(), req.stdout.clone(), req.stderr.clone());
            let request = stdio::Request { stdin, stdout, stderr, terminal: req.terminal };
            let (fds, held, console) = self.open(&key, &request).await?;
            let pid = self.runsc.create(&own, &rid, fds).await?;
            Ok::<_, TaskError>((pid, request, held, console))
        };
        let (pid, stdio, held, console) = match made.await {
            Ok(made) => made,
            Err(error) => {
                self.clean(&req.id, &bundle).await;
                return Err(error);
            }
        };
        let done = watch::Sender::new(None);
        let process =
            Process { phase: Phase::Created, pid, inner_pid: 0, stdio, held, console, exec: None, bundle, done };
        self.table().insert(key.clone(), process);
        let event = ev::TaskCreate { container_id: req.id, bundle: req.bundle, pid: pid as u32, ..Default::default() };
        self.events.publish("/tasks/create", &event);
        if rid == self.root_id {
            // The sandbox process ends with its root container's exit status.
            let pod = self.clone();
            tokio::spawn(async move { pod.ended(&key, reaper::exit_of(pid).await).await });
        }
        Ok(pid)
    }

    /// The bundle that runsc sees: containerd's spec, with paths and grouping in runsc's own terms.
    fn write_spec(&self, bundle: &Path, own: &Path) -> Result<(), TaskError> {
        let text = fs::read(bundle.join("config.json")).map_err(|e| TaskError::host("reading config.json", e))?;
        let mut spec: Value =
            serde_json::from_slice(&text).map_err(|e| TaskError::Invalid(format!("config.json: {e}")))?;
        let Some(path) = spec.pointer("/root/path").and_then(Value::as_str).map(|p| bundle.join(p)) else {
            return Err(TaskError::Invalid("config.json: root.path is missing".into()));
        };
        spec["root"]["path"] = json!(path);
        if let Some(key) = spec.get("annotations").and_then(Value::as_object).and_then(unknown_key) {
            return Err(TaskError::Invalid(format!("annotation {key}: not supported by this version")));
        }
        if spec.pointer("/annotations/io.kubernetes.cri.sandbox-id").is_some() {
            spec["annotations"]["io.kubernetes.cri.sandbox-id"] = json!(self.root_id);
        }
        let write = || {
            fs::create_dir_all(own)?;
            fs::write(own.join("config.json"), spec.to_string())
        };
        write().map_err(|e| TaskError::host("writing the sandbox's bundle", e))
    }

    async fn clean(&self, id: &str, bundle: &Path) {
        if let Err(error) = self.runsc.delete(&paths::runsc_id(id)).await {
            tracing::warn!(sandbox = id, %error, "runsc left something");
        }
        mounts::unmount_all(&bundle.join("rootfs"));
        let _ = fs::remove_dir_all(paths::bundle(&self.dir, id));
    }

    async fn start(self: &Arc<Self>, key: Key) -> Result<u32, TaskError> {
        self.advance(&key, "start", Input::Start)?;
        let started = if key.1.is_empty() { self.start_init(&key).await } else { self.start_exec(&key).await };
        if let Err(error) = started {
            let exit = Exit { status: 255, at: SystemTime::now() };
            self.advance(&key, "start", Input::StartFailed(exit))?;
            return Err(error);
        }
        self.advance(&key, "start", Input::Started)?;
        self.with(&key, |p| p.pid as u32)
    }

    async fn start_init(self: &Arc<Self>, key: &Key) -> Result<(), TaskError> {
        let rid = paths::runsc_id(&key.0);
        self.runsc.start(&rid).await?;
        if rid != self.root_id {
            let control = self.control()?;
            self.heed(key.clone(), async move { control.wait(&rid).await });
        }
        Ok(())
    }

    async fn start_exec(self: &Arc<Self>, key: &Key) -> Result<(), TaskError> {
        let init = (key.0.clone(), String::new());
        let pid = self.with(&init, |p| p.pid)?;
        let (request, exec) = self.with(key, |p| (p.stdio.clone(), p.exec.take()))?;
        let exec = exec.ok_or_else(|| TaskError::NotFound(name(key)))?;
        let (fds, held, console) = self.open(key, &request).await?;
        let (control, cid) = (self.control()?, paths::runsc_id(&key.0));
        let inner = control.exec(&cid, &exec, request.terminal, &fds).await;
        let inner_pid = inner.map_err(|e| TaskError::host("exec in the sandbox", e))?;
        drop(fds);
        self.with(key, |p| (p.pid, p.inner_pid, p.held, p.console) = (pid, inner_pid, held, console))?;
        self.heed(key.clone(), async move { control.wait_pid(&cid, inner_pid).await });
        Ok(())
    }

    /// Hears of a process's end from the sandbox; a sandbox that cannot say is gone, and the process with it.
    fn heed(self: &Arc<Self>, key: Key, status: impl Future<Output = Result<u32, CallError>> + Send + 'static) {
        let pod = self.clone();
        tokio::spawn(async move {
            let status = status.await.unwrap_or(KILLED);
            pod.ended(&key, Exit { status, at: SystemTime::now() }).await;
        });
    }

    async fn kill(&self, key: &Key, signal: u32, all: bool) -> Result<(), TaskError> {
        let (phase, pid, inner) = self.with(key, |p| (p.phase, p.pid, p.inner_pid))?;
        match phase {
            Phase::Stopped(_) => return Err(TaskError::NotFound(format!("process {}", name(key)))),
            Phase::Created if key.1.is_empty() => {
                // Nothing of the workload runs yet: the sandbox itself goes, and its exit is heard.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                return Ok(());
            }
            _ => {}
        }
        let sent = self.control()?.signal(&paths::runsc_id(&key.0), inner, signal, all).await;
        sent.map_err(|e| TaskError::host("signalling the sandbox", e))
    }

    async fn delete(&self, key: Key) -> Result<(u32, Exit), TaskError> {
        let (phase, pid, bundle) = self.with(&key, |p| (p.phase, p.pid as u32, p.bundle.clone()))?;
        let exit = match phase {
            Phase::Stopped(exit) => exit,
            Phase::Created if !key.1.is_empty() => Exit { status: 0, at: SystemTime::now() },
            phase => return Err(TaskError::WrongPhase { verb: "delete", what: name(&key), phase }),
        };
        if key.1.is_empty() {
            self.clean(&key.0, &bundle).await;
            self.table().retain(|(id, _), _| *id != key.0);
            let event = ev::TaskDelete {
                container_id: key.0,
                pid,
                exit_status: exit.status,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            };
            self.events.publish("/tasks/delete", &event);
        } else {
            self.table().remove(&key);
        }
        Ok((pid, exit))
    }
}

fn unknown_key(annotations: &serde_json::Map<String, Value>) -> Option<&String> {
    annotations.keys().find(|key| key.starts_with("creto.dev/"))
}

fn name((id, exec): &Key) -> String {
    if exec.is_empty() { format!("task {id}") } else { format!("exec {exec} of task {id}") }
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> Answer<StateResponse> {
        let key = (req.id.clone(), req.exec_id.clone());
        Ok(self.0.with(&key, |p| {
            let (status, exit) = match p.phase {
                Phase::Created => (Status::CREATED, None),
                Phase::Starting | Phase::DiedEarly(_) | Phase::Running => (Status::RUNNING, None),
                Phase::Paused => (Status::PAUSED, None),
                Phase::Stopped(exit) => (Status::STOPPED, Some(exit)),
            };
            StateResponse {
                id: req.id,
                bundle: p.bundle.to_string_lossy().into_owned(),
                pid: p.pid as u32,
                status: status.into(),
                stdin: p.stdio.stdin.clone(),
                stdout: p.stdio.stdout.clone(),
                stderr: p.stdio.stderr.clone(),
                terminal: p.stdio.terminal,
                exit_status: exit.map_or(0, |e| e.status),
                exited_at: exit.map(|e| timestamp(e.at)).into(),
                exec_id: req.exec_id,
                ..Default::default()
            }
        })?)
    }

    async fn create(&self, _: &TtrpcContext, req: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let pid = self.0.create(req).await? as u32;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> Answer<StartResponse> {
        let pid = self.0.start((req.id, req.exec_id)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> Answer<DeleteResponse> {
        let (pid, exit) = self.0.delete((req.id, req.exec_id)).await?;
        let exited_at = MessageField::some(timestamp(exit.at));
        Ok(DeleteResponse { pid, exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> Answer<PidsResponse> {
        let pid = self.0.with(&(req.id, String::new()), |p| p.pid as u32)?;
        Ok(PidsResponse { processes: vec![ProcessInfo { pid, ..Default::default() }], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> Answer<Empty> {
        self.0.control()?.pause(true).await.map_err(|e| TaskError::host("pausing the sandbox", e))?;
        self.0.advance(&(req.id, String::new()), "pause", Input::Paused)?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> Answer<Empty> {
        self.0.control()?.pause(false).await.map_err(|e| TaskError::host("resuming the sandbox", e))?;
        self.0.advance(&(req.id, String::new()), "resume", Input::Resumed)?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> Answer<Empty> {
        self.0.kill(&(req.id, req.exec_id), req.signal, req.all).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> Answer<Empty> {
        let init = (req.id.clone(), String::new());
        let (phase, bundle) = self.0.with(&init, |p| (p.phase, p.bundle.clone()))?;
        if phase != Phase::Running {
            return Err(TaskError::WrongPhase { verb: "exec in", what: name(&init), phase }.into());
        }
        let key = (req.id, req.exec_id);
        let exec =
            serde_json::from_slice(&req.spec.value).map_err(|e| TaskError::Invalid(format!("exec spec: {e}")))?;
        let stdio = stdio::Request { stdin: req.stdin, stdout: req.stdout, stderr: req.stderr, terminal: req.terminal };
        let (held, done) = (stdio::Held::default(), watch::Sender::new(None));
        let process = Process {
            phase: Phase::Created,
            pid: 0,
            inner_pid: 0,
            stdio,
            held,
            console: None,
            exec: Some(exec),
            bundle,
            done,
        };
        if self.0.table().contains_key(&key) {
            return Err(TaskError::AlreadyExists(name(&key)).into());
        }
        self.0.table().insert(key.clone(), process);
        let event = ev::TaskExecAdded { container_id: key.0, exec_id: key.1, ..Default::default() };
        self.0.events.publish("/tasks/exec-added", &event);
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> Answer<Empty> {
        let resized = self.0.with(&(req.id, req.exec_id), |p| match &p.console {
            Some(console) => console.resize(req.width as u16, req.height as u16),
            None => Ok(()),
        })?;
        resized.map_err(|e| TaskError::host("resizing the terminal", e))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> Answer<Empty> {
        self.0.with(&(req.id, req.exec_id), |p| p.held.close_stdin())?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> Answer<WaitResponse> {
        let mut done = self.0.with(&(req.id, req.exec_id), |p| p.done.subscribe())?;
        let ended = done.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|e| *e).ok_or_else(|| TaskError::NotFound("the process".into()))?;
        let exited_at = MessageField::some(timestamp(exit.at));
        Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        Err(TaskError::Unimplemented("Checkpoint is not implemented yet".into()).into())
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> Answer<Empty> {
        Err(TaskError::Unimplemented("Update is not implemented yet".into()).into())
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> Answer<StatsResponse> {
        Err(TaskError::Unimplemented("Stats is not implemented yet".into()).into())
    }

    async fn connect(&self, _: &TtrpcContext, req: ConnectRequest) -> Answer<ConnectResponse> {
        let task_pid = self.0.with(&(req.id, String::new()), |p| p.pid as u32).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        if self.0.table().is_empty() {
            self.0.over.notify_one();
        }
        Ok(Empty::new())
    }
}
