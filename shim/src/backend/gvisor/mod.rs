//! gVisor: `runsc` by its command line for a sandbox's life, by its control socket for all that happens in it (`calls` has
//! what becomes of a build that does not answer there).

mod attached;
mod calls;
pub mod capabilities;
pub mod cli;
pub mod control;
mod cover;
mod inside;
mod limits;
mod member;
mod memory_watch;
pub mod probe;
mod spec;
pub mod sweep;
pub mod urpc;
mod view;
mod wall;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Backend, Made, NewContainer, Place, Ran};
use crate::cgroup::Cgroup;
use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::harden::Build;
use crate::stdio::{self, ConsoleSocket};
use crate::task::{Exit, KILLED, Phase};
use crate::tasks::Key;
use crate::{bundle, harden, interfaces, paths, reaper, settings};

use calls::{Calls, Running, Target};
use cli::{Network, Runsc};
use limits::Limits;
use member::Members;
use probe::Features;

/// One pod's sandbox.
pub struct Gvisor {
    place: Place,
    root_id: String,
    runsc: Runsc,
    calls: Arc<Calls>,
    /// The sandbox's process on the host.
    pid: OnceLock<i32>,
    host_network: OnceLock<bool>,
    /// The control groups that its containers were to be in. On disk, too, where `delete` may have removed that already.
    groups: Mutex<HashMap<String, PathBuf>>,
    measured: OnceLock<Measured>,
    members: Arc<Members>,
    limits: Limits,
    execs: Mutex<HashMap<Key, Running>>,
}

/// The control group that the sandbox was put into; it outlives the process until it is deleted.
struct Measured {
    cgroup: Cgroup,
    /// Out-of-memory kills before there was a sandbox.
    kills: u64,
    /// Whether it is not that of this shim, too.
    is_own: bool,
}

impl Gvisor {
    /// Nothing is made yet. The sandbox will be one of this runsc, or of the one in PATH, and spoken to by `control`.
    pub fn open(place: Place, runsc: Option<&Path>, control: settings::Control) -> Result<Self, TaskError> {
        if !paths::has_room(&place.dir) {
            let dir = place.dir.display();
            return Err(TaskError::Invalid(format!(
                "{dir} is too long for a socket's name: choose a shorter CRETO_ROOT"
            )));
        }
        let doing = |e| TaskError::host("keeping which runsc to use", e);
        std::fs::create_dir_all(paths::runsc_root(&place.dir)).map_err(doing)?;
        let of_the_pod = Runsc::new(&place.dir);
        of_the_pod.choose(runsc).map_err(doing)?;
        let root_id = paths::runsc_id(&place.group);
        let calls = Arc::new(Calls::new(of_the_pod.clone(), &root_id, control));
        let (pid, host_network, groups, measured, members, limits, execs) = Default::default();
        Ok(Self {
            place,
            root_id,
            runsc: of_the_pod,
            calls,
            pid,
            host_network,
            groups,
            measured,
            members,
            limits,
            execs,
        })
    }

    /// Whether the sandbox lives and dies with this container.
    fn is_root(&self, id: &str) -> bool {
        id == self.place.group
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<String, PathBuf>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exec that was started and not deleted.
    fn exec_of(&self, key: &Key) -> Option<Running> {
        self.execs().get(key).cloned()
    }

    /// The init's streams or terminal; a member's streams wait for its start, for runsc takes them only then.
    async fn make(&self, new: &NewContainer<'_>) -> Result<Made, TaskError> {
        let (id, request) = (new.id, new.stdio);
        let opening = |e| TaskError::host("opening stdio", e);
        let create = |stdio: Option<[OwnedFd; 3]>, console: Option<std::path::PathBuf>| async move {
            let systemd = new.options.systemd_cgroup || spec::is_systemds(&new.spec);
            let (bundle, id) = (new.bundle, paths::runsc_id(id));
            self.runsc.create(bundle, &id, stdio, console.as_deref(), systemd, self.network()).await
        };
        if request.terminal {
            let terminal = stdio::open_terminal(request, &self.place.namespace, id).await.map_err(opening)?;
            // Not in the bundle: a pod's ids are so long that its path would not fit into a socket's name.
            let socket = ConsoleSocket::listen(&self.place.dir).map_err(opening)?;
            let pid = create(None, Some(socket.path().to_owned())).await?;
            let primary = socket.receive().map_err(opening)?;
            return Ok(Made { pid, io: terminal.over(primary, request).map_err(opening)? });
        }
        let (fds, io) = stdio::open(request, &self.place.namespace, id).await.map_err(opening)?;
        let pid = match self.is_root(id) {
            true => create(Some(fds), None).await?,
            false => {
                let pid = create(None, None).await?;
                self.members.give(id, fds);
                pid
            }
        };
        Ok(Made { pid, io })
    }

    fn measure(&self, pid: i32) {
        match Cgroup::of(pid) {
            Ok(cgroup) => {
                let kills = cgroup.oom_kills();
                let is_own = Cgroup::of(std::process::id() as i32).is_ok_and(|ours| !cgroup.is_shared_with(&ours));
                let _ = self.measured.set(Measured { cgroup, kills, is_own }); // the sandbox's, by its first container
            }
            Err(error) => tracing::warn!(%error, "the sandbox's control group is not known: no metrics"),
        }
    }

    /// Where there is no interface but a loopback, there is nothing to copy, and runsc would copy not even a loopback that
    /// nobody brought up.
    fn network(&self) -> Network {
        if self.host_network.get() == Some(&true) {
            return Network::Host;
        }
        match self.pid.get().is_some_and(|pid| interfaces::is_sealed(&interfaces::of(*pid))) {
            true => Network::Loopback,
            false => Network::Sandbox,
        }
    }
}

#[async_trait]
impl Backend for Gvisor {
    fn build(&self) -> Build {
        let known = self.runsc.known();
        // Where there is none, Create says that: it is no build's fault.
        if known.runsc().is_empty() { Build::default() } else { Features::probe(&known).build() }
    }

