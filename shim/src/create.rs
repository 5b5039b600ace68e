//! From request to first instruction, and back: the RPCs Create, Start and Delete of a container. (The shim's `start`
//! action is `start.rs`.) A step of Create that fails undoes those before it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::MessageField;
use nix::sys::signal::Signal;
use serde_json::json;
use trust::attestation::predicate::Launch;
use trust::audit::Event;

use crate::args::{IDENTIFIER, is_identifier};
use crate::backend::{Made, NewContainer};
use crate::checkpoint::manifest;
use crate::error::TaskError;
use crate::events::timestamp;
use crate::harden::{BackendKind, ForExecs, Policy};
use crate::hooks::{Hooks, Moment};
use crate::image::Asked;
use crate::request::SandboxRequest;
use crate::task::{Exit, Input, Phase};
use crate::tasks::{Key, Pod, Process};
use crate::{attest, bundle, cgroup, confine, exec, forward, harden, mounts, options, paths, stdio, sys};

/// The status of a process that could not be started.
const NOT_STARTED: u32 = 255;
/// After so long a started task's shim has said what there is to say of it, and is idle.
const SETTLED: Duration = Duration::from_millis(200);
/// Linux has no signal above it (SIGRTMAX).
const LAST_SIGNAL: u32 = 64;

/// Create: the sandbox is there and nothing of the workload runs. Returns the task's pid.
pub async fn create(pod: &Arc<Pod>, req: CreateTaskRequest) -> Result<u32, TaskError> {
    let _one_at_a_time = pod.creating.lock().await;
    let created = create_alone(pod, req).await;
    if pod.is_unwanted() {
        pod.over.notify_one();
    }
    created
}

async fn create_alone(pod: &Arc<Pod>, req: CreateTaskRequest) -> Result<u32, TaskError> {
    named("id", &req.id)?;
    let key = Key::init(&req.id);
    if pod.has(&key) {
        return Err(TaskError::AlreadyExists(key.to_string()));
    }
    let mut step = "options";
    let wanted = |process| match pod.is_unwanted() {
        true => Err(TaskError::host("creating the task", "containerd has given it up")),
        false => Ok(process),
    };
    let process = match make(pod, &req, &mut step).await.and_then(wanted) {
        Ok(process) => process,
        Err(error) => {
            clean(pod, &req.id, Path::new(&req.bundle)).await;
            if let Some(bound) = pod.bound() {
                let error = error.to_string().as_str().into();
                bound.record(vec![Event::SandboxCreateFailed { step: step.into(), error }]);
            }
            return Err(error);
        }
    };
    let pid = process.pid;
    pod.insert(key.clone(), process);
    let event = ev::TaskCreate { container_id: req.id, bundle: req.bundle, pid: pid as u32, ..Default::default() };
    pod.events.publish("/tasks/create", &event);
    pod.heed(key)?;
    sys::give_memory_back();
    Ok(pid as u32)
}

/// Names become names of directories and sockets.
pub fn named(field: &'static str, name: &str) -> Result<(), TaskError> {
    match is_identifier(name) {
        true => Ok(()),
        false => Err(TaskError::Invalid(format!("{field} {name:?} {IDENTIFIER}"))),
    }
}

