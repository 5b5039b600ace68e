//! A node as a kubelet sees it: containerd's CRI plugin, pods wired by the standard CNI plugins in a network namespace of the
//! test's, creto-egress beside them. Not here: exec's, attach's and port-forward's streams (`stream`).

pub mod stream;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Response, Status};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use serde_json::json;

use super::network::Network;
use super::{Containerd, PATIENCE, Setup, images, poll};

/// The runtime handlers: what a test asks is asked of runc first, so that a test that asks the wrong thing fails there.
pub const HANDLERS: [&str; 2] = ["runc", "creto"];
/// The handler of gVisor's own shim, where it is installed (`scripts/setup gvisor-shim`): a peer for benchmarks.
pub const GVISORS_OWN: &str = "runsc";
/// What the bridge of the pods is called, and their subnet.
const BRIDGE: [&str; 2] = ["cni0", "10.88.7.0/24"];

/// Puts a question to every handler under both containerds that Kubernetes 1.2x and 1.3x nodes run.
pub fn of_all(question: impl Fn(&Cri, &str)) {
    for containerd in [Containerd::V2_4, Containerd::V1_7] {
        let cri = Cri::with(Setup { containerd, ..Setup::default() }, &[]);
        for handler in HANDLERS {
            question(&cri, handler);
        }
    }
}

/// A node with the CRI plugin. What is left of its pods when it is dropped is stopped and removed as a kubelet would.
pub struct Cri {
    /// The node, its network and its creto-egress.
    pub network: Network,
    channel: Channel,
    runtime: tokio::runtime::Runtime,
    /// The control groups that the test has made, as a kubelet does.
    pods: Mutex<Vec<PathBuf>>,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// containerd's id of it.
    pub id: String,
    /// What was asked for.
    pub config: PodSandboxConfig,
}

