//! The pod's tasks and execs: one table, no lock held across a call to the runtime, and what containerd must hear.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::MessageField;
use tokio::sync::{Notify, watch};

use crate::backend::gvisor::Gvisor;
use crate::cgroup::Cgroup;
use crate::error::TaskError;
use crate::events::{Events, timestamp};
use crate::exec::ExecProcess;
use crate::hooks::Hooks;
use crate::stdio;
use crate::task::{Exit, Heard, Input, Phase, step};

/// A container's init has an exit of its own to publish last: its execs get this long to be heard before.
const EXECS_FIRST: Duration = Duration::from_secs(2);

/// Names one process of a pod; an empty `exec` is the container's init.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Container id.
    pub id: String,
    /// Exec id.
    pub exec: String,
}

impl Key {
    /// The container's init.
    pub fn init(id: &str) -> Self {
        Self { id: id.to_owned(), exec: String::new() }
    }

    /// Whether this is a container's init.
    pub fn is_init(&self) -> bool {
        self.exec.is_empty()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_init() {
            true => write!(f, "task {}", self.id),
            false => write!(f, "exec {} of task {}", self.exec, self.id),
        }
    }
}

/// An init or an exec.
pub struct Process {
    /// Where it is in its life.
    pub phase: Phase,
    /// What containerd calls its pid: the sandbox's, on the host. 0 before an exec is started.
    pub pid: i32,
    /// An exec's pid inside the sandbox; 0 for an init.
    pub inner_pid: i32,
    /// As the client asked.
    pub stdio: stdio::Request,
    /// What the shim holds of it.
    pub io: stdio::Io,
    /// What is left of it after the end.
    pub unread: stdio::Unread,
    /// Descriptors that wait for Start: runsc takes those of a pod's further containers only then.
    pub waiting: Option<[OwnedFd; 3]>,
    /// Of a container.
    pub hooks: Arc<Hooks>,
    /// What an exec that is not started yet will run.
    pub exec: Option<ExecProcess>,
    /// containerd's bundle.
    pub bundle: PathBuf,
    /// Tells those who wait.
    pub done: watch::Sender<Option<Exit>>,
}

impl Process {
    /// A process that was made and not started.
    pub fn new(stdio: stdio::Request, bundle: PathBuf) -> Self {
        let (io, unread, waiting, hooks, exec, done) = Default::default();
        Self { phase: Phase::Created, pid: 0, inner_pid: 0, stdio, io, unread, waiting, hooks, exec, bundle, done }
    }
}

/// The tasks of one pod and what they share.
pub struct Pod {
    /// containerd namespace.
    pub namespace: String,
    /// The sandbox they live in.
    pub sandbox: Gvisor,
    /// Where their events go.
    pub events: Events,
    /// Creates of one pod come one after the other: the first makes the sandbox.
    pub creating: tokio::sync::Mutex<()>,
    /// Notified when the last task is gone and containerd asked for the end.
    pub over: Notify,
    cgroup: OnceLock<Cgroup>,
    /// Out-of-memory kills that were published.
    oom_kills: AtomicU64,
    processes: Mutex<HashMap<Key, Process>>,
}