/// `step` says how far it came.
async fn make(pod: &Pod, req: &CreateTaskRequest, step: &mut &'static str) -> Result<Process, TaskError> {
    let (id, theirs, ours) = (req.id.as_str(), PathBuf::from(&req.bundle), pod.bundle(&req.id));
    let (settings, options) = options::read(req.options.as_ref(), &paths::settings())?;
    let mut spec = bundle::read(&theirs)?;
    let asked = SandboxRequest::parse(&spec, &settings)?;
    if pod.begins_with(id) {
        confine::confine(BackendKind::of(&asked.maker(&settings)?)); // nothing of the pod runs yet
    }
    fs::create_dir_all(&ours).map_err(|e| TaskError::host(format!("creating {}", ours.display()), e))?;
    let (checkpoint, launch) = match req.checkpoint.as_str() {
        "" => (None, Launch::Cold {}),
        _ if asked.claimable => {
            let why = "a sandbox that goes on from a checkpoint is not handed over: omit creto.dev/claimable";
            return Err(TaskError::Invalid(why.into()));
        }
        from => {
            let kept = keep(Path::new(from), checkpoint(&ours)).await?;
            let restored_from = manifest(&kept).await.map_err(|e| TaskError::host("reading the checkpoint", e))?;
            (Some(kept), Launch::Restored { restored_from })
        }
    };

    *step = "identity"; // no identity, no sandbox
    let (backend, bound, kind) = pod.choose(id, &asked, &settings, launch).await?;
    if let Some(cgroup) = &options.shim_cgroup {
        cgroup::join(cgroup).map_err(|e| TaskError::host(format!("shim_cgroup {}", cgroup.display()), e))?;
    }

    *step = "hardening";
    let hooks = Hooks::take(&mut spec, id, &theirs)?;
    let (isolation, sysctls) = (settings.isolation, settings.gvisor.unsupported_sysctls);
    let policy = Policy { profile: asked.profile, kind, build: backend.build(), isolation, sysctls };
    let mut spec = harden::harden(harden::real_sources(spec), policy)?;
    let for_execs = Some(Arc::new(ForExecs::of(&spec, policy)));
    let host_network = harden::has_host_network(&spec);
    if host_network {
        bound.may_share_network()?;
    }
    let forwards = kind == BackendKind::Gvisor && !host_network && forward::is_asked_of(&spec);

    *step = "rootfs";
    let rootfs = theirs.join("rootfs");
    mounts::mount_all(&req.rootfs, &rootfs).map_err(|why| TaskError::host("rootfs", why))?;
    if mounts::make_room(bundle::root(&spec), &rootfs, &ours).map_err(|why| TaskError::host("rootfs", why))? {
        spec["root"] = json!({"path": rootfs, "readonly": true}); // as it was
    }
    bound.enter(id, &mut spec)?;
    bundle::find_mounts(&spec)?;
    bundle::find_program(&spec)?;

    *step = "sandbox"; // nothing of the workload runs
    let (stdin, stdout, stderr) = (req.stdin.clone(), req.stdout.clone(), req.stderr.clone());
    let stdio = stdio::Request { stdin, stdout, stderr, terminal: req.terminal, owner: options.io_owner };
    let checkpoint = checkpoint.as_deref();
    let image = pod.begins_with(id).then(|| Asked::about(&pod.place, &spec)); // answered while the sandbox is made
    let new = NewContainer { id, spec, bundle: &ours, stdio: &stdio, options: &options, checkpoint };
    let Made { pid, io } = backend.create(new).await?;

    *step = "hooks";
    hooks.run(Moment::Created, pid, &ours).await?;

    *step = "attestation"; // what is there, read back; not what was asked for
    if let Some(image) = image {
        let facts = attest::facts(&bound.backend(), &backend.ran()?, &ours, pid, image.image().await).await?;
        let events = bound.attest(facts, pid)?;
        bound.record(events);
        bound.keep_fresh();
    } else {
        bound.limits_may_have_changed();
    }
    Ok(Process { pid, io, hooks: Arc::new(hooks), for_execs, forwards, ..Process::new(stdio, theirs) })
}

/// Where a checkpoint waits for Start.
fn checkpoint(bundle: &Path) -> PathBuf {
    bundle.join("checkpoint")
}

/// containerd removes a checkpoint's directory as soon as Create has answered.
async fn keep(from: &Path, to: PathBuf) -> Result<PathBuf, TaskError> {
    let (source, target) = (from.to_owned(), to.clone());
    let copied = tokio::task::spawn_blocking(move || -> io::Result<()> {
        fs::create_dir_all(&target)?;
        for file in fs::read_dir(&source)? {
            let file = file?;
            if file.file_type()?.is_file() {
                fs::copy(file.path(), target.join(file.file_name()))?;
            }
        }
        Ok(())
    });
    let doing = || format!("reading the checkpoint {}", from.display());
    copied.await.map_err(|e| TaskError::host(doing(), e))?.map_err(|e| TaskError::host(doing(), e))?;
    Ok(to)
}

/// Undoes `make`, and is all there is to do when a task is deleted. Idempotent.
async fn clean(pod: &Pod, id: &str, bundle: &Path) {
    if let Ok(backend) = pod.backend() {
        backend.delete(id).await;
    }
    if let Some(bound) = pod.bound() {
        bound.leave(id);
        match pod.begins_with(id) {
            true => bound.unfence().await,
            false => bound.limits_may_have_changed(),
        }
    }
    let _ = fs::remove_dir_all(pod.bundle(id));
    mounts::unmount_all(&bundle.join("rootfs"));
}

