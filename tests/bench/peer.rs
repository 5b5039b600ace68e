//! The same sandbox without us: the network by the same CNI plugins, then `runsc create` and `runsc start`, by hand. No identity, no fence,
//! no statement, no record, no containerd; its root file system is there already.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::figures::Samples;
use crate::harness::images;
use crate::harness::netns::Netns;
use crate::harness::network::Network;

/// A program to its end, which must be a good one.
fn done(mut command: Command, input: &[u8]) {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
}

fn plugin(network: &Network, verb: &str, id: &str, netns: &Path, conflist: &[u8]) {
    let plugins = ["/opt/cni/bin", "/usr/lib/cni"].into_iter().find(|dir| Path::new(dir).join("bridge").exists());
    let mut command = network.host.command(&format!("{}/bridge", plugins.expect("run scripts/setup system")));
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns);
    command.env("CNI_PATH", plugins.unwrap_or_default());
    done(command, conflist);
}

/// So many lives, one after the other: until its command runs.
pub fn bare(network: &Network, lives: usize) -> Samples {
    let (node, mut all) = (&network.node, Samples::default());
    let (bundle, root) = (node.path("bare"), node.path("bare-state"));
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    images::unpack(&bundle.join("rootfs"));
    let ipam =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.87.0.0/16"}]], "dataDir": node.path("bare-ipam")});
    let conflist = json!({
        "cniVersion": "1.0.0", "name": "bare", "type": "bridge", "bridge": "bare0", "isGateway": true, "ipMasq": true, "ipam": ipam,
    })
    .to_string();
    for life in 0..lives {
        let id = format!("bare-{life}");
        let began = Instant::now();
        let netns = Netns::new("bare");
        plugin(network, "ADD", &id, &netns.path(), conflist.as_bytes());
        let config = json!({
            "ociVersion": "1.0.0", "root": {"path": "rootfs"},
            "process": {"args": ["/bin/sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "network", "path": netns.path()}]},
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let runsc = |words: &[&str]| {
            let mut command = network.host.command(node.path("bin/runsc").to_str().unwrap());
            command.arg("--root").arg(&root).args(["--ignore-cgroups"]).args(words);
            command
        };
        done(runsc(&["create", "--bundle", bundle.to_str().unwrap(), &id]), b"");
        done(runsc(&["start", &id]), b"");
        all.add(began.elapsed());
        done(runsc(&["delete", "--force", &id]), b"");
        plugin(network, "DEL", &id, &netns.path(), conflist.as_bytes());
    }
    let _ = umount2(&root.join("null-netns"), MntFlags::MNT_DETACH); // runsc makes it, and keeps it
    all
}
