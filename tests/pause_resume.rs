//! A paused sandbox does nothing; resumed, it goes on where it was.

use std::fs;

use crate::harness::{Node, wait_until};

const COUNTS: [&str; 3] = ["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i; usleep 5000; done"];

#[test]
fn a_counter_stands_still_while_paused_and_then_goes_on() {
    let node = Node::start();
    let output = node.run_detached("c", &[], &COUNTS);
    let count = || fs::read_to_string(&output).unwrap().lines().count();
    wait_until("the counter to count", || count() > 10);
    node.ctr(&["task", "pause", "c"]).ok();
    assert_eq!(node.task("c").unwrap().1, "PAUSED");
    let at_pause = count();
    for _ in 0..10 {
        node.task("c"); // ten round trips: many times the 5 ms of a running counter's step
    }
    assert_eq!(count(), at_pause, "the counter went on while paused");
    node.ctr(&["task", "resume", "c"]).ok();
    assert_eq!(node.task("c").unwrap().1, "RUNNING");
    wait_until("the counter to go on", || count() > at_pause);
    let said = fs::read_to_string(&output).unwrap();
    let numbers: Vec<usize> = said.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "the counter jumped");
    node.remove("c");
}

#[test]
fn pause_and_resume_are_refused_where_they_make_no_sense() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    assert_ne!(node.ctr(&["task", "resume", "c"]).status, 0, "it is not paused");
    node.ctr(&["task", "pause", "c"]).ok();
    assert_ne!(node.ctr(&["task", "pause", "c"]).status, 0, "it is paused already");
    let exec = node.exec("c", "e", &["true"]);
    assert_ne!(exec.status, 0, "an exec in a paused task cannot run");
    node.ctr(&["task", "resume", "c"]).ok();
    assert_eq!(node.exec("c", "e2", &["true"]).status, 0);
    node.remove("c");
}

#[test]
fn a_paused_task_can_be_killed() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.ctr(&["task", "pause", "c"]).ok();
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    let removed = node.ctr(&["task", "rm", "c"]); // it warns of a status that is not 0
    assert!(removed.stderr.contains("137"), "{removed:?}");
    node.remove("c");
    node.assert_nothing_left();
}
