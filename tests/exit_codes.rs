//! The status of a process is what it says on leaving, or 128 + n where signal n ended it, whoever asks.

use crate::harness::Node;

#[test]
fn ctr_run_ends_with_the_status_of_the_workload() {
    let node = Node::start();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let finished = node.run("status", &[], &["sh", "-c", script]);
        assert_eq!(finished.status, status, "{script}: {finished:?}");
    }
}
