//! Many sandboxes at once get in nobody's way: every status and every byte is its own.

use crate::harness::Node;

#[test]
fn twenty_at_once_each_end_with_their_own_status_and_output() {
    let node = Node::start();
    std::thread::scope(|scope| {
        for n in 0..20 {
            let node = &node;
            scope.spawn(move || {
                let (id, script) = (format!("c{n}"), format!("seq 1 {n}000; exit {n}"));
                let finished = node.run(&id, &[], &["sh", "-c", &script]);
                let expected: String = (1..=n * 1000).map(|line| format!("{line}\n")).collect();
                assert_eq!(finished.status, n, "{id}: {}", finished.stderr);
                assert!(finished.stdout == expected.as_bytes(), "{id}: {} bytes", finished.stdout.len());
            });
        }
    });
    node.assert_nothing_left();
}

#[test]
fn twenty_execs_at_once_in_one_sandbox_each_end_with_their_own_status() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    std::thread::scope(|scope| {
        for n in 0..20 {
            let node = &node;
            scope.spawn(move || {
                let finished = node.exec("c", &format!("e{n}"), &["sh", "-c", &format!("echo {n}; exit {n}")]);
                assert_eq!((finished.status, finished.text()), (n, format!("{n}\n")), "{}", finished.stderr);
            });
        }
    });
    node.remove("c");
}

#[test]
fn names_that_are_prefixes_of_each_other_are_different_names() {
    let node = Node::start();
    for id in ["a", "ab", "abc"] {
        node.run_detached(id, &[], &["sh", "-c", &format!("echo {id}; sleep 1000")]);
    }
    for id in ["a", "ab", "abc"] {
        assert_eq!(node.exec(id, "e", &["echo", id]).ok(), format!("{id}\n"));
        node.remove(id);
    }
}
