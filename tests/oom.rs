//! A workload that takes more memory than it was given is killed, and containerd hears why before it hears that.

use crate::harness::Node;
use crate::harness::events::Events;

#[test]
fn too_much_memory_is_an_oom_event_and_then_137() {
    let node = Node::start();
    let events = Events::of(&node);
    let limit = (96 << 20).to_string();
    let finished = node.run("c", &["--memory-limit", &limit], &["tail", "/dev/zero"]);
    assert_eq!(finished.status, 137, "{finished:?}");
    assert_eq!(events.until("c", "delete"), ["create", "start", "oom", "exit", "delete"]);
}

#[test]
fn enough_memory_is_no_oom() {
    let node = Node::start();
    let events = Events::of(&node);
    let limit = (256 << 20).to_string();
    assert_eq!(node.run("c", &["--memory-limit", &limit], &["true"]).status, 0);
    assert_eq!(events.until("c", "delete"), ["create", "start", "exit", "delete"]);
}
