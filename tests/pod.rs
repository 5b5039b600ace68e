//! The containers of a pod share one sandbox and one shim, and live and die each for itself.

use crate::harness::events::Events;
use crate::harness::process::Finished;
use crate::harness::{Node, wait_until};

/// The container that a pod begins with.
pub const POD: [&str; 4] =
    ["--annotation", "io.kubernetes.cri.container-type=sandbox", "--annotation", "io.kubernetes.cri.sandbox-id=pod"];
/// A further container of that pod.
pub const MEMBER: [&str; 4] =
    ["--annotation", "io.kubernetes.cri.container-type=container", "--annotation", "io.kubernetes.cri.sandbox-id=pod"];

fn with_pod() -> Node {
    let node = Node::start();
    node.run_detached("pod", &POD, &["sleep", "1000"]);
    node
}

fn member(node: &Node, id: &str, script: &str) -> Finished {
    node.run(id, &MEMBER, &["sh", "-c", script])
}

#[test]
fn two_containers_share_one_sandbox_and_one_shim() {
    let node = with_pod();
    let before = (node.shims(), node.sandboxes());
    node.run_detached("one", &MEMBER, &["sleep", "1001"]);
    node.run_detached("two", &MEMBER, &["sleep", "1002"]);
    assert_eq!((node.shims(), node.sandboxes()), before, "a member has a shim or a sandbox of its own");
    assert_eq!(before.0.len(), 1);
    for id in ["one", "two"] {
        assert_eq!(node.exec(id, "e", &["sh", "-c", "exit 3"]).status, 3);
    }
    for id in ["two", "one", "pod"] {
        node.remove(id);
    }
    node.assert_nothing_left();
}

#[test]
fn members_have_their_own_files_statuses_and_output() {
    let node = with_pod();
    for (id, status) in [("one", 4), ("two", 5)] {
        let ended = member(&node, id, &format!("echo {id} > /tmp/me; cat /tmp/me; ls /tmp; exit {status}"));
        assert_eq!((ended.status, ended.text()), (status, format!("{id}\nme\n")), "{ended:?}");
    }
    assert_eq!(node.task("pod").unwrap().1, "RUNNING");
    node.remove("pod");
}

#[test]
fn a_member_reads_its_stdin_to_the_end() {
    let node = with_pod();
    let mut ctr = node.run_piped("one", &MEMBER, &["cat"]);
    ctr.write(b"to a member\n");
    assert_eq!(ctr.finish_without_input().ok(), "to a member\n");
    node.remove("pod");
}

#[test]
fn a_missing_program_of_a_member_is_named_and_the_pod_runs_on() {
    let node = with_pod();
    let failed = node.run("one", &MEMBER, &["no-such-program"]);
    assert!(failed.status != 0 && failed.stderr.contains("no-such-program"), "{failed:?}");
    assert_eq!(member(&node, "one", "exit 0").status, 0, "its name is free again");
    node.remove("pod");
}

#[test]
fn each_container_has_its_own_events_and_exactly_one_exit() {
    let node = Node::start();
    let events = Events::of(&node);
    node.run_detached("pod", &POD, &["sleep", "1000"]);
    assert_eq!(member(&node, "one", "exit 1").status, 1);
    assert_eq!(events.until("one", "delete"), ["create", "start", "exit", "delete"]);
    node.run_detached("two", &MEMBER, &["sleep", "1000"]);
    for id in ["two", "pod"] {
        node.remove(id);
        assert_eq!(events.until(id, "delete"), ["create", "start", "exit", "delete"], "{id}");
    }
}

#[test]
fn members_end_when_the_pod_s_first_container_is_killed() {
    let node = with_pod();
    node.run_detached("one", &MEMBER, &["sleep", "1000"]);
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "pod"]).ok();
    node.wait_for_task("pod", "STOPPED");
    node.wait_for_task("one", "STOPPED");
    node.remove("one");
    node.remove("pod");
    node.assert_nothing_left();
}

#[test]
fn a_killed_shim_takes_the_whole_pod_and_leaves_nothing() {
    let node = with_pod();
    node.run_detached("one", &MEMBER, &["sleep", "1000"]);
    for pid in node.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    wait_until("containerd to forget the tasks", || node.task("pod").is_none() && node.task("one").is_none());
    node.remove("one");
    node.remove("pod");
    node.assert_nothing_left();
}