    async fn create(&self, mut new: NewContainer<'_>) -> Result<Made, TaskError> {
        cover::cover(&mut new.spec, new.bundle)?;
        self.note_limits(new.id, &new.spec)?;
        spec::adapt(&mut new.spec, &self.root_id, self.calls.inside(), self.is_root(new.id))?;
        if let Some(checkpoint) = new.checkpoint {
            spec::restore_args(&mut new.spec, checkpoint)?;
        }
        bundle::write(&new.spec, new.bundle)?;
        // The sandbox's, by its first container.
        self.host_network.get_or_init(|| harden::has_host_network(&new.spec));
        if let Some(group) = spec::cgroup(&new.spec) {
            self.groups().insert(new.id.to_owned(), group);
        }
        let Made { pid, io } = self.make(&new).await?;
        let pid = *self.pid.get_or_init(|| pid);
        self.measure(pid);
        match self.is_root(new.id) {
            true => self.calls.learn().await,
            false => self.move_wall(false),
        }
        Ok(Made { pid, io })
    }

    async fn start(&self, id: &str, checkpoint: Option<&Path>) -> Result<(), TaskError> {
        let (network, runsc_id) = (self.network(), paths::runsc_id(id));
        // What is held inside is so before its first instruction; for so long the pod stands still.
        let stands = checkpoint.is_none() && self.is_held_inside(id);
        if stands {
            self.calls.pause(&runsc_id, true).await?;
        }
        let started = async {
            match checkpoint {
                None => self.runsc.start(&runsc_id, network, self.members.take(id)).await?,
                Some(image) => self.runsc.restore(&runsc_id, network, image).await?,
            }
            self.members.started(id);
            let held = self.hold(id).await;
            if held.is_err() {
                let _ = self.calls.signal(&runsc_id, Target::All, Signal::SIGKILL as u32).await; // it may have ended
            }
            held
        };
        let started = started.await;
        match stands {
            true => self.calls.pause(&runsc_id, false).await.and(started),
            false => started,
        }
    }

    async fn exec(&self, key: &Key, p: &ExecProcess, request: &stdio::Request) -> Result<Made, TaskError> {
        let opening = |e| TaskError::host("opening stdio", e);
        let (fds, mut io) = stdio::open(request, &self.place.namespace, &key.id).await.map_err(opening)?;
        let (calls, cid) = (self.calls.clone(), paths::runsc_id(&key.id));
        let bundle = paths::bundle(&self.place.dir, &key.id);
        let running = calls.exec(&cid, p, request.terminal, fds, bundle).await?;
        self.execs().insert(key.clone(), running.clone());
        if let Some(mut typed) = io.typed_signals() {
            tokio::spawn(async move {
                while let Some(signal) = typed.recv().await {
                    let _ = calls.signal(&cid, Target::Foreground(&running), signal as u32).await; // it may be gone
                }
            });
        }
        Ok(Made { pid: self.pid.get().copied().unwrap_or_default(), io })
    }

