//! Another shim makes the sandboxes where the operator says so: all works as with gVisor, and nothing of it is left.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd_versions::{kernel, smoke_set};
use crate::harness::events::Events;
use crate::harness::{Containerd, Node, Setup, wait_until};

/// runc's own shim makes the sandboxes; it shares the host's kernel, but it is real and it is here.
fn on_runc(containerd: Containerd) -> Node {
    let shim = containerd.bin().join("containerd-shim-runc-v2");
    let settings = format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n");
    Node::with(Setup { containerd, settings, ..Setup::default() })
}

#[test]
fn runcs_shim_of_containerd_1_6_runs_what_gvisor_runs() {
    let node = on_runc(Containerd::V1_6);
    assert_eq!(kernel(&node), fs::read_to_string("/proc/version").unwrap());
    smoke_set(&node);
}

#[test]
fn runcs_shim_of_containerd_2_4_runs_what_gvisor_runs() {
    let node = on_runc(Containerd::V2_4);
    assert_eq!(kernel(&node), fs::read_to_string("/proc/version").unwrap());
    smoke_set(&node);
}

#[test]
fn a_killed_shim_leaves_nothing_of_its_downstream() {
    for victim in ["containerd-shim-creto-v2", "containerd-shim-runc-v2"] {
        let node = on_runc(Containerd::V2_4);
        let events = Events::of(&node);
        node.run_detached("c", &[], &["sleep", "1000"]);
        let pids = node.processes(victim);
        assert_eq!(pids.len(), 1, "{victim}");
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
        wait_until("the task's end", || node.task("c").is_none_or(|(_, status)| status == "STOPPED"));
        node.remove("c");
        let heard = events.until("c", "delete");
        assert_eq!(heard, ["create", "start", "exit", "delete"], "{victim}");
        node.assert_nothing_left();
    }
}