/// Undoes all that is in a pod of which containerd knows nothing any more.
pub async fn abandon(pod: &Pod) {
    for key in pod.inits() {
        if let Ok(bundle) = pod.with(&key, |p| p.bundle.clone()) {
            clean(pod, &key.id, &bundle).await;
        }
        pod.remove(&key);
    }
}

/// Start, of a container or an exec. Returns its pid.
pub async fn start(pod: &Arc<Pod>, key: &Key) -> Result<u32, TaskError> {
    pod.advance(key, "start", Input::Start)?;
    let started = if key.is_init() { start_init(pod, key).await } else { exec::start(pod, key).await };
    if let Err(error) = started {
        let _ = pod.with(key, |p| std::mem::take(&mut p.io)); // its readers see the end
        pod.advance(key, "start", Input::StartFailed(Exit { status: NOT_STARTED, at: SystemTime::now() }))?;
        return Err(error);
    }
    pod.advance(key, "start", Input::Started)?;
    pod.with(key, |p| {
        p.io.begin_input();
        p.pid as u32
    })
}

async fn start_init(pod: &Arc<Pod>, key: &Key) -> Result<(), TaskError> {
    let bundle = pod.bundle(&key.id);
    let saved = checkpoint(&bundle);
    let (hooks, pid, forwards) = pod.with(key, |p| (p.hooks.clone(), p.pid, p.forwards))?;
    if let Some(bound) = pod.bound().filter(|_| pod.begins_with(&key.id)) {
        bound.starts(pid).await?; // the first instruction runs behind the fence
    }
    pod.backend()?.start(&key.id, saved.exists().then_some(saved.as_path())).await?;
    let _ = fs::remove_dir_all(&saved); // most have none
    if forwards {
        forward::serve(pod, key, pid);
    }
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        sys::give_memory_back();
    });
    after(&hooks, Moment::Started, pid, &bundle).await;
    Ok(())
}

/// Hooks that can no longer stop anything.
async fn after(hooks: &Hooks, moment: Moment, pid: i32, scratch: &Path) {
    if let Err(error) = hooks.run(moment, pid, scratch).await {
        tracing::warn!(%error, "a hook failed");
    }
}

/// Kill. A second one of a process that has ended is NotFound: callers rely on it.
pub async fn kill(pod: &Pod, key: &Key, signal: u32, all: bool) -> Result<(), TaskError> {
    if signal == 0 || signal > LAST_SIGNAL {
        return Err(TaskError::Invalid(format!("signal {signal}: give a number from 1 to {LAST_SIGNAL}")));
    }
    let phase = pod.with(key, |p| p.phase)?;
    match phase {
        Phase::Stopped(_) => return Err(TaskError::NotFound(format!("process of {key}"))),
        Phase::Created if !key.is_init() => {
            return Err(TaskError::WrongPhase { verb: "kill", what: key.to_string(), phase });
        }
        _ => {}
    }
    let backend = pod.backend()?;
    backend.signal(key, phase, signal, all).await?;
    if phase == Phase::Paused && signal == Signal::SIGKILL as u32 {
        backend.freeze(&key.id, false).await?; // frozen, it would never die of it
    }
    Ok(())
}

/// Delete of a container or an exec that has ended, or of an exec that was never started.
pub async fn delete(pod: &Pod, key: &Key) -> Result<(u32, Exit), TaskError> {
    let (phase, pid, bundle) = pod.with(key, |p| (p.phase, p.pid as u32, p.bundle.clone()))?;
    let exit = match phase {
        Phase::Stopped(exit) => exit,
        Phase::Created if !key.is_init() => Exit { status: 0, at: SystemTime::now() },
        phase => return Err(TaskError::WrongPhase { verb: "delete", what: key.to_string(), phase }),
    };
    if !key.is_init() {
        pod.backend()?.delete_exec(key).await;
        pod.remove(key);
        return Ok((pid, exit));
    }
    let hooks = pod.with(key, |p| p.hooks.clone())?;
    clean(pod, &key.id, &bundle).await;
    after(&hooks, Moment::Stopped, 0, &bundle).await;
    pod.remove(key);
    let event = ev::TaskDelete {
        container_id: key.id.clone(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..Default::default()
    };
    pod.events.publish("/tasks/delete", &event);
    if let Some(bound) = pod.bound().filter(|_| pod.begins_with(&key.id)) {
        bound.record(vec![Event::SandboxDeleted {}]);
    }
    Ok((pid, exit))
}
