//! Sandboxes that another containerd shim v2 makes (Kata's, runc's): we start it in a directory of our own and forward
//! the Task API; names, order of events, hooks and mounts stay ours. Its errors reach the user word for word.

mod events;
mod forward;
mod kata;
mod spawn;
mod sweep;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OnceCell};

use super::{Backend, Made, NewContainer, Place, Ran};
use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::options::runtime_options;
use crate::settings::DelegateSettings;
use crate::stdio;
use crate::task::{Exit, KILLED, Phase};
use crate::tasks::Key;
use crate::{bundle, paths};

use events::{Heard, Listening};
use forward::{BOOT, Downstream, FOR_EVER, PROMPT};
pub use sweep::sweep;

/// A checkpoint writes as much as the sandbox has in memory.
const CHECKPOINT: Duration = Duration::from_secs(600);

/// Another shim, and the pod it works for.
#[derive(Clone, Debug)]
pub struct Shim {
    /// As in runtime.toml.
    name: String,
    /// Found in PATH.
    program: PathBuf,
    place: Place,
}

/// What is kept on disk of it, for `delete`.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    program: PathBuf,
}

impl Shim {
    fn file(dir: &Path) -> PathBuf {
        dir.join("delegate.json")
    }

    /// The one that a pod was made with, from disk; `None` for a pod that is no delegate's.
    pub fn of(place: &Place) -> Option<Self> {
        let kept: Kept = serde_json::from_slice(&fs::read(Self::file(&place.dir)).ok()?).ok()?;
        Some(Self { name: kept.name, program: kept.program, place: place.clone() })
    }

    fn keep(&self) -> io::Result<()> {
        let kept = Kept { name: self.name.clone(), program: self.program.clone() };
        fs::write(Self::file(&self.place.dir), serde_json::to_vec(&kept)?)
    }
}