/// What execSync answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Cri {
    /// A node made of `setup`, with these network policies.
    pub fn with(setup: Setup, policies: &[(&str, &str)]) -> Self {
        let network = Network::with(Setup { cri: true, ..setup }, policies, "");
        let [bridge, subnet] = BRIDGE;
        network.internet.netns.ip(&format!("route add {subnet} via {}", super::network::NODE));
        let node = &network.node;
        node.import(images::pause());
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": node.path("ipam"),
            "routes": [{"dst": "0.0.0.0/0"}]});
        let plugins = json!([{"type": "bridge", "bridge": bridge, "isGateway": true, "ipam": ipam}]);
        let conflist = json!({"cniVersion": "1.0.0", "name": node.cgroup(), "plugins": plugins});
        fs::write(node.path("cni/10-test.conflist"), conflist.to_string()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = runtime.block_on(containerd_client::connect(node.address())).unwrap();
        let cri = Self { network, channel, runtime, pods: Mutex::default() };
        cri.wait_until_ready();
        cri
    }

    /// Until pods can be run.
    pub fn wait_until_ready(&self) {
        let mut last = None;
        let ready = poll(|| {
            let status = self.ask(self.client().status(StatusRequest::default()));
            let all = |s: &StatusResponse| {
                let conditions = &s.status.as_ref()?.conditions;
                let holds = |name: &str| conditions.iter().any(|c| c.r#type == name && c.status);
                (holds("RuntimeReady") && holds("NetworkReady")).then_some(())
            };
            let ready = status.as_ref().ok().and_then(all);
            last = Some(status);
            ready
        });
        assert!(ready.is_some(), "the CRI plugin is not ready: {last:?}\n{}", self.network.node.log());
    }

    /// Stops containerd and starts it again; pods run on.
    pub fn restart_containerd(&self) {
        self.network.node.stop_containerd();
        self.network.node.start_containerd();
        self.wait_until_ready();
    }

    /// containerd, asked by a client of its own.
    pub fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// containerd, for its other services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for an answer.
    pub fn ask<T>(&self, question: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await });
        answer
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "the test waited in vain")))
            .map(Response::into_inner)
    }

    /// A pod's description: a network of its own, a control group of its own.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        static UIDS: AtomicU32 = AtomicU32::new(0);
        let uid = format!("{name}-{}", UIDS.fetch_add(1, Ordering::Relaxed));
        let namespace = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let security = LinuxSandboxSecurityContext { namespace_options: Some(namespace), ..Default::default() };
        PodSandboxConfig {
            log_directory: self.network.node.path(&format!("logs/{uid}")).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/{uid}", self.network.node.cgroup()),
                security_context: Some(security),
                ..Default::default()
            }),
            metadata: Some(PodSandboxMetadata { name: name.into(), uid, namespace: "default".into(), attempt: 0 }),
            hostname: name.into(),
            ..Default::default()
        }
    }

    /// Runs a pod with this handler.
    pub fn try_run_pod(&self, handler: &str, config: PodSandboxConfig) -> Result<Pod, Status> {
        fs::create_dir_all(&config.log_directory).unwrap();
        let parent = config.linux.as_ref().unwrap().cgroup_parent.clone();
        let groups = hierarchies().into_iter().map(|top| top.join(parent.trim_start_matches('/')));
        for group in groups {
            fs::create_dir_all(&group).unwrap();
            self.pods.lock().unwrap().push(group);
        }
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = match self.ask(self.client().run_pod_sandbox(request)) {
            Ok(made) => made.pod_sandbox_id,
            Err(failed) => {
                remove_groups(&config);
                return Err(failed);
            }
        };
        self.network.node.note(&id);
        Ok(Pod { id, config })
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn run_pod(&self, handler: &str, name: &str) -> Pod {
        self.try_run_pod(handler, self.pod(name)).unwrap_or_else(|e| panic!("{handler}: {e}"))
    }

    /// A container's description: of the test image, under a shell's control.
    pub fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: images::BUSYBOX.into(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// Makes a container in a pod.
    pub fn create(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = self.ask(self.client().create_container(request))?.container_id;
        self.network.node.note(&id);
        Ok(id)
    }

    /// Starts it.
    pub fn start(&self, id: &str) -> Result<(), Status> {
        self.ask(self.client().start_container(StartContainerRequest { container_id: id.into() })).map(drop)
    }

    /// Makes and starts one.
    #[track_caller]
    pub fn run(&self, pod: &Pod, config: ContainerConfig) -> String {
        let id = self.create(pod, config).unwrap();
        self.start(&id).unwrap();
        id
    }

    /// Makes and starts one that runs a script.
    #[track_caller]
    pub fn run_script(&self, pod: &Pod, name: &str, script: &str) -> String {
        self.run(pod, self.container(name, script))
    }

    /// Runs a command in a container to its end; 0 seconds is no limit.
    pub fn exec(&self, id: &str, command: &[&str], seconds: i64) -> Result<Said, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: seconds };
        let said = self.ask(self.client().exec_sync(request))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said { code: said.exit_code, stdout: text(said.stdout), stderr: text(said.stderr) })
    }

    /// What a shell in a container prints.
    #[track_caller]
    pub fn shell(&self, id: &str, script: &str) -> String {
        let said = self.exec(id, &["/bin/sh", "-c", script], 0).unwrap();
        assert_eq!(said.code, 0, "{script}: {said:?}");
        said.stdout
    }

    /// What containerd knows of a container.
    #[track_caller]
    pub fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.ask(self.client().container_status(request)).unwrap().status.unwrap()
    }

    /// Waits until a container has ended.
    #[track_caller]
    pub fn ended(&self, id: &str) -> ContainerStatus {
        let ended = poll(|| Some(self.status(id)).filter(|s| s.state() == ContainerState::ContainerExited));
        ended.unwrap_or_else(|| panic!("{id} never ended: {:?}", self.status(id)))
    }

    /// Stops a container, with so many seconds of grace.
    #[track_caller]
    pub fn stop(&self, id: &str, seconds: i64) {
        let request = StopContainerRequest { container_id: id.into(), timeout: seconds };
        self.ask(self.client().stop_container(request)).unwrap();
    }

    /// Removes a container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.ask(self.client().remove_container(RemoveContainerRequest { container_id: id.into() })).unwrap();
    }

    /// Stops a pod.
    #[track_caller]
    pub fn stop_pod(&self, id: &str) {
        self.ask(self.client().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() })).unwrap();
    }

    /// Stops a pod and removes it with all its containers; its control group must be empty then.
    #[track_caller]
    pub fn remove_pod(&self, pod: &Pod) {
        self.stop_pod(&pod.id);
        self.forget(&pod.id);
        remove_groups(&pod.config);
    }

    #[track_caller]
    fn forget(&self, id: &str) {
        self.ask(self.client().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() })).unwrap();
    }

    /// Whether a pod is ready.
    #[track_caller]
    pub fn pod_is_ready(&self, id: &str) -> bool {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let status = self.ask(self.client().pod_sandbox_status(request)).unwrap().status.unwrap();
        status.state() == PodSandboxState::SandboxReady
    }

    /// What a container's log has, without times and tags.
    pub fn log(&self, pod: &Pod, container: &str) -> String {
        let path = PathBuf::from(&pod.config.log_directory).join(format!("{container}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }

    /// Waits until a container has logged these lines, and no others.
    #[track_caller]
    pub fn logs(&self, pod: &Pod, container: &str, lines: &str) {
        let said = poll(|| (self.log(pod, container) == lines).then_some(()));
        assert!(said.is_some(), "{container} has logged {:?}, expected {lines:?}", self.log(pod, container));
    }

    /// The host pid of a container's first process.
    #[track_caller]
    pub fn pid(&self, id: &str) -> i32 {
        self.network.node.task(id).unwrap_or_else(|| panic!("no task {id}")).0
    }
}

/// `creto.dev/*` and other annotations of a pod.
pub fn annotations(all: &[(&str, &str)]) -> HashMap<String, String> {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Where control groups are made: each of version 1's trees and version 2's beside them, or version 2's alone.
pub fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    if top.join("cgroup.controllers").exists() {
        return vec![top];
    }
    let trees = fs::read_dir(&top).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir());
    trees.map(|e| e.path()).filter(|tree| tree.join("cgroup.procs").exists()).collect()
}

/// Those of one pod, in all hierarchies.
#[track_caller]
fn remove_groups(pod: &PodSandboxConfig) {
    let parent = &pod.linux.as_ref().unwrap().cgroup_parent;
    for top in hierarchies() {
        remove_group(&top.join(parent.trim_start_matches('/')));
    }
}

/// As a kubelet does, which does not ask what was in there; whoever still is keeps it, and the test fails.
#[track_caller]
fn remove_group(group: &std::path::Path) {
    let gone = poll(|| (fs::remove_dir(group).is_ok() || !group.exists()).then_some(()));
    let below: Vec<_> =
        fs::read_dir(group).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    assert!(gone.is_some(), "the pod's control group {} is not empty: {below:?}", group.display());
}

impl Drop for Cri {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // cleared away by force, without asking anyone
        }
        self.wait_until_ready();
        let all = self.ask(self.client().list_pod_sandbox(ListPodSandboxRequest::default())).unwrap().items;
        for pod in all {
            self.stop_pod(&pod.id);
            self.forget(&pod.id);
        }
        for group in self.pods.lock().unwrap().iter() {
            remove_group(group);
        }
        for top in hierarchies() {
            remove_group(&top.join(self.network.node.cgroup()));
        }
    }
}
