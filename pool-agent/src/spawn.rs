//! The cold path of a sandbox, and its inverse: image → users → network → container and task → start. A step that fails undoes those
//! before it, last first; what a killed agent has left is found by [`Containers::list`] and [`Networks::attached`], and goes by [`remove`].
//! Not here: pools, claims, records; who the agent is, what it may reach (the shim reads that from the annotations).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{Instrument, debug_span};
use trust::id::SandboxId;

use crate::containerd::spec::{self, Bind, Limits, SpecError, Wishes};
use crate::containerd::{Containers, ContainersError, NewContainer, Progress, Stdio};
use crate::network::{Attached, NetworkError, Networks};

/// Says to the shim that a sandbox may be claimed (docs/annotations.md).
pub const CLAIMABLE: &str = "creto.dev/claimable";
/// Says to the shim what a sandbox may connect to (docs/annotations.md).
pub const NETWORK_POLICY: &str = "creto.dev/network-policy";
/// A policy that allows nothing.
pub const DENY_ALL: &str = r#"{"rules":[]}"#;
/// Where the holder is in a sandbox that is held, or asked whether it is ready.
pub const HOLDER: &str = "/.creto/hold";

/// What a spawn works with.
#[derive(Clone)]
pub struct Node {
    /// containerd.
    pub containers: Arc<dyn Containers>,
    /// CNI.
    pub networks: Arc<dyn Networks>,
    /// The containerd namespace: the parent of the sandboxes' cgroups.
    pub namespace: String,
}

/// A sandbox that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its id: nobody else's, ever.
    pub id: SandboxId,
    /// Its image, as people write it.
    pub image: String,
    /// What runs in it.
    pub run: Run,
    /// Beside the image's variables.
    pub env: BTreeMap<String, String>,
    /// Instead of the image's working directory.
    pub cwd: Option<String>,
    /// Instead of the image's user.
    pub user: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// Whether it has an interface, fenced by creto-egress.
    pub network: bool,
    /// What the shim is told: `creto.dev/*`.
    pub annotations: BTreeMap<String, String>,
    /// By which it is found again.
    pub labels: BTreeMap<String, String>,
    /// Of the host's, seen inside.
    pub mounts: Vec<Bind>,
    /// Its input and output.
    pub stdio: Stdio,
    /// The shim: [`crate::containerd::RUNTIME`].
    pub runtime: String,
    /// Its program, where containerd is not to look for it.
    pub runtime_path: Option<PathBuf>,
}

/// What runs in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// A command, or the image's own where there is none.
    Command(Option<Vec<String>>),
    /// Nothing of the workload, until it is claimed: the holder, by its path on the host. Whatever the annotations say, it is claimable
    /// and reaches nothing.
    Hold(PathBuf),
}

/// A step of a spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Find the image, pull it, unpack it.
    Image,
    /// Look up its users and put the spec together.
    Spec,
    /// Wire the network.
    Network,
    /// Make container and task: the shim binds the identity and attests.
    Create,
    /// Put up the fence and run it.
    Start,
}

impl Step {
    /// For logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Spec => "spec",
            Self::Network => "network",
            Self::Create => "create",
            Self::Start => "start",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A sandbox that runs.
#[derive(Clone, Debug)]
pub struct Spawned {
    /// Its task's pid on the host.
    pub pid: u32,
    /// The digest of its image's manifest.
    pub image: String,
    /// Its network, where it has one.
    pub network: Option<Attached>,
    /// How long each step took, in their order.
    pub took: Vec<(Step, Duration)>,
}

/// Why there is no sandbox: nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("sandbox {id}: {step}: {cause}")]
pub struct SpawnFailed {
    /// Which.
    pub id: SandboxId,
    /// What was being done.
    pub step: Step,
    /// What went wrong.
    #[source]
    pub cause: Cause,
    /// How long each step took, the failed one included.
    pub took: Vec<(Step, Duration)>,
}

/// What goes wrong in a step.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// containerd, or the shim behind it.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// A CNI plugin.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What was wanted does not fit the image.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The step's own task has panicked; what it had made goes with the next sweep.
    #[error("a bug: {0}")]
    Panicked(String),
}

/// Makes a sandbox, and has it running. Goes on to its end, or to that of the undo, when the caller does not wait for it any more.
pub async fn spawn(node: &Node, wanted: Wanted, progress: Progress) -> Result<Spawned, SpawnFailed> {
    let (node, id) = (node.clone(), wanted.id.clone());
    let done = async move {
        let mut ascent = Ascent {
            node: &node,
            wanted: &wanted,
            step: Step::Image,
            began: Instant::now(),
            took: vec![],
            left: false,
        };
        let done = ascent.all(progress).await;
        ascent.enter(ascent.step); // how long the last one took
        let Ascent { step, took, .. } = ascent;
        match done {
            Ok((pid, image, network)) => Ok(Spawned { pid, image, network, took }),
            Err(cause) => Err(SpawnFailed { id: wanted.id.clone(), step, cause, took }),
        }
    };
    let done = tokio::spawn(done.in_current_span());
    match done.await {
        Ok(done) => done,
        Err(error) => {
            let cause = Cause::Panicked(error.to_string());
            Err(SpawnFailed { id, step: Step::Image, cause, took: vec![] })
        }
    }
}

