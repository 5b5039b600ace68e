//! The pod's tasks and execs: one table, no lock held across a call to the runtime, and what containerd must hear.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::MessageField;
use tokio::sync::{Notify, watch};
use trust::attestation::predicate::Launch;
use trust::audit::Event;

use crate::backend::{self, Backend, Place};
use crate::bound::Bound;
use crate::bound::claim::Standing;
use crate::error::TaskError;
use crate::events::{Events, timestamp};
use crate::exec::ExecProcess;
use crate::harden::{BackendKind, ForExecs};
use crate::hooks::Hooks;
use crate::request::{Maker, SandboxRequest, Settled};
use crate::settings::Settings;
use crate::task::{Exit, Heard, Input, Phase, step};
use crate::{paths, stdio};

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
    /// What containerd calls its pid, on the host. 0 before an exec is started.
    pub pid: i32,
    /// As the client asked.
    pub stdio: stdio::Request,
    /// What the shim holds of it.
    pub io: stdio::Io,
    /// What is left of it after the end.
    pub unread: stdio::Unread,
    /// Of a container.
    pub hooks: Arc<Hooks>,
    /// What a container was hardened by, and its execs are.
    pub for_execs: Option<Arc<ForExecs>>,
    /// Whether connections to the pod's loopback, on the host, are carried to it.
    pub forwards: bool,
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
        let (io, unread, hooks, for_execs, forwards, exec, done) = Default::default();
        Self { phase: Phase::Created, pid: 0, stdio, io, unread, hooks, for_execs, forwards, exec, bundle, done }
    }
}

/// What the pod's sandbox is.
#[derive(Clone)]
struct Sandbox {
    maker: Maker,
    backend: Arc<dyn Backend>,
    /// None only where a unit test needs no identity.
    bound: Option<Arc<Bound>>,
}

/// The tasks of one pod and what they share.
pub struct Pod {
    /// Which pod.
    pub place: Place,
    /// Where their events go.
    pub events: Events,
    /// Creates of one pod come one after the other: the first makes the sandbox.
    pub creating: tokio::sync::Mutex<()>,
    /// Notified when the last task is gone and containerd asked for the end.
    pub over: Notify,
    /// containerd has asked for the end, and there was no task.
    unwanted: AtomicBool,
    sandbox: Mutex<Option<Sandbox>>,
    /// Out-of-memory kills that were published.
    oom_kills: AtomicU64,
    processes: Mutex<HashMap<Key, Process>>,
}

impl Pod {
    /// A pod without tasks and without a sandbox.
    pub fn new(place: Place, events: Events) -> Self {
        let (creating, over, unwanted, sandbox, oom_kills, processes) = Default::default();
        Self { place, events, creating, over, unwanted, sandbox, oom_kills, processes }
    }

    /// Whether the sandbox lives and dies with this container.
    pub fn begins_with(&self, id: &str) -> bool {
        id == self.place.group
    }

