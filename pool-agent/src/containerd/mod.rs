//! What the node asks of containerd: images, containers with their task, events. [`Containers`] says it in our words,
//! [`Containerd`](grpc::Containerd) asks the real one.
//!
//! Top-down: [`grpc`] the connection and what its errors mean · [`images`] name → image, by [`pull`] (with
//! [`credentials`]) and [`unpack`] · [`tasks`] container and task, and their undo, with [`stdio`] · [`stats`] · [`events`] · [`spec`] image and wishes →
//! OCI spec, with [`accounts`] for its user. Not here: the network ([`crate::network`]), the order of a spawn ([`crate::spawn`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::image::BadImage;

pub mod accounts;
pub mod credentials;
pub mod events;
pub mod grpc;
pub mod images;
mod pull;
pub mod spec;
pub mod stats;
pub mod stdio;
pub mod tasks;
mod unpack;

pub use accounts::Accounts;
pub use events::TaskEvent;
pub use grpc::{Containerd, Settings};
pub use images::{Image, ImageConfig};
pub use stats::Usage;
pub use stdio::Stdio;

/// The name under which containerd knows our shim.
pub const RUNTIME: &str = "io.containerd.creto.v2";

/// Every container that the agent makes has this label, with the value `true`: by it they are found again.
pub const MANAGED: &str = "creto.dev/managed";

/// Who is told how far a pull has come.
pub type Progress = Arc<dyn Fn(Pulled) + Send + Sync>;

/// Nobody is told.
pub fn quietly() -> Progress {
    Arc::new(|_| ())
}

/// How far a pull has come, for one thing that is pulled; containerd's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// `downloading`, `extracting`, `complete`, …
    pub event: String,
    /// The image's name, or `layer-sha256:…`, `config-sha256:…`.
    pub name: String,
    /// Bytes so far.
    pub bytes: u64,
    /// Bytes in all; 0 where it is not known.
    pub total: u64,
}

/// What containerd does for the agent.
#[async_trait]
pub trait Containers: Send + Sync {
    /// containerd's version; the cheapest question that shows that it is there.
    async fn version(&self) -> Result<String, ContainersError>;

    /// An image by its name, tag or digest, ready to be run: what is there already, else pulled, and unpacked.
    async fn image(&self, reference: &str, progress: Progress) -> Result<Image, ContainersError>;

    /// The users and groups of an image.
    async fn accounts(&self, image: &Image) -> Result<Arc<Accounts>, ContainersError>;

    /// Makes a container and its task, whose pid on the host it returns. Either all of it is there afterwards or nothing; goes on to
    /// its end when the caller does not wait for it any more.
    async fn create(&self, new: NewContainer) -> Result<u32, ContainersError>;

    /// Runs a task that was made.
    async fn start(&self, id: &str) -> Result<(), ContainersError>;

    /// Sends a signal to the task's first process.
    async fn kill(&self, id: &str, signal: i32) -> Result<(), ContainersError>;

    /// Waits for the task's end. Where containerd goes away meanwhile, it is [`ContainersError::Unavailable`]: ask again.
    async fn wait(&self, id: &str) -> Result<Exit, ContainersError>;

    /// Removes task, container and snapshot, by force. What is gone already is no error; a containerd that has gone away is waited for,
    /// for a while.
    async fn delete(&self, id: &str) -> Result<(), ContainersError>;

    /// The agent's containers, with this label (a key and a value) where one is given.
    async fn list(&self, label: Option<(&str, &str)>) -> Result<Vec<Container>, ContainersError>;

    /// What tasks use; those that have ended are left out.
    async fn usage(&self, ids: &[&str]) -> Result<BTreeMap<String, Usage>, ContainersError>;

    /// What happens to tasks from now on; ends when the receiver is dropped.
    fn events(&self) -> mpsc::Receiver<TaskEvent>;
}

/// A container to be made.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// Its id, also its snapshot's key.
    pub id: String,
    /// What it runs.
    pub image: Image,
    /// `config.json`: [`spec::build`].
    pub spec: Value,
    /// Labels beside [`MANAGED`].
    pub labels: BTreeMap<String, String>,
    /// The shim, as containerd names it: [`RUNTIME`].
    pub runtime: String,
    /// The shim's program, where it is not to be found by its name in containerd's PATH.
    pub runtime_path: Option<PathBuf>,
    /// Its input and output.
    pub stdio: Stdio,
}

/// A container, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its image's name.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its task; a container without one was left behind.
    pub task: Option<Task>,
    /// When it was made.
    pub created: Option<SystemTime>,
}

/// A container's task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its pid on the host.
    pub pid: u32,
    /// Where it is in its life.
    pub status: Status,
    /// How it ended, where it has.
    pub exit: Option<Exit>,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Made, not yet started.
    Created,
    /// It runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It has ended.
    Stopped,
    /// containerd does not know: its shim does not answer.
    Unknown,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status; 128 + n where signal n ended it.
    pub status: u32,
    /// When.
    pub at: Option<SystemTime>,
}

/// Why the shim, or containerd, did not want to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Whoever asks is not who it says, or may not have this (PERMISSION_DENIED, UNAUTHENTICATED).
    Forbidden,
    /// An annotation, an option or the spec makes no sense (INVALID_ARGUMENT).
    Invalid,
    /// Not in this state (FAILED_PRECONDITION).
    State,
}

/// Why containerd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    /// A name that no image can have.
    #[error(transparent)]
    Reference(#[from] BadImage),
    /// No registry has it.
    #[error("image {0} is not found: check its name and tag, or import it (ctr -n creto image import)")]
    ImageNotFound(String),
    /// The registry does not give it to us.
    #[error(
        "image {image}: the registry refuses to give it: log in (docker login) or check ~/.docker/config.json: {why}"
    )]
    ImageForbidden {
        /// Its name.
        image: String,
        /// What the registry says.
        why: String,
    },
    /// It is there, but cannot be run here.
    #[error("image {image} cannot be used: {why}")]
    ImageUnusable {
        /// Its name.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// containerd does not answer.
    #[error("containerd does not answer at {address}: is it running (systemctl status containerd)? {why}")]
    Unavailable {
        /// Its socket.
        address: PathBuf,
        /// What was seen.
        why: String,
    },
    /// The id is taken.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// No such container, task or process.
    #[error("{0} is not found")]
    NotFound(String),
    /// The shim, or containerd, says no.
    #[error("{doing}: refused: {message}")]
    Refused {
        /// What was being done.
        doing: String,
        /// Which kind of no.
        refusal: Refusal,
        /// Its own words.
        message: String,
    },
    /// It took too long.
    #[error("{doing}: no answer within {}", humantime::format_duration(*.after))]
    Timeout {
        /// What was being done.
        doing: String,
        /// The deadline.
        after: Duration,
    },
    /// No space is left on the disk, or no memory.
    #[error("{doing}: the node is full: {message}")]
    Full {
        /// What was being done.
        doing: String,
        /// Its own words.
        message: String,
    },
    /// Anything else.
    #[error("{doing}: {message}")]
    Failed {
        /// What was being done.
        doing: String,
        /// Its own words.
        message: String,
    },
}

impl ContainersError {
    /// Whether it may work when containerd is back.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}
