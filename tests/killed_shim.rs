//! A shim that is killed loses its tasks and nothing else: containerd reports 137, and the machine is clean.

use std::fs;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::events::Events;
use crate::harness::{Node, wait_until};

fn kill_the_shim(node: &Node) {
    let shims = node.shims();
    assert_eq!(shims.len(), 1, "one shim and no helper process");
    kill(Pid::from_raw(shims[0]), Signal::SIGKILL).unwrap();
}

#[test]
fn containerd_reports_137_and_nothing_is_left() {
    let node = Node::start();
    let events = Events::of(&node);
    let ctr = node.run_piped("c", &[], &["sh", "-c", "echo running; sleep 1000"]);
    ctr.wait_for("running");
    kill_the_shim(&node);
    let heard = events.until("c", "delete");
    assert_eq!(heard, ["create", "start", "exit", "delete"]);
    let exit = events.of_tasks().into_iter().find(|event| event.topic == "/tasks/exit").unwrap();
    assert_eq!(exit.fields["exit_status"], 137, "{exit:?}");
    // Its call to the shim is cut off: what matters is that it ends, and not with success.
    assert_ne!(ctr.finish_without_input().status, 0);
    node.assert_nothing_left();
}

#[test]
fn a_paused_sandbox_of_a_killed_shim_goes_too() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.ctr(&["task", "pause", "c"]).ok();
    kill_the_shim(&node);
    crate::harness::wait_until("containerd to forget the task", || node.task("c").is_none());
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn the_same_name_can_be_used_again() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    kill_the_shim(&node);
    crate::harness::wait_until("containerd to forget the task", || node.task("c").is_none());
    node.remove("c");
    assert_eq!(node.run("c", &[], &["echo", "again"]).ok(), "again\n");
}

#[test]
fn a_killed_sandbox_is_a_killed_task() {
    let node = Node::start();
    let ctr = node.run_piped("c", &[], &["sh", "-c", "echo running; sleep 1000"]);
    ctr.wait_for("running");
    for pid in node.sandboxes() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    assert_eq!(ctr.finish_without_input().status, 137);
    node.assert_nothing_left();
}

#[test]
fn sigterm_to_the_shim_ends_its_sandbox_too() {
    let node = Node::start();
    let events = Events::of(&node);
    let ctr = node.run_piped("c", &[], &["sh", "-c", "echo running; sleep 1000"]);
    ctr.wait_for("running");
    kill(Pid::from_raw(node.shims()[0]), Signal::SIGTERM).unwrap();
    assert_ne!(ctr.finish_without_input().status, 0);
    assert_eq!(events.until("c", "delete"), ["create", "start", "exit", "delete"]);
    node.assert_nothing_left();
}

#[test]
fn a_shim_that_containerd_has_forgotten_ends_with_its_sandbox() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.kill_containerd();
    // As a containerd does that comes back and gets no answer in time.
    let bundle = node.bundle("c");
    umount2(&bundle.join("rootfs"), MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir_all(&bundle).unwrap();
    wait_until("the shim and the sandbox are gone", || node.shims().is_empty() && node.sandboxes().is_empty());
    node.start_containerd();
    assert_eq!(node.task("c"), None);
    node.ctr(&["container", "rm", "c"]).ok();
    node.assert_nothing_left();
}
