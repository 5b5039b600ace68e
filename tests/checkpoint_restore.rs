//! A checkpoint is a sandbox's whole state: what goes on from it goes on where it was.

use std::fs;

use crate::harness::{Node, wait_until};

/// Counts in its memory, and says so.
const COUNTS: [&str; 3] = ["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i; usleep 10000; done"];

fn numbers(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_task_counts_on_after_a_checkpoint_that_leaves_it_running() {
    let node = Node::start();
    let output = node.run_detached("c", &[], &COUNTS);
    let said = || numbers(&fs::read_to_string(&output).unwrap());
    wait_until("the counter to count", || said().len() > 10);
    let image = node.path("saved");
    node.ctr(&["task", "checkpoint", "--image-path", image.to_str().unwrap(), "c"]).ok();
    assert!(fs::read_dir(&image).unwrap().next().is_some(), "the checkpoint is empty");
    let then = said().len();
    wait_until("the counter to go on", || said().len() > then + 10);
    assert!(said().windows(2).all(|pair| pair[1] == pair[0] + 1), "the counter jumped");
    assert_eq!(node.task("c").unwrap().1, "RUNNING");
    node.remove("c");
}

#[test]
fn a_task_ends_with_a_checkpoint_that_says_so() {
    let node = Node::start();
    node.run_detached("c", &[], &COUNTS);
    let image = node.path("saved");
    node.ctr(&["task", "checkpoint", "--exit", "--image-path", image.to_str().unwrap(), "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn a_checkpoint_into_a_directory_with_something_in_it_is_refused_and_the_task_runs_on() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let image = node.path("saved");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("precious"), "data").unwrap();
    let refused = node.ctr(&["task", "checkpoint", "--image-path", image.to_str().unwrap(), "c"]);
    assert!(refused.status != 0 && refused.stderr.contains("saved"), "{refused:?}");
    assert_eq!(fs::read_to_string(image.join("precious")).unwrap(), "data");
    assert_eq!(node.exec("c", "e", &["true"]).status, 0);
    node.remove("c");
}

#[test]
fn a_counter_goes_on_in_the_container_restored_from_a_checkpoint() {
    let node = Node::start();
    // Its count is in memory alone; each number goes to a file of the host's, shared by both lives.
    let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", node.path("fifos").display());
    let script = "i=0; while :; do i=$((i + 1)); echo $i >> /host/counter; usleep 10000; done";
    node.run_detached("c", &["--mount", &mount], &["sh", "-c", script]);
    let said = || numbers(&fs::read_to_string(node.path("fifos/counter")).unwrap_or_default());
    wait_until("the counter to count", || said().len() > 10);
    let reference = "test.creto.dev/saved:1";
    node.ctr(&["container", "checkpoint", "--rw", "--image", "--task", "c", reference]).ok();
    node.remove("c");
    let before = said();
    node.note("again");
    node.ctr(&["container", "restore", "--rw", "--live", "again", reference]).ok();
    wait_until("the restored counter to count", || said().len() > before.len() + 10);
    let all = said();
    let resumed = all[before.len()];
    assert!(
        resumed > 10 && resumed <= before.last().unwrap() + 1,
        "it began again at {resumed} after {:?}",
        before.last()
    );
    assert!(all[before.len()..].windows(2).all(|pair| pair[1] == pair[0] + 1), "the restored counter jumped");
    node.remove("again");
    node.assert_nothing_left();
}