impl Pod {
    /// A pod without tasks.
    pub fn new(namespace: String, sandbox: Gvisor, events: Events) -> Self {
        let (creating, over, cgroup, oom_kills, processes) = Default::default();
        Self { namespace, sandbox, events, creating, over, cgroup, oom_kills, processes }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at one process or changes it; never waits.
    pub fn with<T>(&self, key: &Key, f: impl FnOnce(&mut Process) -> T) -> Result<T, TaskError> {
        self.table().get_mut(key).map(f).ok_or_else(|| TaskError::NotFound(key.to_string()))
    }

    /// Whether there is such a process.
    pub fn has(&self, key: &Key) -> bool {
        self.table().contains_key(key)
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// The pod's containers.
    pub fn inits(&self) -> Vec<Key> {
        self.table().keys().filter(|key| key.is_init()).cloned().collect()
    }

    /// Adds a process.
    pub fn insert(&self, key: Key, process: Process) {
        self.table().insert(key, process);
    }

    /// Takes out a process, with a container all its execs.
    pub fn remove(&self, key: &Key) {
        match key.is_init() {
            true => self.table().retain(|other, _| other.id != key.id),
            false => drop(self.table().remove(key)),
        }
    }

    /// Moves a process on and publishes what containerd must hear of it.
    pub fn advance(&self, key: &Key, verb: &'static str, input: Input) -> Result<(), TaskError> {
        let (heard, pid, stopped) = self.with(key, |p| {
            let (phase, heard) =
                step(p.phase, input).ok_or(TaskError::WrongPhase { verb, what: key.to_string(), phase: p.phase })?;
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

    fn publish(&self, key: &Key, pid: u32, heard: Heard) {
        let (container_id, exec_id) = (key.id.clone(), key.exec.clone());
        match heard {
            Heard::Start if key.is_init() => {
                self.events.publish("/tasks/start", &ev::TaskStart { container_id, pid, ..Default::default() });
            }
            Heard::Start => {
                let event = ev::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
                self.events.publish("/tasks/exec-started", &event);
            }
            Heard::Exit(exit) => {
                let event = ev::TaskExit {
                    id: if key.is_init() { container_id.clone() } else { exec_id },
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
    pub async fn ended(&self, key: &Key, exit: Exit) {
        if let Ok(io) = self.with(key, |p| std::mem::take(&mut p.io)) {
            let unread = io.finish().await;
            let _ = self.with(key, |p| p.unread = unread); // deleted meanwhile: nobody will read it
        }
        if key.is_init() {
            let running = |(other, p): (&Key, &Process)| {
                let runs = !matches!(p.phase, Phase::Created | Phase::Stopped(_));
                (other.id == key.id && !other.is_init() && runs).then(|| p.done.subscribe())
            };
            let execs: Vec<_> = self.table().iter().filter_map(running).collect();
            for mut done in execs {
                let _ = tokio::time::timeout(EXECS_FIRST, done.wait_for(Option::is_some)).await;
            }
        }
        self.publish_oom(key);
        if let Err(error) = self.advance(key, "end", Input::Exited(exit)) {
            tracing::debug!(%error, "an exit nobody waits for");
        }
    }

    /// The control group that the sandbox was put into.
    pub fn cgroup(&self) -> Result<&Cgroup, TaskError> {
        self.cgroup.get().ok_or_else(|| TaskError::host("finding the sandbox's control group", "it is not known"))
    }

    /// The sandbox has this pid: remembers its control group, which outlives the process until it is deleted.
    pub fn measure(&self, pid: i32) {
        match Cgroup::of(pid) {
            Ok(cgroup) => {
                self.oom_kills.store(cgroup.oom_kills(), Ordering::Relaxed);
                let _ = self.cgroup.set(cgroup); // the sandbox's, by its first container
            }
            Err(error) => tracing::warn!(%error, "the sandbox's control group is not known: no metrics"),
        }
    }

    /// TaskOOM goes before the exit that it explains.
    fn publish_oom(&self, key: &Key) {
        let kills = self.cgroup.get().map_or(0, Cgroup::oom_kills);
        if self.oom_kills.swap(kills, Ordering::Relaxed) < kills {
            let event = ev::TaskOOM { container_id: key.id.clone(), ..Default::default() };
            self.events.publish("/tasks/oom", &event);
        }
    }

    /// Hears of a process's end in a task of its own.
    pub fn heed(self: &Arc<Self>, key: Key, exit: impl Future<Output = Exit> + Send + 'static) {
        let pod = self.clone();
        tokio::spawn(async move { pod.ended(&key, exit.await).await });
    }
}
