//! Who holds a container to its limits. Alone in its sandbox: the host's kernel, by the sandbox's control group. In a pod: memory `memory_watch`,
//! processes gVisor's kernel, CPU nobody by itself; behind them stands the sandbox's `wall`. And what a container uses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::inside::{Counted, Version};
use super::wall::{self, Now, Wall};
use super::{Gvisor, memory_watch};
use crate::cgroup::{Cgroup, Resources, Used};
use crate::error::TaskError;
use crate::paths;

/// What is known of one pod's limits, beside its members'.
#[derive(Default)]
pub struct Limits {
    /// Of the container that the sandbox was made for.
    root: Mutex<Resources>,
    root_runs: AtomicBool,
    wall: Mutex<Wall>,
    is_watched: AtomicBool,
}

impl Gvisor {
    fn limits_of(&self, id: &str) -> Resources {
        match self.is_root(id) {
            true => self.limits.root.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => self.members.limits(id).unwrap_or_default(),
        }
    }

    /// Notes what a container may have that is about to be made, or refuses what nobody would hold it to.
    pub(super) fn note_limits(&self, id: &str, spec: &Value) -> Result<(), TaskError> {
        let limits = Resources::parse(spec.pointer("/linux/resources").unwrap_or(&Value::Null))?;
        if self.is_root(id) {
            *self.limits.root.lock().unwrap_or_else(PoisonError::into_inner) = limits;
            return Ok(());
        }
        self.can_hold(&limits)?;
        if limits.cpu_limit().is_some() {
            tracing::info!(
                container = id,
                "linux.resources.cpu.quota: gVisor's containers share one scheduler; the sandbox has the sum of all"
            );
        }
        self.members.add(id, limits);
        Ok(())
    }

    /// Whether what is asked of a member can be held. Of a container that has its sandbox to itself, it always can.
    fn can_hold(&self, limits: &Resources) -> Result<(), TaskError> {
        let can = self.calls.inside() == Version::V2 && self.calls.counts();
        match limits.pids_limit().filter(|_| !can) {
            None => Ok(()),
            Some(limit) => {
                let why = "this build of runsc cannot limit one container of a pod; omit it, or limit the pod";
                Err(TaskError::Invalid(format!("linux.resources.pids.limit: {limit}: {why}")))
            }
        }
    }

    /// Whether gVisor's kernel holds a container to one of its limits.
    pub(super) fn is_held_inside(&self, id: &str) -> bool {
        self.limits_of(id).pids_limit().is_some() && self.calls.inside() == Version::V2 && self.calls.counts()
    }

    /// Sees to the limits of a container that has been started. An error is one where it would run without.
    pub(super) async fn hold(&self, id: &str) -> Result<(), TaskError> {
        let (limits, cid) = (self.limits_of(id), paths::runsc_id(id));
        if self.is_root(id) {
            self.limits.root_runs.store(true, Ordering::Relaxed);
        } else if limits.memory_limit().is_some() {
            self.watch_memory();
        }
        let Some(pids) = limits.pids_limit() else {
            if limits.memory_limit().is_some() || limits.cpu_limit().is_some() {
                self.show(&cid, &limits).await;
            }
            return Ok(());
        };
        let Err(error) = self.calls.limit(&cid, &limits).await else { return Ok(()) };
        if self.is_root(id) {
            if self.calls.inside() == Version::V2 {
                tracing::warn!(%error, pids, "the limit of processes holds for the sandbox's host tasks, which ends it");
            }
            return self.on_host(&Resources::parse(&serde_json::json!({"pids": {"limit": pids}}))?);
        }
        Err(error)
    }

    /// Lets a container's programs read its limits.
    async fn show(&self, cid: &str, limits: &Resources) {
        if let Err(error) = self.calls.limit(cid, limits).await {
            tracing::debug!(%error, cid, "its limits are not shown inside");
        }
    }

    fn watch_memory(&self) {
        if !self.calls.counts() {
            let why = "runsc's command line does not say what one container of a sandbox uses";
            tracing::warn!(why, "memory limits of a pod's containers are not held one by one, only the sandbox's");
        } else if !self.limits.is_watched.swap(true, Ordering::Relaxed) {
            let sandbox = self.measured.get().map(|measured| measured.cgroup.clone());
            tokio::spawn(memory_watch::watch(self.members.clone(), self.calls.clone(), sandbox));
        }
    }

