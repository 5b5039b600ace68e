//! What nerdctl does for `run -d`, `logs`, `exec`, `stop` and `rm`, call by call: no task options, an OCI hook that wires
//! the network, its annotations, a `binary://` logger. (nerdctl itself cannot be installed where these tests run.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Node, images, wait_until};

const LOGGER: &str = env!("CARGO_BIN_EXE_creto-e2e-logger");

/// A container's spec as nerdctl writes it, over a root file system of its own.
struct Nerdctl {
    node: Node,
    spec: Value,
    log: PathBuf,
}

impl Nerdctl {
    fn new(script: &str) -> Self {
        let node = Node::start();
        let (root, log) = (node.path("rootfs"), node.path("log"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&log).unwrap();
        images::unpack(&root);
        let mut spec: Value = serde_json::from_str(&node.ctr(&["oci", "spec"]).ok()).unwrap();
        spec["root"] = json!({"path": root, "readonly": false});
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        spec["process"]["terminal"] = json!(false);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/c", node.namespace())); // --cgroup-manager cgroupfs
        spec["annotations"] = json!({"nerdctl/namespace": node.namespace(), "nerdctl/platform": "linux/amd64"});
        Self { node, spec, log }
    }

    /// A hook that notes what it is given.
    fn hook(&mut self, kind: &str) {
        let program = self.node.path(&format!("{kind}.sh"));
        let state = self.node.path(&format!("{kind}.json"));
        let netns = self.node.path(&format!("{kind}.netns"));
        let script = format!(
            "#!/bin/sh\ncat > {s}\npid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' {s} | tr -d '\\n')\nreadlink /proc/$pid/ns/net > {n}\nexit 0\n",
            s = state.display(),
            n = netns.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        self.spec["hooks"][kind] = json!([{"path": program, "args": [kind]}]);
    }

    /// `nerdctl run -d`.
    fn run(&self) {
        let config = self.node.path("config.json");
        fs::write(&config, self.spec.to_string()).unwrap();
        let uri = format!("binary://{LOGGER}?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib&dir={}", self.log.display());
        self.node.note("c");
        let runtime = ["run", "--detach", "--runtime", crate::harness::containerd::RUNTIME];
        let args = [&runtime[..], &["--log-uri", &uri, "--config", config.to_str().unwrap(), "c"]].concat();
        self.node.ctr(&args).ok();
    }

    fn logs(&self) -> String {
        fs::read_to_string(self.log.join("stdout")).unwrap_or_default()
    }
}

#[test]
fn run_logs_exec_stop_and_rm() {
    let nerdctl = Nerdctl::new("trap 'echo stopping; exit 0' TERM; echo up; while :; do usleep 10000; done");
    nerdctl.run();
    let node = &nerdctl.node;
    wait_until("the log's first line", || nerdctl.logs() == "up\n");
    let args = fs::read_to_string(nerdctl.log.join("args")).unwrap();
    assert!(args.contains("_NERDCTL_INTERNAL_LOGGING /var/lib"), "{args}");
    assert_eq!(node.exec("c", "e", &["echo", "hello"]).ok(), "hello\n");
    node.ctr(&["task", "kill", "--signal", "SIGTERM", "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    wait_until("the logger's end", || nerdctl.log.join("ended").exists());
    assert_eq!(nerdctl.logs(), "up\nstopping\n");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn hooks_run_with_the_container_s_own_name_bundle_and_network_namespace() {
    let mut nerdctl = Nerdctl::new("sleep 1000");
    for kind in ["createRuntime", "poststop"] {
        nerdctl.hook(kind);
    }
    nerdctl.run();
    let node = &nerdctl.node;
    let state = |kind: &str| -> Value {
        let text = fs::read_to_string(node.path(&format!("{kind}.json"))).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("the hook {kind} was given {text:?}"))
    };
    let given = state("createRuntime");
    assert_eq!(given["id"], "c", "nerdctl looks its container up by this id: {given}");
    assert_eq!(given["bundle"], json!(node.bundle("c")), "nerdctl reads config.json there: {given}");
    assert_eq!(given["annotations"]["nerdctl/namespace"], json!(node.namespace()), "{given}");
    let netns = fs::read_to_string(node.path("createRuntime.netns")).unwrap();
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(netns.starts_with("net:") && netns.trim() != host.to_str().unwrap(), "the host's namespace: {netns}");
    node.remove("c");
    assert_eq!(state("poststop")["id"], "c");
}

#[test]
fn a_hook_that_fails_fails_the_create_and_leaves_nothing() {
    let mut nerdctl = Nerdctl::new("sleep 1000");
    let false_path = fs::canonicalize("/bin/false").unwrap();
    nerdctl.spec["hooks"]["createRuntime"] = json!([{"path": false_path, "args": ["false"]}]);
    let node = &nerdctl.node;
    let config = node.path("config.json");
    fs::write(&config, nerdctl.spec.to_string()).unwrap();
    node.note("c");
    let runtime = ["run", "--rm", "--runtime", crate::harness::containerd::RUNTIME];
    let failed = node.ctr(&[&runtime[..], &["--config", config.to_str().unwrap(), "c"]].concat());
    assert!(failed.status != 0 && failed.stderr.contains("hook"), "{failed:?}");
    node.assert_nothing_left();
}
