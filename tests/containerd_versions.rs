//! What works, works with every containerd and every runsc that docs/compatibility.md lists.

use crate::harness::events::Events;
use crate::harness::process::Running;
use crate::harness::terminal::Terminal;
use crate::harness::{Containerd, Node, Runsc, Setup};

#[track_caller]
fn smoke(containerd: Containerd, runsc: Runsc) {
    let node = Node::with(Setup { containerd, runsc, ..Setup::default() });
    let (inside, host) = (kernel(&node), std::fs::read_to_string("/proc/version").unwrap());
    assert!(inside.starts_with("Linux version 4.") && inside != host, "not gVisor's kernel: {inside}");
    smoke_set(&node);
}

/// The kernel that a workload sees.
pub fn kernel(node: &Node) -> String {
    node.run("kernel", &[], &["cat", "/proc/version"]).ok()
}

/// What every user does first, on whatever makes the node's sandboxes.
#[track_caller]
pub fn smoke_set(node: &Node) {
    let events = Events::of(node);

    assert_eq!(node.run("run", &[], &["sh", "-c", "exit 7"]).status, 7);
    assert_eq!(events.until("run", "delete"), ["create", "start", "exit", "delete"]);

    let mut cat = node.run_piped("cat", &[], &["cat"]);
    cat.write(b"in and out\n");
    assert_eq!(cat.finish_without_input().ok(), "in and out\n");

    let missing = node.run("missing", &[], &["no-such-program"]);
    assert!(missing.status != 0 && missing.stderr.contains("no-such-program"), "{missing:?}");

    let output = node.run_detached("main", &[], &["sh", "-c", "echo up; sleep 1000"]);
    crate::harness::wait_until("its first line", || std::fs::read_to_string(&output).is_ok_and(|text| text == "up\n"));
    assert_eq!(node.exec("main", "e1", &["sh", "-c", "exit 3"]).status, 3);
    let mut exec = Running::start(node.ctr_command(&["task", "exec", "--exec-id", "e2", "main", "cat"]));
    exec.write(b"exec\n");
    assert_eq!(exec.finish_without_input().ok(), "exec\n");
    let mut terminal = Terminal::run(&node.ctr_command(&["task", "exec", "--tty", "--exec-id", "e3", "main", "sh"]));
    terminal.resize(30, 100);
    terminal.type_in("echo $((40 + 2)) terminals; exit 6\n");
    terminal.wait_for("42 terminals");
    assert_eq!(terminal.finish().0.status, 6);

    node.ctr(&["task", "pause", "main"]).ok();
    assert_eq!(node.task("main").unwrap().1, "PAUSED");
    node.ctr(&["task", "resume", "main"]).ok();
    node.stop_containerd();
    node.start_containerd();
    assert_eq!(node.task("main").unwrap().1, "RUNNING");
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "main"]).ok();
    node.wait_for_task("main", "STOPPED");
    node.remove("main");
    node.assert_nothing_left();
}

#[test]
fn containerd_1_6() {
    smoke(Containerd::V1_6, Runsc::Y2026);
}

#[test]
fn containerd_1_7() {
    smoke(Containerd::V1_7, Runsc::Y2026);
}

#[test]
fn containerd_2_4() {
    smoke(Containerd::V2_4, Runsc::Y2026);
}

#[test]
fn runsc_of_2024_under_containerd_2_4() {
    smoke(Containerd::V2_4, Runsc::Y2024);
}

#[test]
fn runsc_of_2024_under_containerd_1_6() {
    smoke(Containerd::V1_6, Runsc::Y2024);
}
