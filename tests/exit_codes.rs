//! The status of a process is what it says on leaving, or 128 + n where signal n ended it, whoever asks.

use crate::harness::Node;

/// Says `up`, then waits for TERM and leaves with 9.
pub const LEAVES_ON_TERM: [&str; 3] = ["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do usleep 10000; done"];

#[test]
fn ctr_run_ends_with_the_status_of_the_workload() {
    let node = Node::start();
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let finished = node.run("status", &[], &["sh", "-c", script]);
        assert_eq!(finished.status, status, "{script}: {finished:?}");
    }
}

#[test]
fn an_exec_ends_with_its_own_status_and_the_workload_runs_on() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    for (n, (script, status)) in [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)].into_iter().enumerate() {
        let finished = node.exec("c", &format!("e{n}"), &["sh", "-c", script]);
        assert_eq!(finished.status, status, "{script}: {finished:?}");
    }
    assert_eq!(node.task("c").unwrap().1, "RUNNING");
    node.remove("c");
}

#[test]
fn a_signal_reaches_the_workload_and_its_answer_is_the_status() {
    let node = Node::start();
    for (signal, status) in [("SIGTERM", 9), ("SIGKILL", 137), ("SIGINT", 130)] {
        let ctr = node.run_piped("c", &[], &LEAVES_ON_TERM);
        ctr.wait_for("up");
        node.ctr(&["task", "kill", "--signal", signal, "c"]).ok();
        assert_eq!(ctr.finish_without_input().status, status, "{signal}");
    }
}

#[test]
fn a_second_kill_is_not_found() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    let second = node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]);
    assert_ne!(second.status, 0);
    assert!(second.stderr.contains("not found"), "{second:?}");
    let removed = node.ctr(&["task", "rm", "c"]); // it warns of a status that is not 0
    assert!(removed.stderr.contains("137"), "{removed:?}");
    node.remove("c");
}

#[test]
fn a_missing_program_is_named_at_once_and_nothing_stays() {
    let node = Node::start();
    for program in ["no-such-program", "/bin/no-such-program", "/etc/passwd"] {
        let failed = node.run("c", &[], &[program]);
        assert_ne!(failed.status, 0, "{program}");
        assert!(failed.stderr.contains(program), "the error does not name {program}: {failed:?}");
        node.assert_nothing_left();
    }
}

#[test]
fn an_exec_of_a_missing_program_fails_and_the_workload_runs_on() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let failed = node.exec("c", "e", &["no-such-program"]);
    assert_ne!(failed.status, 0);
    assert!(failed.stderr.contains("no-such-program"), "{failed:?}");
    assert_eq!(node.exec("c", "e2", &["true"]).status, 0);
    node.remove("c");
}
