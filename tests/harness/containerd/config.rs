//! A test's containerd's config.toml. With the CRI plugin it is that of docs/kubernetes.md, in the node's own places.

use std::path::Path;

use super::super::parts::Containerd;
use super::super::{images, parts};
use crate::harness::cri::GVISORS_OWN;

/// Where Debian puts the CNI plugins, or their own release does.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The file of a node whose things are in `dir`; `cri` is the snapshotter of its pods.
pub fn text(dir: &Path, containerd: Containerd, cri: Option<&str>) -> String {
    let version = if containerd == Containerd::V2_4 { 3 } else { 2 };
    let mut disabled = vec!["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.devmapper"];
    if cri.is_none() {
        disabled.extend(["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]);
    }
    let cri = cri.map(|snapshotter| pods(dir, containerd, snapshotter)).unwrap_or_default();
    let dir = dir.display();
    format!(
        r#"version = {version}
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = {disabled:?}
[grpc]
address = "{dir}/c.sock"
[ttrpc]
address = "{dir}/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/opt"
{cri}"#
    )
}

fn pods(dir: &Path, containerd: Containerd, snapshotter: &str) -> String {
    let plugins = PLUGINS.into_iter().find(|dir| Path::new(dir).join("bridge").exists());
    let plugins = plugins.expect("the CNI plugins are not installed: run scripts/setup system");
    let (dir, pause) = (dir.display(), images::PAUSE);
    let both = "netns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true";
    let stream = "stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"";
    let runtimes = |plugin: &str, runc: &str| {
        format!(
            r#"[plugins."{plugin}".containerd.runtimes.creto]
runtime_type = "io.containerd.creto.v2"
pod_annotations = ["creto.dev/*"]
container_annotations = ["creto.dev/*"]
[plugins."{plugin}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{runc}"#
        )
    };
    if containerd == Containerd::V2_4 {
        let peer = |shim: std::path::PathBuf| {
            let table = format!("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{GVISORS_OWN}]");
            format!("{table}\nruntime_type = \"io.containerd.runsc.v1\"\nruntime_path = {shim:?}")
        };
        let peer = parts::gvisor_shim().map(peer).unwrap_or_default();
        let runtimes = runtimes("io.containerd.cri.v1.runtime", &peer);
        return format!(
            r#"[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"
pinned_images = {{ sandbox = "{pause}" }}
[plugins."io.containerd.cri.v1.runtime"]
{both}
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{dir}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "creto"
{runtimes}
[plugins."io.containerd.grpc.v1.cri"]
{stream}
"#
        );
    }
    // 1.7 is built here without runc's shim; Debian's containerd has one.
    let runc = parts::Containerd::V1_6.bin().join("containerd-shim-runc-v2");
    let runtimes = runtimes("io.containerd.grpc.v1.cri", &format!("runtime_path = \"{}\"", runc.display()));
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
{both}
{stream}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{dir}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "creto"
{runtimes}
"#
    )
}
