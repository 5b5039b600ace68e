//! Another shim makes the sandboxes where the operator says so: all works as with gVisor, and nothing of it is left.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd_versions::{kernel, smoke_set};
use crate::harness::events::Events;
use crate::harness::{Containerd, Node, Setup, wait_until};

/// runc's own shim makes the sandboxes; it shares the host's kernel, but it is real and it is here.
fn on_runc(containerd: Containerd) -> Node {
    let shim = containerd.bin().join("containerd-shim-runc-v2");
    let settings = format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n");
    Node::with(Setup { containerd, settings, ..Setup::default() })
}

#[test]
fn runcs_shim_of_containerd_1_6_runs_what_gvisor_runs() {
    let node = on_runc(Containerd::V1_6);
    assert_eq!(kernel(&node), fs::read_to_string("/proc/version").unwrap());
    smoke_set(&node);
}

#[test]
fn runcs_shim_of_containerd_2_4_runs_what_gvisor_runs() {
    let node = on_runc(Containerd::V2_4);
    assert_eq!(kernel(&node), fs::read_to_string("/proc/version").unwrap());
    smoke_set(&node);
}

#[test]
fn a_killed_shim_leaves_nothing_of_its_downstream() {
    for victim in ["containerd-shim-creto-v2", "containerd-shim-runc-v2"] {
        let node = on_runc(Containerd::V2_4);
        let events = Events::of(&node);
        node.run_detached("c", &[], &["sleep", "1000"]);
        let pids = node.processes(victim);
        assert_eq!(pids.len(), 1, "{victim}");
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
        wait_until("the task's end", || node.task("c").is_none_or(|(_, status)| status == "STOPPED"));
        node.remove("c");
        let heard = events.until("c", "delete");
        assert_eq!(heard, ["create", "start", "exit", "delete"], "{victim}");
        node.assert_nothing_left();
    }
}

#[test]
fn what_the_downstream_says_of_a_failed_create_reaches_the_user_and_nothing_is_left() {
    let node = on_runc(Containerd::V2_4);
    let said = node.run("c", &["--mount", "type=nosuchfs,src=x,dst=/x,options=ro"], &["true"]);
    assert!(said.status != 0, "{said:?}");
    for part in ["runc's shim: ", "OCI runtime create failed", "no such device"] {
        assert!(said.stderr.contains(part), "no {part:?} in {said:?}");
    }
    node.ctr(&["container", "rm", "c"]);
    node.assert_nothing_left();
}

#[test]
fn a_shim_that_cannot_be_started_fails_the_create_with_its_words_and_leaves_nothing() {
    for (shim, expected) in [
        ("/bin/false", "exit status 1"),
        ("/bin/true", "names no address"),
        ("containerd-shim-nowhere-v2", "there is no containerd-shim-nowhere-v2 in containerd's PATH"),
    ] {
        let settings = format!("[delegates.x]\nshim = {shim:?}\n");
        let node = Node::with(Setup { settings, ..Setup::default() });
        let said = node.run("c", &["--annotation", "creto.dev/backend=x"], &["true"]);
        assert!(said.status != 0 && said.stderr.contains(expected) && said.stderr.contains(shim), "{said:?}");
        node.ctr(&["container", "rm", "c"]);
        node.assert_nothing_left();
    }
}

#[test]
fn kata_is_known_and_where_it_is_not_installed_the_user_is_told_what_to_install() {
    let node = Node::start();
    let said = node.run("c", &["--annotation", "creto.dev/backend=kata"], &["true"]);
    assert!(said.status != 0, "{said:?}");
    for part in ["backend kata", "containerd-shim-kata-v2", "install it", "delegates.kata.shim"] {
        assert!(said.stderr.contains(part), "no {part:?} in {said:?}");
    }
    node.ctr(&["container", "rm", "c"]);
    node.assert_nothing_left();
}

