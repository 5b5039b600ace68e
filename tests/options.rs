//! Annotations, runtime.toml and containerd's task options choose what runs, or are refused by name.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::{Node, Runsc, Setup};

#[track_caller]
fn refused(node: &Node, id: &str, options: &[&str], expected: &[&str]) {
    let said = node.run(id, options, &["true"]);
    assert_ne!(said.status, 0, "{said:?}");
    for part in expected {
        assert!(said.stderr.contains(part), "{part:?} is not in {said:?}");
    }
    node.ctr(&["container", "rm", id]);
}

#[test]
fn what_is_unknown_or_not_allowed_is_refused_by_name_and_leaves_nothing() {
    let node = Node::start();
    refused(&node, "a", &["--annotation", "creto.dev/backned=gvisor"], &["creto.dev/backned", "creto.dev/backend"]);
    refused(&node, "b", &["--annotation", "creto.dev/backend=runc"], &["runc", "allowed: gvisor, kata"]);
    refused(&node, "d", &["--annotation", "dev.gvisor.flag.network=host"], &["dev.gvisor.flag.network", "omit it"]);
    refused(&node, "c", &["--annotation", "creto.dev/runsc-path=/bin/sh"], &["/bin/sh", "gvisor.runsc_dirs"]);
    refused(&node, "e", &["--runtime-config-path", "/nonexistent.toml"], &["/nonexistent.toml"]);
    fs::write(node.path("creto/etc/runtime.toml"), "bakend = \"gvisor\"").unwrap();
    refused(&node, "f", &[], &["runtime.toml", "bakend"]);
    fs::remove_file(node.path("creto/etc/runtime.toml")).unwrap();
    assert_eq!(node.run("g", &["--annotation", "creto.dev/backend=gvisor"], &["echo", "yes"]).ok(), "yes\n");
    node.assert_nothing_left();
}

#[test]
fn a_file_named_by_containerd_s_options_is_read_instead_of_the_node_s() {
    let node = Node::with(Setup { instead_of_runsc: Some(""), ..Setup::default() });
    let runsc = Runsc::default().bin().join("runsc");
    let file = node.path("class.toml");
    fs::write(&file, format!("[gvisor]\nrunsc_path = {runsc:?}")).unwrap();
    let options = ["--runtime-config-path", file.to_str().unwrap()];
    assert_eq!(node.run("c", &options, &["echo", "found"]).ok(), "found\n");
    node.assert_nothing_left();
}

#[test]
fn a_canary_runs_on_the_runsc_that_its_annotation_names() {
    let node = Node::with(Setup { instead_of_runsc: Some(""), ..Setup::default() });
    let canaries = node.path("canaries");
    fs::create_dir(&canaries).unwrap();
    symlink(Runsc::default().bin(), canaries.join("bin")).unwrap();
    let dirs = format!("[gvisor]\nrunsc_dirs = [{:?}]", Runsc::default().bin());
    fs::write(node.path("creto/etc/runtime.toml"), dirs).unwrap();
    // Through a link whose end is in an allowed directory.
    let annotation = format!("creto.dev/runsc-path={}", canaries.join("bin/runsc").display());
    let output = node.run_detached("c", &["--annotation", &annotation], &["sh", "-c", "echo up; sleep 1000"]);
    crate::harness::wait_until("its first line", || fs::read_to_string(&output).is_ok_and(|text| text == "up\n"));
    // Who cleans up after a killed shim must find the same runsc.
    for shim in node.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    crate::harness::wait_until("its end", || node.task("c").is_none_or(|(_, status)| status == "STOPPED"));
    node.remove("c");
    node.assert_nothing_left();
}