    /// A container of the pod has come or gone, or may have something else.
    pub(super) fn move_wall(&self, updated: bool) {
        let Some(measured) = self.measured.get().filter(|measured| measured.is_own) else { return };
        let Some(memory) = measured.cgroup.memory() else { return }; // it is gone
        let now = Now { updated, memory };
        let mut wall = self.limits.wall.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (*wall, wall.moved(self.members.all_limits().iter(), now));
        *wall = after;
        let Some(mut change) = after.change(before) else { return };
        // What the pod's first container asks for itself is the sandbox's.
        let asked = self.limits_of(&self.place.group);
        if asked.memory_limit().is_some() {
            change.memory = Default::default();
        }
        if asked.cpu_limit().is_some() {
            change.cpu = Default::default();
        }
        if let Err(error) = measured.cgroup.update(&change) {
            tracing::warn!(%error, "the limits of the sandbox are not those of its containers");
        }
    }

    fn on_host(&self, change: &Resources) -> Result<(), TaskError> {
        let doing = "updating limits";
        match self.measured.get() {
            Some(measured) if measured.is_own => measured.cgroup.update(change).map_err(|e| TaskError::host(doing, e)),
            Some(_) => {
                Err(TaskError::host(doing, "the sandbox has no control group of its own; give linux.cgroupsPath"))
            }
            None => Err(TaskError::host(doing, "the sandbox's control group is not known")),
        }
    }

    /// Update: what a container may have from now on.
    pub(super) async fn change_limits(&self, id: &str, resources: &Any) -> Result<(), TaskError> {
        let change = Resources::of_update(&resources.value)?;
        let after = self.limits_of(id).updated(&change);
        if self.is_root(id) {
            let mut on_host = change.clone();
            if let Some(pids) = change.pids_limit().filter(|_| self.calls.inside() == Version::V2) {
                on_host.pids.limit = i64::try_from(wall::tasks(pids)).ok();
            }
            self.on_host(&on_host)?;
            *self.limits.root.lock().unwrap_or_else(PoisonError::into_inner) = after.clone();
        } else {
            self.can_hold(&change)?;
            self.members.limit(id, after.clone());
            self.move_wall(true);
        }
        let runs = match self.is_root(id) {
            true => self.limits.root_runs.load(Ordering::Relaxed),
            false => self.members.is_running(id),
        };
        match runs && after != Resources::default() {
            true if change.pids.limit.is_some() && after.pids_limit().is_none() => {
                self.show(&paths::runsc_id(id), &after).await; // there is none any more
                Ok(())
            }
            true => self.hold(id).await,
            false => Ok(()),
        }
    }

    /// What a container uses: the sandbox's control group, of a pod's further containers what gVisor counts.
    pub(super) async fn metrics(&self, id: &str) -> Result<Any, TaskError> {
        let encoding = |e| TaskError::host("encoding metrics", e);
        let sandbox = self.measured.get().map(|measured| &measured.cgroup);
        let sandbox: &Cgroup =
            sandbox.ok_or_else(|| TaskError::host("finding the sandbox's control group", "it is not known"))?;
        if self.is_root(id) {
            return sandbox.metrics().map_err(encoding);
        }
        let counted = match self.calls.counted(&paths::runsc_id(id)).await {
            Ok(None) if self.members.is_running(id) => return sandbox.metrics().map_err(encoding), // version 1, without the mount
            Ok(counted) => counted.unwrap_or_default(),
            Err(TaskError::Unimplemented(_)) => return sandbox.metrics().map_err(encoding),
            Err(error) if self.members.is_running(id) => return Err(error),
            Err(_) => Counted::default(), // it has not begun, or has ended
        };
        let (limits, Counted { memory, user, system, pids }) = (self.limits_of(id), counted);
        let (memory_limit, pids_limit) = (limits.memory_limit(), limits.pids_limit());
        sandbox.metrics_of(&Used { memory, memory_limit, user, system, pids, pids_limit }).map_err(encoding)
    }
}
