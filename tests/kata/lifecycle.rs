//! From Create to the daemon's end: what the RPCs that change a task's phase do.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use containerd_shim_protos::api::*;
use containerd_shim_protos::events::task::*;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics::*;
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{self, Code};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{Config, Copies, Order, sandbox_of};
use crate::events::{AFTER_REPLY, exited_at};
use crate::guest::{self, Guest};
use crate::inside::{ContainerSpec, Mount, Place};
use crate::leftovers::Leftovers;
use crate::sandbox::{Container, Exit, Phase, Process, Sandbox};
use crate::service::{Service, unknown};
use crate::stdio::{Paths, Stdios};

/// Longer is not waited for a start event that shall come before the reply: who takes events may hold them back.
const START_FIRST: Duration = Duration::from_millis(50);
/// Nor for an exit: most processes run on.
const EXIT_FIRST: Duration = Duration::from_millis(50);
/// But where a test asked for it.
const EXIT_SURELY_FIRST: Duration = Duration::from_secs(2);

impl Service {
    /// Create: gives the pid.
    pub fn make(&self, sandbox: &mut Sandbox, req: &CreateTaskRequest) -> ttrpc::Result<u32> {
        let mut characters = req.id.chars();
        let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
        let rest = characters.as_str();
        if !first || rest.is_empty() || !rest.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            return Err(unknown("invalid container/sandbox ID (should match \"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$\")"));
        }
        let in_pod = sandbox_of(&Path::new(&req.bundle).join("config.json")).is_some_and(|pod| pod != req.id);
        if sandbox.containers.contains_key(&req.id) || sandbox.created && !in_pod {
            return Err(unknown(format!("cannot create another sandbox in sandbox: {}", self.call.id)));
        }
        let made = match (in_pod, sandbox.created) {
            (false, _) => self.boot(sandbox, req).and_then(|()| self.add(sandbox, req)),
            (true, true) => self.add(sandbox, req),
            (true, false) => Err(unknown("BUG: Cannot start the container, since the sandbox hasn't been created")),
        };
        if let Err(error) = made {
            if !in_pod {
                sandbox.stop_vm(); // §3: no VM left, no event
                (sandbox.created, sandbox.pid, sandbox.failed) = (false, 0, true);
            }
            return Err(error);
        }
        let io = TaskIO {
            stdin: req.stdin.clone(),
            stdout: req.stdout.clone(),
            stderr: req.stderr.clone(),
            terminal: req.terminal,
            ..Default::default()
        };
        let event = TaskCreate {
            container_id: req.id.clone(),
            bundle: req.bundle.clone(),
            rootfs: req.rootfs.clone(),
            io: MessageField::some(io),
            pid: sandbox.pid,
            ..Default::default()
        };
        self.tell(sandbox, TASK_CREATE_EVENT_TOPIC, &event);
        Ok(sandbox.pid)
    }

    fn boot(&self, sandbox: &mut Sandbox, req: &CreateTaskRequest) -> ttrpc::Result<()> {
        sandbox.config = Config::of(req.options.as_ref())?;
        sandbox.config.check()?;
        let leftovers = Leftovers::of(&req.id).map_err(unknown)?;
        if leftovers.sandbox().exists() {
            let text = "failed to set into network namespace 3 while creating netlink socket: invalid argument";
            return Err(unknown(text));
        }
        let guest = Guest::boot(&leftovers).map_err(unknown)?;
        // §2: into the working directory
        let monitor = format!("unix://{}", leftovers.sandbox().join("shim-monitor.sock").display());
        fs::write("monitor_address", monitor).map_err(unknown)?;
        (sandbox.created, sandbox.failed) = (true, false);
        (sandbox.pid, sandbox.vm) = (guest.pid(), Some((guest, leftovers)));
        Ok(())
    }

    fn add(&self, sandbox: &mut Sandbox, req: &CreateTaskRequest) -> ttrpc::Result<()> {
        let bundle = Path::new(&req.bundle);
        for mount in &req.rootfs {
            let (kind, options) = (mount.type_.clone(), mount.options.clone());
            let one = Mount { destination: bundle.join("rootfs"), kind, source: mount.source.clone(), options };
            fs::create_dir_all(&one.destination)
                .and_then(|()| one.mount(&one.source, &one.destination))
                .map_err(unknown)?;
        }
        let config = fs::read(bundle.join("config.json")).map_err(unknown)?;
        let mut spec: ContainerSpec = serde_json::from_slice(&config).map_err(unknown)?;
        spec.root.path = bundle.join(&spec.root.path).canonicalize().map_err(unknown)?;
        let (guest, _) = sandbox.vm.as_ref().ok_or_else(|| unknown("Sandbox not running"))?;
        let mut holder = guest.container(&spec).map_err(unknown)?;
        if !holder.finds(&spec.process).map_err(unknown)? {
            return Err(get_rpc_status(Code::INTERNAL, no_program(&spec.process.args)));
        }
        let paths = Paths {
            stdin: req.stdin.clone(),
            stdout: req.stdout.clone(),
            stderr: req.stderr.clone(),
            terminal: req.terminal,
        };
        let (bundle, root) = (req.bundle.clone(), spec.root.path);
        let init = Process::new(spec.process, paths);
        sandbox.containers.insert(req.id.clone(), Container { bundle, root, holder, init, execs: Default::default() });
        Ok(())
    }

    /// Start: gives the pid. §4: start, exec-started and exit come before or after the reply.
    pub fn begin(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let mut sandbox = self.lock();
        let in_turn = (self.call.id.bytes().map(u32::from).sum::<u32>() + sandbox.starts).is_multiple_of(2);
        let event_first = match sandbox.config.order {
            Order::EventFirst => Some(EXIT_SURELY_FIRST),
            Order::ReplyFirst => None,
            Order::InTurn => in_turn.then_some(EXIT_FIRST),
        };
        sandbox.starts += 1;
        self.launch(&mut sandbox, id, exec)?;
        let (pid, copies) = (sandbox.pid, sandbox.config.events);
        let ending = sandbox.process(id, exec)?.ending.clone();
        let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
        let delay = if event_first.is_some() { Duration::ZERO } else { AFTER_REPLY };
        let taken = match exec {
            "" => {
                let event = TaskStart { container_id, pid, ..Default::default() };
                self.events.publish(TASK_START_EVENT_TOPIC, &event, copies, delay)
            }
            _ => {
                let event = TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
                self.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event, copies, delay)
            }
        };
        drop(sandbox); // an exit needs the lock
        if let Some(patience) = event_first {
            let _ = taken.recv_timeout(START_FIRST);
            ending.wait_published(patience);
        }
        Ok(pid)
    }

    fn launch(&self, sandbox: &mut Sandbox, id: &str, exec: &str) -> ttrpc::Result<()> {
        let phase = sandbox.process(id, exec)?.phase;
        if phase != Phase::Created {
            if exec.is_empty() {
                // §3: from here on Wait says 255, no exit is told, and Shutdown hangs
                let ending = &sandbox.process(id, exec)?.ending;
                ending.silence();
                ending.come(255);
                sandbox.stuck = true;
            }
            return Err(unknown("Can not move from 0xc0000b8f50 to running"));
        }
        let Sandbox { vm: Some((guest, _)), containers, pid: vmm, .. } = sandbox else {
            return Err(unknown("Sandbox not running"));
        };
        let container = containers.get_mut(id).ok_or_else(|| unknown("Sandbox not running"))?;
        let (holder, running) = (&mut container.holder, container.init.phase == Phase::Running);
        let process = match exec {
            "" => &mut container.init,
            _ if !running => return Err(unknown("Container not running, impossible to enter")),
            exec => container.execs.get_mut(exec).ok_or_else(|| unknown("no such exec"))?,
        };
        if !exec.is_empty() && !holder.finds(&process.spec).map_err(unknown)? {
            // §3: neither exec-started nor exit is told
            process.phase = Phase::Stopped;
            process.ending.come(255);
            let why = no_program(&process.spec.args);
            let text = format!("cannot enter container {id}, with err rpc error: code = Internal desc = {why}");
            return Err(get_rpc_status(Code::NOT_FOUND, text));
        }
        let place = Place { holder: holder.pid(), root: container.root.clone(), process: process.spec.clone() };
        let place = serde_json::to_string(&place).map_err(unknown)?;
        let mut command = guest::itself("process", &place).map_err(unknown)?;
        let stdios = Stdios::put_on(&mut command, &process.paths).map_err(unknown)?;
        let mut child = guest.spawn(command).map_err(unknown)?;
        let outputs = stdios.connect(&mut child, &process.input).map_err(unknown)?;
        process.pid = i32::try_from(child.id()).ok();
        process.phase = Phase::Running;
        process.terminal = stdios.terminal;
        let scope = exec.is_empty().then(|| holder.scope.clone());
        let watched = Watched { child, outputs, scope, vmm: *vmm, ending: process.ending.clone() };
        let (service, id, exec) = (self.clone(), id.to_owned(), exec.to_owned());
        std::thread::spawn(move || service.watch(watched, &id, &exec));
        Ok(())
    }

    /// Waits for a process's end and tells of it.
    fn watch(&self, mut watched: Watched, id: &str, exec: &str) {
        let ended = watched.child.wait();
        // §4: who dies with the VMM has no status of its own
        let status = match ended {
            Ok(ended) if guest::is_alive(watched.vmm) => {
                ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or_default()) as u32
            }
            _ => 255,
        };
        if let Some(scope) = &watched.scope {
            scope.signal(Signal::SIGKILL); // a pid namespace of its own would see to that
        }
        for output in watched.outputs {
            let _ = output.join();
        }
        let ending = watched.ending;
        let mut sandbox = self.lock();
        // It may have been deleted, and another may have its name.
        let process = sandbox.process(id, exec).ok().filter(|process| Arc::ptr_eq(&process.ending, &ending));
        if let Some(process) = process {
            (process.phase, process.terminal) = (Phase::Stopped, None);
            match (exec, sandbox.containers.get_mut(id)) {
                ("", _) if id == self.call.id => sandbox.stop_vm(), // §4: takes the pod's other containers down
                ("", Some(container)) => container.holder.end(),
                _ => {}
            }
        }
        ending.come(status);
        let taken = (!ending.is_silent()).then(|| {
            let event = TaskExit {
                container_id: id.to_owned(),
                id: if exec.is_empty() { id } else { exec }.to_owned(),
                pid: watched.vmm,
                exit_status: status,
                exited_at: exited_at(ending.exit()),
                ..Default::default()
            };
            self.events.publish(TASK_EXIT_EVENT_TOPIC, &event, sandbox.config.events, Duration::ZERO)
        });
        drop(sandbox);
        if let Some(taken) = taken {
            let _ = taken.recv(); // fails where the daemon ends
        }
        ending.published();
    }

    /// Delete of a container: gives how it ended, `None` where it has not (§3: that is no error).
    pub fn remove(&self, sandbox: &mut Sandbox, id: &str) -> ttrpc::Result<Option<Exit>> {
        let exit = sandbox.container(id)?.init.ending.exit();
        let Some(mut container) = sandbox.containers.remove(id) else { return Ok(exit) };
        if id != self.call.id {
            container.holder.end(); // §3: its exit is told after TaskDelete
        } else if container.init.phase != Phase::Stopped {
            container.init.ending.silence();
            sandbox.torn = true; // §3: the VM goes on until Shutdown
        }
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid: sandbox.pid,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exited_at(exit),
            ..Default::default()
        };
        self.tell(sandbox, TASK_DELETE_EVENT_TOPIC, &event);
        Ok(exit)
    }

    /// Shutdown of an empty sandbox: the caller sees its connection close (§3).
    pub fn leave(&self, sandbox: &mut Sandbox) -> ! {
        if sandbox.stuck {
            loop {
                std::thread::park();
            }
        }
        // What is queued goes out first: the real shim's events have left by then.
        let flushed = self.events.publish("", &Empty::new(), Copies::None, Duration::ZERO);
        let _ = flushed.recv_timeout(Duration::from_millis(200));
        if sandbox.torn {
            let _ = fs::remove_file(self.call.socket(&self.call.id)); // §5: "gone" then, and only then
        }
        if let Some((guest, _)) = &mut sandbox.vm {
            guest.kill_and_forget();
        }
        if sandbox.failed {
            let _ = kill(Pid::from_raw(0), Signal::SIGKILL); // §3: the VMM's pid is 0, which is our process group
        }
        std::process::exit(0)
    }
}

/// A started process.
struct Watched {
    child: Child,
    outputs: Vec<JoinHandle<()>>,
    /// The container's processes, which end with its first one.
    scope: Option<guest::Scope>,
    vmm: u32,
    ending: Arc<crate::sandbox::Ending>,
}

/// §3: with the agent's whole stack.
fn no_program(args: &[String]) -> String {
    let name = args.first().map_or("", String::as_str);
    format!(
        "the file {name} was not found\n\nStack backtrace:\n   0: anyhow::error::<impl anyhow::Error>::msg\n   \
         1: rustjail::container::LinuxContainer::start\n   2: kata_agent::rpc::AgentService::do_create_container"
    )
}
