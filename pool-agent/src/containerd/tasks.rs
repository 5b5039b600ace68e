//! Containers and their tasks: made whole or not at all, found again by a label, removed whatever is left of them.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, KillRequest, ListContainersRequest, ListTasksRequest, MetricsRequest, StartRequest,
    WaitRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as WireStatus};
use prost_types::{Any, Timestamp};
use tokio::time::{Instant, sleep};

use super::grpc::{AWAY, BOOKS, Lease, failed};
use super::{Container, Containerd, ContainersError, Exit, MANAGED, NewContainer, Refusal, Status, Task, Usage, stats};

/// How containerd's clients in Go name a spec's type.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Between two looks whether a task has gone.
const PAUSE: Duration = Duration::from_millis(50);
/// SIGKILL, which has the same number everywhere.
const KILL: i32 = 9;

/// Makes a container and its task, in a task of its own: a caller that goes away leaves nothing half-made.
pub(super) async fn create(containerd: Containerd, new: NewContainer) -> Result<u32, ContainersError> {
    let id = new.id.clone();
    let made = tokio::spawn(async move {
        let lease = containerd.lease().await?;
        let made = containerd.make(new, &lease).await;
        lease.end(&containerd).await;
        made
    });
    made.await.map_err(|error| failed(format!("creating {id}"), error))?
}

impl Containerd {
    async fn make(&self, new: NewContainer, lease: &Lease) -> Result<u32, ContainersError> {
        let id = new.id.clone();
        // From here on whatever has this id is ours, and goes when a step fails.
        let mounts = self.snapshot_for(&new, lease).await?;
        let made = async {
            self.record(&new, lease).await?;
            self.task(&new, mounts, lease).await
        }
        .await;
        if let Err(why) = &made
            && let Err(error) = self.delete_patiently(&id).await
        {
            tracing::error!(id, %error, %why, "what was made before the failure is left; it goes when the container is deleted");
        }
        made
    }

    /// The root file system's snapshot, on the image's. One of the same key without a container is what an earlier try has left.
    async fn snapshot_for(&self, new: &NewContainer, lease: &Lease) -> Result<Vec<Mount>, ContainersError> {
        let (id, chain) = (&new.id, &new.image.chain);
        match self.get_record(id).await {
            Ok(_) => return Err(ContainersError::AlreadyExists(id.clone())),
            Err(error) if !error.is_not_found() => return Err(error),
            Err(_) => {}
        }
        match self.prepare(id, chain, HashMap::new(), lease).await {
            Err(ContainersError::AlreadyExists(_)) => {
                self.remove_snapshot(id).await?;
                self.prepare(id, chain, HashMap::new(), lease).await
            }
            // The image was removed between the two.
            Err(error) if error.is_not_found() => Err(ContainersError::ImageNotFound(new.image.name.clone())),
            other => other,
        }
    }

    async fn get_record(&self, id: &str) -> Result<Record, ContainersError> {
        let request = self.request(GetContainerRequest { id: id.to_owned() }, BOOKS);
        let found = ContainersClient::new(self.channel().await?).get(request).await;
        let found = found.map_err(|status| self.meaning(&status, id, &format!("looking for container {id}"), BOOKS))?;
        found.into_inner().container.ok_or_else(|| ContainersError::NotFound(id.to_owned()))
    }

    async fn record(&self, new: &NewContainer, lease: &Lease) -> Result<(), ContainersError> {
        let doing = format!("creating container {}", new.id);
        let spec = serde_json::to_vec(&new.spec).map_err(|error| failed(&*doing, error))?;
        let managed = (MANAGED.to_owned(), "true".to_owned());
        let record = Record {
            id: new.id.clone(),
            labels: new.labels.clone().into_iter().chain([managed]).collect(),
            image: new.image.name.clone(),
            runtime: Some(Runtime { name: new.runtime.clone(), options: None }),
            spec: Some(Any { type_url: SPEC.to_owned(), value: spec }),
            snapshotter: self.settings.snapshotter.clone(),
            snapshot_key: new.id.clone(),
            ..Record::default()
        };
        let request = lease.on(self.request(CreateContainerRequest { container: Some(record) }, BOOKS));
        let made = ContainersClient::new(self.channel().await?).create(request).await;
        made.map_err(|status| self.meaning(&status, &new.id, &doing, BOOKS)).map(drop)
    }