#[test]
fn the_containers_of_a_pod_share_the_downstream_and_keep_its_backend() {
    let node = on_runc(Containerd::V2_4);
    let of = |kind| ["--annotation".to_owned(), format!("io.kubernetes.cri.container-type={kind}")];
    let group = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];
    let (pod, member) = (of("sandbox"), of("container"));
    let pod: Vec<&str> = pod.iter().map(String::as_str).chain(group).collect();
    let member: Vec<&str> = member.iter().map(String::as_str).chain(group).collect();
    let events = Events::of(&node);
    node.run_detached("pod", &pod, &["sleep", "1000"]);
    let before = (node.shims(), node.processes("containerd-shim-runc-v2"));
    assert_eq!((before.0.len(), before.1.len()), (1, 1));
    let mut cat = node.run_piped("one", &member, &["cat"]);
    cat.write(b"to a member\n");
    cat.wait_for("to a member");
    assert_eq!((node.shims(), node.processes("containerd-shim-runc-v2")), before);
    assert_eq!(cat.finish_without_input().ok(), "to a member\n");
    assert_eq!(events.until("one", "delete"), ["create", "start", "exit", "delete"]);
    let other = [&member[..], &["--annotation", "creto.dev/backend=gvisor"]].concat();
    let said = node.run("two", &other, &["true"]);
    assert!(said.status != 0 && said.stderr.contains("the pod's sandbox has runc"), "{said:?}");
    node.ctr(&["container", "rm", "two"]);
    assert_eq!(node.task("pod").unwrap().1, "RUNNING");
    node.remove("pod");
    node.assert_nothing_left();
}

#[test]
fn too_much_memory_is_heard_of_before_the_exit() {
    let node = on_runc(Containerd::V2_4);
    let events = Events::of(&node);
    let limit = (32 << 20).to_string();
    assert_eq!(node.run("c", &["--memory-limit", &limit], &["tail", "/dev/zero"]).status, 137);
    assert_eq!(events.until("c", "delete"), ["create", "start", "oom", "exit", "delete"]);
}

#[test]
fn metrics_and_pids_are_the_downstreams_own() {
    let node = on_runc(Containerd::V2_4);
    let limit: u64 = 64 << 20;
    node.run_detached("c", &["--memory-limit", &limit.to_string()], &["sleep", "1000"]);
    let metrics = node.ctr(&["task", "metrics", "--format", "json", "c"]).ok();
    assert!(metrics.contains(&limit.to_string()), "{metrics}");
    let (pid, _) = node.task("c").unwrap();
    assert!(node.ctr(&["task", "ps", "c"]).ok().contains(&pid.to_string()));
    node.remove("c");
}

#[test]
fn a_logging_program_gets_every_byte_of_a_delegated_container() {
    let node = on_runc(Containerd::V2_4);
    let dir = node.path("log");
    fs::create_dir(&dir).unwrap();
    let uri = format!("binary://{}?dir={}", env!("CARGO_BIN_EXE_creto-e2e-logger"), dir.display());
    assert_eq!(node.run("c", &["--log-uri", &uri], &["seq", "1", "100000"]).status, 0);
    // runc's shim starts it and, other than ours, kills it at the end: it does not come to write that it has ended.
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    wait_until("the whole output", || fs::read_to_string(dir.join("stdout")).is_ok_and(|text| text == expected));
}

#[test]
fn what_the_downstream_cannot_do_is_said_in_its_words_and_the_task_runs_on() {
    let node = on_runc(Containerd::V2_4);
    node.run_detached("c", &[], &["sleep", "1000"]);
    let image = node.path("saved");
    let said = node.ctr(&["task", "checkpoint", "--image-path", image.to_str().unwrap(), "c"]);
    assert!(said.status != 0 && said.stderr.contains("runc's shim: ") && said.stderr.contains("criu"), "{said:?}");
    assert_eq!(node.exec("c", "e", &["true"]).status, 0);
    node.remove("c");
    node.assert_nothing_left();
}
