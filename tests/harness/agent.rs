//! What the node agent does on a node of a test's, by the library that it is made of.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use creto_runtime::containerd::spec::Limits;
use creto_runtime::containerd::{Containerd, RUNTIME, Settings, Stdio, quietly};
use creto_runtime::network::{Cni, Conflist};
use creto_runtime::spawn::{Node as Parts, Run, SpawnFailed, Spawned, Wanted, remove, spawn};

use super::{Node, PATIENCE, images};

/// The agent's hands on a node.
pub struct Agent<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its containerd.
    pub containerd: Containerd,
    /// Its networks.
    pub cni: Cni,
    /// One for all that it does, for its connection lives in it.
    runtime: tokio::runtime::Runtime,
}

impl<'a> Agent<'a> {
    /// On a node, with the configuration that we ship, its state in the node's directory and another subnet than the harness'.
    pub fn of(node: &'a Node, conflist: &str) -> Self {
        Self::with(node, conflist, |settings| settings)
    }

    /// The same with other settings of containerd.
    pub fn with(node: &'a Node, conflist: &str, change: impl FnOnce(Settings) -> Settings) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/cni").join(conflist);
        let text = std::fs::read_to_string(file).unwrap();
        let ipam = node.path("ipam").display().to_string();
        let text = text.replace("/run/creto/ipam", &ipam).replace("10.89.0.0/16", "10.88.0.0/16");
        let settings = Settings {
            address: node.address(),
            namespace: node.namespace().to_owned(),
            snapshotter: node.snapshotter().to_owned(),
            docker_config: None,
            registry_hosts: None,
            ..Settings::default()
        };
        let plugins = Cni::PLUGINS.map(PathBuf::from).to_vec();
        let conflist = Conflist::parse(&text).unwrap();
        let cni = Cni::new(conflist, plugins, &node.path("creto/run"), PATIENCE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { node, containerd: Containerd::new(change(settings)).unwrap(), cni, runtime }
    }

    /// Runs what it does to its end, on the calling thread: in that thread's network namespace.
    #[track_caller]
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// What a spawn works with.
    pub fn parts(&self) -> Parts {
        Parts {
            containers: Arc::new(self.containerd.clone()),
            networks: Arc::new(self.cni.clone()),
            namespace: self.node.namespace().to_owned(),
        }
    }

    /// Makes a sandbox.
    pub async fn spawn(&self, wanted: Wanted) -> Result<Spawned, SpawnFailed> {
        self.node.note(&wanted.id.to_string());
        spawn(&self.parts(), wanted, quietly()).await
    }

    /// Takes it away.
    pub async fn remove(&self, id: &str) {
        remove(&self.parts(), &id.parse().unwrap()).await.unwrap();
    }

    /// A sandbox of the test image, sealed, that runs a command; its output goes to [`Agent::log`].
    pub fn wanted(&self, id: &str, command: &[&str]) -> Wanted {
        Wanted {
            id: id.parse().unwrap(),
            image: images::BUSYBOX.into(),
            run: Run::Command(Some(command.iter().map(|word| (*word).to_owned()).collect())),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            limits: Limits::default(),
            network: false,
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            mounts: vec![],
            stdio: Stdio::Log(self.log(id)),
            runtime: RUNTIME.into(),
            runtime_path: None,
        }
    }

    /// Where a sandbox's output goes.
    pub fn log(&self, id: &str) -> PathBuf {
        self.node.path(&format!("{id}.log"))
    }

    /// Checks that of all sandboxes nothing is left: with containerd, on the machine, of their networks.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        self.node.assert_nothing_left();
        for what in ["container", "task"].map(|noun| [noun, "ls", "-q"]) {
            assert_eq!(self.node.ctr(&what).ok(), "", "{what:?}");
        }
        let snapshots = self.node.ctr(&["snapshot", "--snapshotter", self.node.snapshotter(), "ls"]).ok();
        let of_ours = |line: &&str| !line.contains("sha256:") && !line.starts_with("KEY");
        assert_eq!(snapshots.lines().filter(of_ours).collect::<Vec<_>>(), Vec::<&str>::new());
        for dir in ["creto/run/networks", "creto/run/netns"] {
            let left = std::fs::read_dir(self.node.path(dir)).into_iter().flatten().map(|e| e.unwrap().path());
            assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new());
        }
        let addresses = std::fs::read_dir(self.node.path("ipam/creto")).into_iter().flatten();
        let addresses = addresses.map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(addresses.filter(|name| name.starts_with("10.")).collect::<Vec<_>>(), Vec::<String>::new());
    }
}