    async fn task(&self, new: &NewContainer, rootfs: Vec<Mount>, lease: &Lease) -> Result<u32, ContainersError> {
        let (id, within) = (new.id.clone(), self.settings.task_within);
        let [stdin, stdout, stderr] = new.stdio.uris();
        let runtime_path = new.runtime_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let terminal = new.stdio.terminal();
        let container_id = id.clone();
        let request = CreateTaskRequest {
            container_id,
            rootfs,
            stdin,
            stdout,
            stderr,
            terminal,
            runtime_path,
            ..Default::default()
        };
        let made = TasksClient::new(self.channel().await?).create(lease.on(self.request(request, within))).await;
        let made = made.map_err(|status| match status.code() {
            // Of the task: the program is not in the image, or the like. The container itself is there.
            Code::NotFound if status.source().is_none() => {
                let (doing, message) = (format!("creating task {id}"), status.message().to_owned());
                ContainersError::Refused { doing, refusal: Refusal::Invalid, message }
            }
            _ => self.meaning(&status, &id, &format!("creating task {id}"), within),
        })?;
        Ok(made.into_inner().pid)
    }

    /// [`Self::delete_all_of`], also where containerd is away for a while: what is to be removed must not be left for that.
    pub(super) async fn delete_patiently(&self, id: &str) -> Result<(), ContainersError> {
        let end = Instant::now() + self.settings.away_within;
        loop {
            match self.delete_all_of(id).await {
                Err(error) if error.is_unavailable() && Instant::now() < end => sleep(AWAY).await,
                other => return other,
            }
        }
    }

    pub(super) async fn start_task(&self, id: &str) -> Result<(), ContainersError> {
        let within = self.settings.task_within;
        let request = self.request(StartRequest { container_id: id.to_owned(), ..Default::default() }, within);
        let started = TasksClient::new(self.channel().await?).start(request).await;
        started.map_err(|status| self.meaning(&status, id, &format!("starting {id}"), within)).map(drop)
    }

    pub(super) async fn kill_task(&self, id: &str, signal: i32, all: bool) -> Result<(), ContainersError> {
        let signal = u32::try_from(signal).map_err(|_| failed(format!("signalling {id}"), "no such signal"))?;
        let request = KillRequest { container_id: id.to_owned(), signal, all, ..KillRequest::default() };
        let done = TasksClient::new(self.channel().await?).kill(self.request(request, BOOKS)).await;
        done.map_err(|status| self.meaning(&status, id, &format!("signalling {id}"), BOOKS)).map(drop)
    }

    pub(super) async fn wait_for_task(&self, id: &str) -> Result<Exit, ContainersError> {
        let request = self.endless(WaitRequest { container_id: id.to_owned(), ..WaitRequest::default() });
        let ended = TasksClient::new(self.channel().await?).wait(request).await;
        let ended = ended.map_err(|status| self.meaning(&status, id, &format!("waiting for {id}"), Duration::MAX))?;
        let ended = ended.into_inner();
        Ok(Exit { status: ended.exit_status, at: time(ended.exited_at) })
    }

    /// Task, container, snapshot, in this order. Its deadline is the task's: the rest is quick.
    async fn delete_all_of(&self, id: &str) -> Result<(), ContainersError> {
        self.delete_task(id).await?;
        let doing = format!("deleting container {id}");
        let request = self.request(DeleteContainerRequest { id: id.to_owned() }, BOOKS);
        let deleted = ContainersClient::new(self.channel().await?).delete(request).await;
        match deleted.map_err(|status| self.meaning(&status, id, &doing, BOOKS)) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.remove_snapshot(id).await
    }

