//! What containerd's subscribers hear of a task: everything, in order, and exactly one exit.

use serde_json::Value;

use crate::harness::Node;
use crate::harness::events::Events;

#[test]
fn a_task_is_created_started_exited_and_deleted_in_this_order() {
    let node = Node::start();
    let events = Events::of(&node);
    for id in ["short", "again"] {
        assert_eq!(node.run(id, &[], &["true"]).status, 0);
        assert_eq!(events.until(id, "delete"), ["create", "start", "exit", "delete"], "{id}");
    }
}

#[test]
fn an_exec_is_added_started_and_exits_before_its_task_does() {
    let node = Node::start();
    let events = Events::of(&node);
    node.run_detached("c", &[], &["sleep", "1000"]);
    assert_eq!(node.exec("c", "e", &["sh", "-c", "exit 3"]).status, 3);
    events.until("c", "exit e");
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    node.remove("c");
    let heard = events.until("c", "delete");
    assert_eq!(heard, ["create", "start", "exec-added e", "exec-started e", "exit e", "exit", "delete"]);
}

#[test]
fn an_exec_that_still_runs_exits_before_the_task_that_takes_it_along() {
    let node = Node::start();
    let events = Events::of(&node);
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.ctr(&["task", "exec", "--detach", "--exec-id", "e", "c", "sleep", "1000"]).ok();
    events.until("c", "exec-started e");
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    let heard = events.until("c", "exit");
    assert_eq!(heard, ["create", "start", "exec-added e", "exec-started e", "exit e", "exit"]);
    node.remove("c");
}

#[test]
fn pause_and_resume_are_heard() {
    let node = Node::start();
    let events = Events::of(&node);
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.ctr(&["task", "pause", "c"]).ok();
    node.ctr(&["task", "resume", "c"]).ok();
    assert_eq!(events.until("c", "resumed"), ["create", "start", "paused", "resumed"]);
    node.remove("c");
}

#[test]
fn events_say_which_process_of_the_host_and_which_status() {
    let node = Node::start();
    let events = Events::of(&node);
    node.run_detached("c", &[], &["sh", "-c", "usleep 100000; exit 6"]);
    let (pid, _) = node.task("c").unwrap();
    events.until("c", "exit");
    let all = events.of_tasks();
    let field = |topic: &str, name: &str| {
        let event = all.iter().find(|event| event.topic == topic).unwrap();
        event.fields.get(name).and_then(Value::as_i64).unwrap_or_default()
    };
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exit"] {
        assert_eq!(field(topic, "pid"), i64::from(pid), "{topic}");
    }
    assert_eq!(field("/tasks/exit", "exit_status"), 6);
    node.remove("c");
}
