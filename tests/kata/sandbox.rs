//! What a daemon knows of its sandbox: containers, processes, how each ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{self, Code};

use crate::config::Config;
use crate::guest::{Guest, Holder};
use crate::inside::ProcessSpec;
use crate::leftovers::Leftovers;
use crate::stdio::{Input, Paths};

/// The sandbox of this daemon.
#[derive(Default)]
pub struct Sandbox {
    /// `None` before Create, and after the VM's end.
    pub vm: Option<(Guest, Leftovers)>,
    /// The VMM's, which outlives it: everything has it.
    pub pid: u32,
    /// There is one, or has been one.
    pub created: bool,
    pub containers: HashMap<String, Container>,
    pub config: Config,
    /// The last Create left no VM.
    pub failed: bool,
    /// How many Starts there were.
    pub starts: u32,
    /// Shutdown will hang.
    pub stuck: bool,
    /// The sandbox's container was deleted under a running VM.
    pub torn: bool,
}

/// Where a container or process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
}

/// A container.
pub struct Container {
    pub bundle: String,
    pub root: std::path::PathBuf,
    pub holder: Holder,
    pub init: Process,
    pub execs: HashMap<String, Process>,
}

/// A container's first process, or an exec.
pub struct Process {
    pub phase: Phase,
    /// What Kata calls an exec.
    pub uuid: String,
    pub spec: ProcessSpec,
    pub paths: Paths,
    pub input: Input,
    pub terminal: Option<File>,
    /// The host pid, once started; no caller ever sees it.
    pub pid: Option<i32>,
    pub ending: Arc<Ending>,
}

impl Process {
    /// One that is yet to start.
    pub fn new(spec: ProcessSpec, paths: Paths) -> Self {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
        let input = Input::new(&paths);
        Self { phase: Phase::Created, uuid, spec, paths, input, terminal: None, pid: None, ending: Arc::default() }
    }
}

impl Sandbox {
    /// A container of it.
    pub fn container(&mut self, id: &str) -> ttrpc::Result<&mut Container> {
        let missing = || get_rpc_status(Code::NOT_FOUND, format!("container does not exist {id}: not found"));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    /// A container's first process, or one of its execs.
    pub fn process(&mut self, id: &str, exec: &str) -> ttrpc::Result<&mut Process> {
        let container = self.container(id)?;
        if exec.is_empty() {
            return Ok(&mut container.init);
        }
        let missing = || get_rpc_status(Code::NOT_FOUND, format!("exec does not exist {exec}: not found"));
        container.execs.get_mut(exec).ok_or_else(missing)
    }

    /// The end of the VM, with all that it made (§5, "good end").
    pub fn stop_vm(&mut self) {
        if let Some((mut guest, leftovers)) = self.vm.take() {
            guest.kill(self.containers.values_mut().map(|container| &mut container.holder));
            leftovers.remove_all();
        }
    }
}

/// How and when a process ended.
#[derive(Clone, Copy)]
pub struct Exit {
    pub status: u32,
    pub at: SystemTime,
}

/// The end of a process, to be waited for.
#[derive(Default)]
pub struct Ending(Mutex<End>, Condvar);

#[derive(Default, Clone, Copy)]
struct End {
    exit: Option<Exit>,
    /// No event will tell of it.
    silent: bool,
    published: bool,
}

impl Ending {
    fn state(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut End)) {
        change(&mut self.state());
        self.1.notify_all();
    }

    /// The end has come; a second one does not count.
    pub fn come(&self, status: u32) {
        self.change(|end| end.exit = end.exit.or(Some(Exit { status, at: SystemTime::now() })));
    }

    /// Whether and how it has ended.
    pub fn exit(&self) -> Option<Exit> {
        self.state().exit
    }

    /// Waits for the end.
    pub fn wait(&self) -> Option<Exit> {
        self.1.wait_while(self.state(), |end| end.exit.is_none()).map_or(None, |end| end.exit)
    }

    /// No event shall tell of the end.
    pub fn silence(&self) {
        self.change(|end| end.silent = true);
    }

    /// Whether no event tells of it.
    pub fn is_silent(&self) -> bool {
        self.state().silent
    }

    /// The event has been taken.
    pub fn published(&self) {
        self.change(|end| end.published = true);
    }

    /// Waits until it has, or time is up.
    pub fn wait_published(&self, patience: Duration) {
        drop(self.1.wait_timeout_while(self.state(), patience, |end| !end.published));
    }
}