    async fn delete_task(&self, id: &str) -> Result<(), ContainersError> {
        let within = self.settings.task_within;
        let end = Instant::now() + within;
        loop {
            // Fails where it has ended already, and where its shim has: both show in what comes next.
            let killed = self.kill_task(id, KILL, true).await;
            let request = self.request(DeleteTaskRequest { container_id: id.to_owned() }, within);
            let deleted = TasksClient::new(self.channel().await?).delete(request).await;
            match deleted.map_err(|status| self.meaning(&status, id, &format!("deleting task {id}"), within)) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) if Instant::now() > end => return Err(killed.err().unwrap_or(error)),
                Err(_) => sleep(PAUSE).await, // it has not ended yet
            }
        }
    }

    pub(super) async fn list_containers(&self, label: Option<(&str, &str)>) -> Result<Vec<Container>, ContainersError> {
        let doing = "listing containers";
        let mut tasks = self.list_tasks().await?;
        let filter = |(key, value): (&str, &str)| format!("labels.{}=={}", quoted(key), quoted(value));
        let filters =
            vec![[Some((MANAGED, "true")), label].into_iter().flatten().map(filter).collect::<Vec<_>>().join(",")];
        // As a stream: the specs of a thousand containers are more than one message may be.
        let failed = |status| self.meaning(&status, "containers", doing, BOOKS);
        let request = self.request(ListContainersRequest { filters }, BOOKS);
        let mut all =
            ContainersClient::new(self.channel().await?).list_stream(request).await.map_err(failed)?.into_inner();
        let mut found = Vec::new();
        while let Some(next) = all.message().await.map_err(failed)? {
            let Some(Record { id, image, labels, created_at, .. }) = next.container else { continue };
            let task = tasks.remove(&id);
            found.push(Container { id, image, labels: labels.into_iter().collect(), task, created: time(created_at) });
        }
        Ok(found)
    }

    async fn list_tasks(&self) -> Result<BTreeMap<String, Task>, ContainersError> {
        let request = self.request(ListTasksRequest::default(), BOOKS);
        let listed = TasksClient::new(self.channel().await?).list(request).await;
        let listed = listed.map_err(|status| self.meaning(&status, "tasks", "listing tasks", BOOKS))?;
        Ok(listed.into_inner().tasks.into_iter().map(task).collect())
    }

    pub(super) async fn usage_of(&self, ids: &[&str]) -> Result<BTreeMap<String, Usage>, ContainersError> {
        if ids.is_empty() {
            return Ok(BTreeMap::new()); // without a filter containerd would give all
        }
        let filters = ids.iter().map(|id| format!("id=={}", quoted(id))).collect();
        let got =
            TasksClient::new(self.channel().await?).metrics(self.request(MetricsRequest { filters }, BOOKS)).await;
        let got = got.map_err(|status| self.meaning(&status, "metrics", "asking for metrics", BOOKS))?;
        let usage = |metric: containerd_client::types::Metric| Some((metric.id, stats::decode(&metric.data?)?));
        Ok(got.into_inner().metrics.into_iter().filter_map(usage).collect())
    }
}

/// A word of containerd's filter language.
fn quoted(word: &str) -> String {
    serde_json::Value::from(word).to_string()
}

fn task(process: Process) -> (String, Task) {
    let status = match process.status() {
        WireStatus::Created => Status::Created,
        WireStatus::Running => Status::Running,
        WireStatus::Paused | WireStatus::Pausing => Status::Paused,
        WireStatus::Stopped => Status::Stopped,
        WireStatus::Unknown => Status::Unknown,
    };
    let exit = Exit { status: process.exit_status, at: time(process.exited_at) };
    // containerd leaves `container_id` empty in lists, and puts the container's id into `id`.
    let id = if process.container_id.is_empty() { process.id } else { process.container_id };
    (id, Task { pid: process.pid, status, exit: (status == Status::Stopped).then_some(exit) })
}

fn time(stamp: Option<Timestamp>) -> Option<SystemTime> {
    stamp.and_then(|stamp| SystemTime::try_from(stamp).ok())
}
