//! Containers of a spec of the test's own: `ctr`'s, with a change. The same question is put to runc, which knows the answer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::containerd::{Node, RUNTIME};
use super::images;
use super::network::probe_files;
use super::process::Finished;

/// containerd's own runtime.
pub const RUNC: &str = "io.containerd.runc.v2";

/// A root file system and what is run on it.
pub struct Specs<'a> {
    node: &'a Node,
    root: PathBuf,
}

impl<'a> Specs<'a> {
    /// With a root of its own, in which nothing is changed but by the test.
    pub fn of(node: &'a Node) -> Self {
        let root = node.path("rootfs");
        fs::create_dir_all(&root).unwrap();
        images::unpack(&root);
        for (from, to) in probe_files() {
            let at = root.join(to.trim_start_matches('/'));
            match from.is_dir() {
                true => fs::create_dir_all(at).unwrap(),
                false => fs::write(at, "").unwrap(),
            }
        }
        Self { node, root }
    }

    /// Where the root is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `ctr run` would make, with the host's Python, for a shell's script.
    pub fn spec(&self, script: &str) -> Value {
        let mut spec: Value = serde_json::from_str(&self.node.ctr(&["oci", "spec"]).ok()).unwrap();
        spec["root"] = json!({"path": self.root});
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        spec["process"]["env"] = json!(["PATH=/bin:/usr/bin"]);
        spec["process"]["terminal"] = json!(false);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/c", self.node.namespace()));
        let mount = |(from, to): (PathBuf, &str)| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().extend(probe_files().into_iter().map(mount));
        spec
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self, runtime: &str, spec: &Value) -> Finished {
        let config = self.node.path("spec.json");
        fs::write(&config, spec.to_string()).unwrap();
        self.node.note("c");
        let said = self.node.ctr(&["run", "--rm", "--runtime", runtime, "--config", config.to_str().unwrap(), "c"]);
        if said.status != 0 {
            self.node.ctr(&["container", "rm", "c"]); // of a failed Create it stays
        }
        said
    }

    /// What it says under runc and, which must be the same, under gVisor.
    #[track_caller]
    pub fn same(&self, spec: &Value) -> String {
        let [runc, gvisor] = [RUNC, RUNTIME].map(|runtime| self.run(runtime, spec));
        let runc = runc.ok();
        assert_eq!(gvisor.ok(), runc, "gVisor (left) and runc (right)");
        runc
    }

    /// What Create says where there is to be nothing; nothing is left of it.
    #[track_caller]
    pub fn refusal(&self, spec: &Value) -> String {
        let said = self.run(RUNTIME, spec);
        assert!(said.status != 0, "not refused: {said:?}");
        self.node.assert_nothing_left();
        said.stderr
    }
}