    async fn exit(&self, key: &Key) -> Exit {
        let id = paths::runsc_id(&key.id);
        let killed = || Exit { status: KILLED, at: SystemTime::now() };
        if !key.is_init() {
            let Some(running) = self.exec_of(key) else { return killed() };
            return self.calls.exec_exit(&id, &running).await;
        }
        if self.is_root(&key.id) {
            let Some(pid) = self.pid.get() else { return killed() };
            return reaper::exit_of(*pid).await; // the sandbox process ends with its root container's status
        }
        match self.members.runs(&key.id).await {
            true => {
                let exit = self.calls.container_exit(&id).await;
                self.members.ended(&key.id);
                exit
            }
            false => killed(),
        }
    }

    async fn signal(&self, key: &Key, phase: Phase, signal: u32, all: bool) -> Result<(), TaskError> {
        if phase == Phase::Created {
            // Nothing of the workload runs yet: a signal would find nobody, and whoever sends one wants its end.
            match self.pid.get().filter(|_| self.is_root(&key.id)) {
                Some(pid) => drop(nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL)),
                None => self.members.killed(&key.id),
            }
            return Ok(());
        }
        let exec = self.exec_of(key);
        let target = match &exec {
            _ if all => Target::All,
            None => Target::Init,
            Some(running) => Target::Exec(running),
        };
        self.calls.signal(&paths::runsc_id(&key.id), target, signal).await
    }

    async fn freeze(&self, id: &str, pause: bool) -> Result<(), TaskError> {
        self.calls.pause(&paths::runsc_id(id), pause).await
    }

    async fn checkpoint(&self, id: &str, image: &Path, leave_running: bool) -> Result<(), TaskError> {
        if !self.is_root(id) || !self.members.is_empty() {
            let why = "a pod of several containers cannot be checkpointed one container at a time";
            return Err(TaskError::Unimplemented(format!("{id}: {why}")));
        }
        let args = spec::args(&paths::bundle(&self.place.dir, id))?; // now: where it ends, Delete may be faster
        self.runsc.checkpoint(&paths::runsc_id(id), image, leave_running).await?;
        spec::save_args(&args, image)
    }

    async fn pids(&self, id: &str, init: u32) -> Result<Vec<u32>, TaskError> {
        // The host's view, as every client expects: the sandbox and the container's gofer. Pids of the inside would
        // name strangers here.
        Ok([Some(init), self.runsc.gofer(&self.root_id, &paths::runsc_id(id))].into_iter().flatten().collect())
    }

    async fn stats(&self, id: &str) -> Result<Any, TaskError> {
        self.metrics(id).await
    }

    async fn update(&self, id: &str, resources: &Any) -> Result<(), TaskError> {
        self.change_limits(id, resources).await
    }

    async fn connect(&self, id: &str, port: u16, stream: OwnedFd) -> Result<(), TaskError> {
        self.calls.connect(&paths::runsc_id(id), port, stream).await
    }

    async fn resized(&self, key: &Key, _: u32, _: u32) -> Result<(), TaskError> {
        if let Some(running) = self.exec_of(key) {
            // As with typed keys, the kernel knows nobody to tell. A process without a terminal is not told either.
            let (id, news) = (paths::runsc_id(&key.id), Signal::SIGWINCH as u32);
            let _ = self.calls.signal(&id, Target::Foreground(&running), news).await;
        }
        Ok(())
    }

    fn ran(&self) -> Result<Ran, TaskError> {
        let pid = self.pid.get().ok_or_else(|| TaskError::NotFound("the sandbox's process".into()))?;
        // What runs, not what was asked for: a link may lead elsewhere by now.
        Ok(Ran { program: format!("/proc/{pid}/exe").into(), platform: self.runsc.platform(&self.root_id)? })
    }

    fn oom_kills(&self) -> u64 {
        self.measured.get().map_or(0, |m| m.cgroup.oom_kills().saturating_sub(m.kills))
    }

    fn is_over_its_limit(&self, id: &str) -> bool {
        self.members.was_over(id)
    }

    async fn delete_exec(&self, key: &Key) {
        self.execs().remove(key);
    }

    async fn delete(&self, id: &str) {
        if let Err(error) = self.runsc.delete(&paths::runsc_id(id)).await {
            tracing::warn!(sandbox = id, %error, "runsc left something");
        }
        let group = self.groups().remove(id);
        if let Some(group) = group {
            sweep::group(&self.runsc, &group, self.is_root(id)).await;
        }
        self.members.remove(id);
        self.move_wall(false);
        self.execs().retain(|exec, _| exec.id != id);
    }

    async fn end(&self) {
        if let Some(pid) = self.pid.get() {
            let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL); // already gone: fine
        }
    }
}
