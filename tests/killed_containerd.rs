//! A containerd that is killed while it makes sandboxes, at any moment of it, leaves nothing that its successor would not find.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::harness::{Node, poll};

/// As a lack of memory ends them: all that asked is gone, and a new containerd finds shims that are in the middle of it.
#[test]
fn a_containerd_that_is_killed_while_sandboxes_are_made_leaves_nothing_behind() {
    let node = Node::start();
    for round in 0..6 {
        let ids: Vec<_> = (0..4).map(|n| format!("c{round}-{n}")).collect();
        let mut clients: Vec<_> = ids
            .iter()
            .map(|id| {
                let mut client = node.ctr_command(&node.run_args(id, &["--detach", "--null-io"], &["sleep", "1000"]));
                client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        #[expect(clippy::disallowed_methods, reason = "any moment of the way")]
        thread::sleep(Duration::from_millis(100 + 70 * round));
        node.kill_containerd();
        for client in &mut clients {
            client.wait().unwrap();
        }
        node.start_containerd();
        ids.iter().for_each(|id| take_away(&node, id));
        node.assert_nothing_left();
    }
}

/// As a successor does.
fn take_away(node: &Node, id: &str) {
    let gone = poll(|| {
        node.ctr(&["task", "rm", "--force", id]);
        node.ctr(&["container", "rm", id]);
        (!node.ctr(&["container", "ls", "-q"]).ok().lines().any(|one| one == id)).then_some(())
    });
    assert!(gone.is_some(), "{id} is not to be removed");
}