    /// The directory that a backend sees of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        paths::bundle(&self.place.dir, id)
    }

    fn sandbox(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the pod's sandbox is made by.
    pub fn backend(&self) -> Result<Arc<dyn Backend>, TaskError> {
        let none = || TaskError::NotFound(format!("the sandbox of pod {}", self.place.group));
        self.sandbox().as_ref().map(|sandbox| sandbox.backend.clone()).ok_or_else(none)
    }

    /// What the pod's sandbox is bound to, once there is one.
    pub fn bound(&self) -> Option<Arc<Bound>> {
        self.sandbox().as_ref().and_then(|sandbox| sandbox.bound.clone())
    }

    /// The sandbox for one more container: the pod's, which must be what is asked for, or with the container that the pod
    /// begins with a new one, bound to whom it works for.
    pub async fn choose(
        &self,
        id: &str,
        asked: &SandboxRequest,
        settings: &Settings,
        launch: Launch,
    ) -> Result<(Arc<dyn Backend>, Arc<Bound>, BackendKind), TaskError> {
        if self.begins_with(id) {
            let maker = asked.maker(settings)?;
            let bound = Arc::new(Bound::bind(&self.place, settings, asked, maker.name(), launch).await?);
            let backend = backend::open(&maker, self.place.clone(), settings)?;
            *self.sandbox() = Some(Sandbox { maker, backend, bound: Some(bound) });
        }
        let none = || TaskError::NotFound(format!("the sandbox of pod {}", self.place.group));
        let Sandbox { maker, backend, bound } = self.sandbox().clone().ok_or_else(none)?;
        let bound = bound.ok_or_else(none)?;
        let (bond, network_policy) = (bound.bond(), bound.network_policy());
        let (agent, secrets) = (bond.identity.agent(), bond.asked_secrets.as_slice());
        let claimable = bound.told_of_claim(|claim| !matches!(claim, Standing::Never));
        asked.agrees(&Settled { maker: &maker, agent, secrets, network_policy: &network_policy, claimable })?;
        Ok((backend, bound, BackendKind::of(&maker)))
    }

    /// A sandbox that is bound to nobody.
    #[cfg(test)]
    pub fn adopt(&self, backend: impl Backend + 'static) {
        *self.sandbox() = Some(Sandbox { maker: Maker::Gvisor(None), backend: Arc::new(backend), bound: None });
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

    /// containerd asks for the end, which comes where there is no task. One that is just being made is then made for nobody:
    /// containerd was restarted, or its caller has left. Its Create undoes what it has made, and the end comes after that.
    pub fn end_when_empty(&self) {
        if self.is_empty() {
            self.unwanted.store(true, Ordering::Relaxed);
            if self.creating.try_lock().is_ok() {
                self.over.notify_one();
            }
        }
    }

    /// Whether containerd has given up all that there could be in the pod.
    pub fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }

    /// The pod's containers.
    pub fn inits(&self) -> Vec<Key> {
        self.table().keys().filter(|key| key.is_init()).cloned().collect()
    }

    /// What containerd has of each of them on disk.
    pub fn bundles(&self) -> Vec<PathBuf> {
        let table = self.table();
        table.iter().filter(|(key, _)| key.is_init()).map(|(_, process)| process.bundle.clone()).collect()
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
        let bound = self.bound().filter(|_| key.is_init());
        if let Some(bound) = &bound {
            bound.leave(&key.id); // at once: a client that does not read its output keeps no secret alive
        }
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
            let until = tokio::time::Instant::now() + EXECS_FIRST; // for all together
            for mut done in execs {
                let _ = tokio::time::timeout_at(until, done.wait_for(Option::is_some)).await;
            }
        }
        let oom_killed = self.publish_oom(key);
        if let Some(bound) = bound.filter(|_| self.begins_with(&key.id)) {
            bound.record(vec![Event::SandboxExited { status: exit.status, oom_killed }]);
        }
        if let Err(error) = self.advance(key, "end", Input::Exited(exit)) {
            tracing::debug!(%error, "an exit nobody waits for");
        }
    }

    /// TaskOOM goes before the exit that it explains; whether there was one.
    fn publish_oom(&self, key: &Key) -> bool {
        let backend = self.backend();
        let kills = backend.as_ref().map_or(0, |backend| backend.oom_kills());
        let alone = backend.is_ok_and(|backend| key.is_init() && backend.is_over_its_limit(&key.id));
        let more = self.oom_kills.swap(kills, Ordering::Relaxed) < kills || alone;
        if more {
            let event = ev::TaskOOM { container_id: key.id.clone(), ..Default::default() };
            self.events.publish("/tasks/oom", &event);
        }
        more
    }

    /// Hears of a process's end in a task of its own.
    pub fn heed(self: &Arc<Self>, key: Key) -> Result<(), TaskError> {
        let (pod, backend) = (self.clone(), self.backend()?);
        tokio::spawn(async move {
            let exit = backend.exit(&key).await;
            pod.ended(&key, exit).await;
        });
        Ok(())
    }
}