/// Takes a sandbox away, whatever is left of it: first what runs, then what it was wired to.
pub async fn remove(node: &Node, id: &SandboxId) -> Result<(), Cause> {
    node.containers.delete(&id.to_string()).await?;
    node.networks.detach(id).await?;
    Ok(())
}

/// On the way up, one step after another.
struct Ascent<'a> {
    node: &'a Node,
    wanted: &'a Wanted,
    step: Step,
    began: Instant,
    took: Vec<(Step, Duration)>,
    /// An undo has failed: a sandbox may still be there.
    left: bool,
}

impl Ascent<'_> {
    /// The last step ends, and this one begins.
    fn enter(&mut self, step: Step) {
        let now = Instant::now();
        self.took.push((self.step, now - self.began));
        (self.step, self.began) = (step, now);
    }

    async fn all(&mut self, progress: Progress) -> Result<(u32, String, Option<Attached>), Cause> {
        let (node, wanted) = (self.node, self.wanted);
        let image = node.containers.image(&wanted.image, progress).instrument(debug_span!("image")).await?;
        self.enter(Step::Spec);
        let accounts = node.containers.accounts(&image).await?;
        let mut wishes = wishes(wanted, &node.namespace);
        spec::build(&image.config, &accounts, &wishes)?; // before anything is made for it
        if !wanted.network {
            return self.up(image, &accounts, wishes, None).await;
        }
        self.enter(Step::Network);
        let network = node.networks.attach(&wanted.id).instrument(debug_span!("network")).await?;
        wishes.netns = Some(network.netns.clone());
        let file = |source: &PathBuf, destination: &str| Bind {
            source: source.clone(),
            destination: destination.to_owned(),
            writable: false,
        };
        wishes.mounts.push(file(&network.resolv_conf, "/etc/resolv.conf"));
        wishes.mounts.push(file(&network.hosts, "/etc/hosts"));
        let up = self.up(image, &accounts, wishes, Some(network)).await;
        if up.is_err() && !self.left {
            let undone = node.networks.detach(&wanted.id).await;
            self.undo(undone);
        }
        up
    }

    async fn up(
        &mut self,
        image: crate::containerd::Image,
        accounts: &crate::containerd::Accounts,
        wishes: Wishes,
        network: Option<Attached>,
    ) -> Result<(u32, String, Option<Attached>), Cause> {
        let (node, wanted) = (self.node, self.wanted);
        self.enter(Step::Create);
        let (id, digest) = (wanted.id.to_string(), image.digest.clone());
        let new = NewContainer {
            id: id.clone(),
            spec: spec::build(&image.config, accounts, &wishes)?,
            image,
            labels: wanted.labels.clone(),
            runtime: wanted.runtime.clone(),
            runtime_path: wanted.runtime_path.clone(),
            stdio: wanted.stdio.clone(),
        };
        let pid = node.containers.create(new).instrument(debug_span!("create")).await?;
        self.enter(Step::Start);
        if let Err(error) = node.containers.start(&id).instrument(debug_span!("start")).await {
            let undone = node.containers.delete(&id).await;
            self.undo(undone);
            return Err(error.into());
        }
        Ok((pid, digest, network))
    }

    /// A failed undo is loud; the sweep finds what it has left.
    fn undo<E: fmt::Display>(&mut self, done: Result<(), E>) {
        if let Err(error) = done {
            self.left = true;
            let (id, step) = (&self.wanted.id, self.step);
            tracing::error!(%id, %step, %error, "what was made before the failure is left; it goes with the next sweep");
        }
    }
}

/// The holder, as sandboxes see it.
pub fn holder(program: &Path) -> Bind {
    Bind { source: program.to_owned(), destination: HOLDER.to_owned(), writable: false }
}

/// What the spec is told.
fn wishes(wanted: &Wanted, namespace: &str) -> Wishes {
    let mut wishes = Wishes {
        id: wanted.id.to_string(),
        namespace: namespace.to_owned(),
        env: wanted.env.clone(),
        cwd: wanted.cwd.clone(),
        user: wanted.user.clone(),
        terminal: wanted.stdio.terminal(),
        limits: wanted.limits,
        mounts: wanted.mounts.clone(),
        annotations: wanted.annotations.clone(),
        ..Wishes::default()
    };
    match &wanted.run {
        Run::Command(command) => wishes.command = command.clone(),
        Run::Hold(holder) => {
            wishes.command = Some(vec![HOLDER.to_owned()]);
            wishes.mounts.push(self::holder(holder));
            wishes.annotations.insert(CLAIMABLE.to_owned(), "true".to_owned());
            wishes.annotations.insert(NETWORK_POLICY.to_owned(), DENY_ALL.to_owned());
        }
    }
    wishes
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