/// One pod's sandbox.
pub struct Delegate {
    shim: Shim,
    config_path: Option<PathBuf>,
    heard: Heard,
    up: OnceCell<(Downstream, Listening)>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Containers that ended in another way than by their own Delete: the downstream may have left things of them.
    untidy: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Container {
    /// It was killed before it ran, and its shim will not say so.
    killed: Notify,
    /// The downstream has said how its init ended.
    ended: AtomicBool,
}

impl Delegate {
    /// Nothing is started yet.
    pub fn open(place: Place, name: &str, settings: &DelegateSettings) -> Result<Self, TaskError> {
        let Some(program) = paths::in_path(&settings.shim) else {
            let (shim, advice) = (settings.shim.display(), kata::is(&settings.shim).then(kata::advice));
            return Err(TaskError::Invalid(format!(
                "backend {name}: there is no {shim} in containerd's PATH; install it, or set delegates.{name}.shim in runtime.toml{}",
                advice.unwrap_or_default()
            )));
        };
        let shim = Shim { name: name.to_owned(), program, place };
        shim.keep().map_err(|e| TaskError::host("keeping which shim to use", e))?;
        let (heard, up, containers, untidy) = Default::default();
        Ok(Self { shim, config_path: settings.config_path.clone(), heard, up, containers, untidy })
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shim, which the pod's first container starts.
    async fn started(&self) -> Result<&Downstream, TaskError> {
        let start = async || {
            let server = events::listen(&self.shim.events_socket(), self.heard.clone()).await;
            let server = server.map_err(|e| TaskError::host("listening for the downstream shim's events", e))?;
            let address = self.shim.start().await?;
            Ok::<_, TaskError>((Downstream::connect(&self.shim.name, &address).await?, server))
        };
        self.up.get_or_try_init(start).await.map(|(downstream, _)| downstream)
    }

    /// The shim, once there is one.
    fn up(&self) -> Result<&Downstream, TaskError> {
        let gone = || TaskError::NotFound(format!("{}'s shim", self.shim.name));
        self.up.get().map(|(downstream, _)| downstream).ok_or_else(gone)
    }

    /// A call whose answer says nothing.
    async fn ask<Q: Message>(&self, method: &str, request: &Q) -> Result<(), TaskError> {
        self.up()?.call::<_, Empty>(method, request, PROMPT).await.map(drop)
    }

    fn options(&self, of_runc: Option<&Any>) -> MessageField<Any> {
        let configured = self.config_path.as_ref().map(|path| runtime_options(path));
        configured.or_else(|| of_runc.cloned()).into()
    }

    /// Advice beside the downstream's own words.
    fn explain(&self, error: TaskError) -> TaskError {
        match error {
            TaskError::Downstream { code, text } if kata::is(&self.shim.program) => {
                TaskError::Downstream { code, text: text + &kata::advice() }
            }
            error => error,
        }
    }

    /// Forwards CloseIO when the client's input is over and not before: Kata's waits for that end, and lets no other
    /// call in meanwhile.
    fn close_input_when_over(&self, key: &Key, io: &mut stdio::Io) -> Result<(), TaskError> {
        let (over, downstream) = (io.input_over(), self.up()?.clone());
        let request =
            CloseIORequest { id: key.id.clone(), exec_id: key.exec.clone(), stdin: true, ..Default::default() };
        tokio::spawn(async move {
            over.await;
            if let Err(error) = downstream.call::<_, Empty>("CloseIO", &request, PROMPT).await {
                tracing::debug!(%error, "the process had ended before its input");
            }
        });
        Ok(())
    }

    fn untidy(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.untidy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Delegate {
    async fn create(&self, new: NewContainer<'_>) -> Result<Made, TaskError> {
        bundle::write(&new.spec, new.bundle)?;
        let relayed = stdio::relayed(new.stdio, &new.bundle.join("stdin"));
        let (theirs, mut io) = relayed.map_err(|e| TaskError::host("opening stdio", e))?;
        if self.up.get().is_none() && kata::is(&self.shim.program) && kata::runs(Path::new(kata::RUN), new.id) {
            return Err(TaskError::AlreadyExists(format!("a Kata sandbox {}, maybe of another namespace,", new.id)));
        }
        let downstream = self.started().await.map_err(|e| self.explain(e))?;
        self.containers().insert(new.id.to_owned(), Arc::default());
        let request = CreateTaskRequest {
            id: new.id.to_owned(),
            bundle: new.bundle.to_string_lossy().into_owned(),
            terminal: theirs.terminal,
            stdin: theirs.stdin,
            stdout: theirs.stdout,
            stderr: theirs.stderr,
            checkpoint: new.checkpoint.map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default(),
            options: self.options(new.options.of_runc.as_ref()),
            ..Default::default()
        };
        let created = downstream.call::<_, CreateTaskResponse>("Create", &request, BOOT).await;
        let created = created.map_err(|error| {
            self.untidy().insert(new.id.to_owned());
            self.explain(error)
        })?;
        self.close_input_when_over(&Key::init(new.id), &mut io)?;
        Ok(Made { pid: created.pid as i32, io })
    }

    async fn start(&self, id: &str, _: Option<&Path>) -> Result<(), TaskError> {
        let request = StartRequest { id: id.to_owned(), ..Default::default() };
        self.up()?.call::<_, StartResponse>("Start", &request, BOOT).await.map(drop)
    }

    async fn exec(&self, key: &Key, process: &ExecProcess, stdio: &stdio::Request) -> Result<Made, TaskError> {
        let input = paths::bundle(&self.shim.place.dir, &key.id).join(format!("stdin-{}", key.exec));
        let (theirs, mut io) = stdio::relayed(stdio, &input).map_err(|e| TaskError::host("opening stdio", e))?;
        let request = ExecProcessRequest {
            id: key.id.clone(),
            exec_id: key.exec.clone(),
            terminal: theirs.terminal,
            stdin: theirs.stdin,
            stdout: theirs.stdout,
            stderr: theirs.stderr,
            spec: MessageField::some(process.spec.clone()),
            ..Default::default()
        };
        self.ask("Exec", &request).await?;
        let request = StartRequest { id: key.id.clone(), exec_id: key.exec.clone(), ..Default::default() };
        let started = self.up()?.call::<_, StartResponse>("Start", &request, PROMPT).await?;
        self.close_input_when_over(key, &mut io)?;
        Ok(Made { pid: started.pid as i32, io })
    }

    async fn exit(&self, key: &Key) -> Exit {
        let killed = Exit { status: KILLED, at: SystemTime::now() };
        let container = self.containers().get(&key.id).cloned();
        let (Some(container), Ok(downstream)) = (container, self.up()) else { return killed };
        let request = WaitRequest { id: key.id.clone(), exec_id: key.exec.clone(), ..Default::default() };
        tokio::select! {
            () = container.killed.notified(), if key.is_init() => killed,
            answer = downstream.call::<_, WaitResponse>("Wait", &request, FOR_EVER) => match answer {
                Ok(answer) => {
                    container.ended.fetch_or(key.is_init(), Ordering::Relaxed);
                    Exit { status: answer.exit_status, at: time(&answer.exited_at) }
                }
                Err(error) => {
                    tracing::warn!(backend = self.shim.name, sandbox = key.id, %error, "no exit status");
                    self.untidy().insert(key.id.clone());
                    Exit { status: KILLED, at: SystemTime::now() }
                }
            },
        }
    }

    async fn signal(&self, key: &Key, phase: Phase, signal: u32, all: bool) -> Result<(), TaskError> {
        let (id, exec_id) = (key.id.clone(), key.exec.clone());
        let request = KillRequest { id: id.clone(), exec_id, signal, all, ..Default::default() };
        match self.ask("Kill", &request).await {
            Err(TaskError::Downstream { .. }) if phase == Phase::Created => {
                // Kata signals nothing that it has not started, but it deletes it.
                let request = DeleteRequest { id, ..Default::default() };
                self.up()?.call::<_, DeleteResponse>("Delete", &request, PROMPT).await?;
                self.untidy().insert(key.id.clone());
                if let Some(container) = self.containers().get(&key.id) {
                    container.killed.notify_one();
                }
                Ok(())
            }
            Err(TaskError::Gone(..)) => Err(TaskError::NotFound(format!("process of {key}"))),
            answer => answer,
        }
    }

    async fn freeze(&self, id: &str, pause: bool) -> Result<(), TaskError> {
        let id = id.to_owned();
        match pause {
            true => self.ask("Pause", &PauseRequest { id, ..Default::default() }).await,
            false => self.ask("Resume", &ResumeRequest { id, ..Default::default() }).await,
        }
    }

    async fn checkpoint(&self, id: &str, image: &Path, leave_running: bool) -> Result<(), TaskError> {
        let options = CheckpointOptions { exit: !leave_running, ..Default::default() };
        let value = options.write_to_bytes().map_err(|e| TaskError::host("encoding checkpoint options", e))?;
        let options = Any { type_url: "containerd.runc.v1.CheckpointOptions".into(), value, ..Default::default() };
        let path = image.to_string_lossy().into_owned();
        let options = MessageField::some(options);
        let request = CheckpointTaskRequest { id: id.to_owned(), path, options, ..Default::default() };
        self.up()?.call::<_, Empty>("Checkpoint", &request, CHECKPOINT).await.map(drop)
    }

    async fn pids(&self, id: &str, init: u32) -> Result<Vec<u32>, TaskError> {
        let request = PidsRequest { id: id.to_owned(), ..Default::default() };
        let answer = self.up()?.call::<_, PidsResponse>("Pids", &request, PROMPT).await?;
        let pids: Vec<_> = answer.processes.into_iter().map(|process| process.pid).collect();
        Ok(if pids.is_empty() { vec![init] } else { pids })
    }

    async fn stats(&self, id: &str) -> Result<Any, TaskError> {
        let request = StatsRequest { id: id.to_owned(), ..Default::default() };
        let answer = self.up()?.call::<_, StatsResponse>("Stats", &request, PROMPT).await?;
        answer
            .stats
            .into_option()
            .ok_or_else(|| TaskError::host("asking the downstream shim for metrics", "it has none"))
    }

    async fn update(&self, id: &str, resources: &Any) -> Result<(), TaskError> {
        if resources.value.is_empty() {
            return Err(TaskError::Invalid("resources: none; give linux.resources of the OCI spec".into()));
        }
        let resources = MessageField::some(resources.clone());
        self.ask("Update", &UpdateTaskRequest { id: id.to_owned(), resources, ..Default::default() }).await
    }

    async fn connect(&self, id: &str, _: u16, _: OwnedFd) -> Result<(), TaskError> {
        Err(TaskError::Unimplemented(format!("{id}: connections into it are its own shim's to carry")))
    }

    async fn resized(&self, key: &Key, width: u32, height: u32) -> Result<(), TaskError> {
        let (id, exec_id) = (key.id.clone(), key.exec.clone());
        self.ask("ResizePty", &ResizePtyRequest { id, exec_id, width, height, ..Default::default() }).await
    }

    fn ran(&self) -> Result<Ran, TaskError> {
        // What it makes sandboxes with, it does not tell.
        Ok(Ran { program: self.shim.program.clone(), platform: "unknown".into() })
    }

    fn oom_kills(&self) -> u64 {
        self.heard.oom_kills.load(Ordering::Relaxed)
    }

    async fn delete_exec(&self, key: &Key) {
        let request = DeleteRequest { id: key.id.clone(), exec_id: key.exec.clone(), ..Default::default() };
        if let Ok(downstream) = self.up()
            && let Err(error) = downstream.call::<_, DeleteResponse>("Delete", &request, PROMPT).await
        {
            tracing::debug!(%error, "the downstream shim keeps an exec, or never had it");
        }
        let _ = fs::remove_file(paths::bundle(&self.shim.place.dir, &key.id).join(format!("stdin-{}", key.exec)));
    }

    async fn delete(&self, id: &str) {
        let known = self.containers().remove(id);
        if let (Some(container), Ok(downstream)) = (known, self.up()) {
            let well = match container.ended.load(Ordering::Relaxed) {
                true => self.shim.forget(downstream, id).await,
                false => self.shim.end(downstream, id).await,
            };
            if !well {
                self.untidy().insert(id.to_owned());
            }
        }
        if self.containers().is_empty() {
            let untidy = std::mem::take(&mut *self.untidy());
            self.shim.dismiss(self.up().ok(), untidy).await;
        }
    }

    async fn end(&self) {
        let ids: Vec<_> = self.containers().keys().cloned().collect();
        for id in ids {
            let signal = Signal::SIGKILL as u32;
            let _ = self.ask("Kill", &KillRequest { id, signal, all: true, ..Default::default() }).await; // it may have ended
        }
    }
}

/// Kata says the year 1 where it does not know.
fn time(at: &MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp>) -> SystemTime {
    let since = at.as_ref().filter(|at| at.seconds > 0 && at.nanos >= 0);
    since.map_or_else(SystemTime::now, |at| SystemTime::UNIX_EPOCH + Duration::new(at.seconds as u64, at.nanos as u32))
}
