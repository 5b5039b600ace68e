//! Kata's habits do not reach the user: what its shim omits, says twice or leaves behind is made good by ours. Kata cannot
//! be installed where these tests run; `kata/` imitates it, habit by habit.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd_versions::smoke_set;
use crate::harness::events::Events;
use crate::harness::{Node, Setup, poll};

/// A node whose sandboxes are made by the imitation, with these of its switches.
fn on_kata(switches: &str) -> Node {
    let settings = "backend = \"kata\"\n".to_owned();
    let node = Node::with(Setup { settings, env: vec![("CRETO_E2E_VC", "/run/vc".into())], ..Setup::default() });
    symlink(env!("CARGO_BIN_EXE_creto-e2e-kata"), node.path("bin/containerd-shim-kata-v2")).unwrap();
    let config = node.path("kata.toml");
    fs::write(&config, switches).unwrap();
    let table = format!("[delegates.kata]\nshim = \"containerd-shim-kata-v2\"\nconfig_path = {config:?}\n");
    fs::write(node.path("creto/etc/runtime.toml"), format!("backend = \"kata\"\n{table}")).unwrap();
    node
}

/// Kata knows sandboxes by their ids alone, whatever containerd and namespace they are of.
fn id(node: &Node) -> String {
    format!("kata-{}", node.namespace())
}

#[test]
fn what_every_user_does_first_works() {
    let node = on_kata("");
    smoke_set(&node);
}

#[test]
fn events_are_whole_and_in_order_whatever_the_downstream_says_and_when() {
    for events in ["normal", "none", "doubled"] {
        for order in ["in-turn", "event-first", "reply-first"] {
            let node = on_kata(&format!("events = {events:?}\norder = {order:?}\n"));
            let heard = Events::of(&node);
            let name = id(&node);
            assert_eq!(node.run(&name, &[], &["sh", "-c", "exit 7"]).status, 7, "{events} {order}");
            assert_eq!(heard.until(&name, "delete"), ["create", "start", "exit", "delete"], "{events} {order}");
            node.assert_nothing_left();
        }
    }
}

#[test]
fn an_input_that_is_closed_before_its_end_blocks_nobody() {
    let node = on_kata("");
    let name = id(&node);
    let mut cat = node.run_piped(&name, &[], &["cat"]);
    cat.write(b"in\n");
    cat.wait_for("in");
    // ctr calls CloseIO before it closes the FIFO; the imitation then holds its lock until the FIFO ends.
    assert_eq!(cat.finish_without_input().ok(), "in\n");
    node.assert_nothing_left();
}

#[test]
fn why_no_machine_could_be_made_reaches_the_user_with_what_this_host_lacks() {
    for (switches, expected) in [
        ("hypervisor = \"missing\"", "CONFIG: file /usr/bin/"),
        ("hypervisor = \"ends-at-once\"", "failed to launch cloud-hypervisor"),
        ("syslog = false", "Unix syslog delivery error"),
    ] {
        let node = on_kata(switches);
        let name = id(&node);
        let said = node.run(&name, &[], &["true"]);
        assert!(said.status != 0 && said.stderr.contains("kata's shim: "), "{said:?}");
        assert!(said.stderr.contains(expected), "no {expected:?} in {said:?}");
        node.ctr(&["container", "rm", &name]);
        node.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_fails_takes_the_machine_that_waits_for_it_along() {
    let node = on_kata("");
    let name = id(&node);
    let mut spec: serde_json::Value = serde_json::from_str(&node.ctr(&["oci", "spec"]).ok()).unwrap();
    let root = node.path("rootfs");
    fs::create_dir(&root).unwrap();
    crate::harness::images::unpack(&root);
    spec["root"] = serde_json::json!({"path": root});
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["process"]["terminal"] = serde_json::json!(false);
    spec["hooks"] = serde_json::json!({"createRuntime": [{"path": "/bin/false"}]});
    let config = node.path("config.json");
    fs::write(&config, spec.to_string()).unwrap();
    node.note(&name);
    let run = ["run", "--rm", "--runtime", crate::harness::containerd::RUNTIME, "--config", config.to_str().unwrap()];
    let said = node.ctr(&[&run[..], &[&name]].concat());
    assert!(said.status != 0 && said.stderr.contains("hook /bin/false"), "{said:?}");
    node.ctr(&["container", "rm", &name]);
    node.assert_nothing_left();
    assert!(!fs::exists(format!("/run/vc/sbs/{name}")).unwrap(), "Kata's state of {name} is left");
}

#[test]
fn whoever_of_the_three_is_killed_the_task_ends_and_nothing_is_left() {
    for (victim, status) in [("containerd-shim-creto-v2", 137), ("containerd-shim-kata-v2", 137), ("vmm", 255)] {
        let node = on_kata("");
        let name = id(&node);
        let events = Events::of(&node);
        node.run_detached(&name, &[], &["sleep", "1000"]);
        let pid = match victim {
            "vmm" => node.task(&name).unwrap().0,
            // The imitation is known by the address that it was given; its helpers have none.
            "containerd-shim-kata-v2" => node.told("-address", &node.path("creto/run")),
            shim => node.processes(shim)[0],
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let exited = || events.of_tasks().into_iter().find(|event| event.topic == "/tasks/exit");
        let exited = poll(exited).unwrap_or_else(|| panic!("{victim}: no exit was heard of"));
        assert_eq!(exited.fields.get("exit_status").and_then(serde_json::Value::as_i64), Some(status), "{victim}");
        node.remove(&name);
        assert_eq!(events.until(&name, "delete"), ["create", "start", "exit", "delete"], "{victim}");
        node.assert_nothing_left();
        for left in ["/run/vc/sbs", "/run/vc/vm"] {
            assert!(!fs::exists(format!("{left}/{name}")).unwrap(), "{victim}: {left}/{name} is left");
        }
    }
}

#[test]
fn a_second_sandbox_of_a_name_is_refused_and_the_first_runs_on() {
    let (one, two) = (on_kata(""), on_kata(""));
    let name = id(&one);
    one.run_detached(&name, &[], &["sleep", "1000"]);
    let said = two.run(&name, &[], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("already exists"), "{said:?}");
    two.ctr(&["container", "rm", &name]);
    two.assert_nothing_left();
    assert_eq!(one.exec(&name, "e", &["sh", "-c", "exit 3"]).status, 3);
    one.remove(&name);
    one.assert_nothing_left();
}
