//! What a spec says of the sandbox's walls is so, seen from inside; what cannot be is refused in Create, with the field
//! and what to do about it.

use std::fs;

use serde_json::{Value, json};

use crate::harness::containerd::RUNTIME;
use crate::harness::{Containerd, Node, Setup, images};

/// The spec that `ctr run` makes, which the shim got: as containerd wrote it, and as the backend was given it.
fn specs(node: &Node, id: &str, options: &[&str]) -> (Value, Value) {
    node.run_detached(id, options, &["sleep", "1000"]);
    let theirs = fs::read(node.bundle(id).join("config.json")).unwrap();
    let theirs: Value = serde_json::from_slice(&theirs).unwrap();
    let ours = find(&node.path("creto"), &|path| path.ends_with("config.json") && path.contains(id));
    let ours = ours.unwrap_or_else(|| panic!("no config.json of {id} below CRETO_ROOT"));
    (theirs, serde_json::from_slice(&fs::read(ours).unwrap()).unwrap())
}

fn find(dir: &std::path::Path, is: &dyn Fn(&str) -> bool) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find_map(|path| match path.is_dir() && !path.is_symlink() {
        true => find(&path, is),
        false => is(&path.display().to_string()).then_some(path),
    })
}

fn strings(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap_or_default()
}

/// Runs a container of a spec of the test's own, which is `ctr`'s with a change.
#[track_caller]
fn run_changed(node: &Node, change: impl Fn(&mut Value)) -> crate::harness::process::Finished {
    let (mut spec, _) = specs(node, "model", &[]);
    node.remove("model");
    let rootfs = node.path("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    images::unpack(&rootfs);
    spec["root"] = json!({"path": rootfs});
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/c", node.namespace()));
    change(&mut spec);
    let config = node.path("changed.json");
    fs::write(&config, spec.to_string()).unwrap();
    node.note("c");
    node.ctr(&["run", "--rm", "--runtime", RUNTIME, "--config", config.to_str().unwrap(), "c"])
}

fn command(script: &str) -> impl Fn(&mut Value) {
    let args = json!(["/bin/sh", "-c", script]);
    move |spec| spec["process"]["args"] = args.clone()
}

#[test]
fn what_is_masked_has_nothing_to_show_and_what_is_read_only_cannot_be_written() {
    for runsc in [crate::harness::Runsc::Y2024, crate::harness::Runsc::Y2026] {
        let node = Node::with(Setup { runsc, ..Setup::default() });
        let (theirs, ours) = specs(&node, "c", &[]);
        let masked = strings(&ours["linux"]["maskedPaths"]);
        assert_eq!(masked, strings(&theirs["linux"]["maskedPaths"]));
        assert!(masked.contains(&"/proc/kcore".to_owned()), "{masked:?}");
        // Nothing there, or an empty directory.
        let script = masked.iter().map(|path| format!("[ -z \"$(ls -A {path} 2>/dev/null)\" ] || echo {path}; "));
        let said = node.exec("c", "masked", &["sh", "-c", &script.collect::<String>()]).ok();
        assert_eq!(said, "", "{runsc:?}");
        let read_only = strings(&ours["linux"]["readonlyPaths"]);
        // gVisor's own switches are not; so they are not said to be.
        assert_eq!(read_only, ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"]);
        let write = "for p in \"$@\"; do find $p | while read f; do \
                     if [ -d $f ]; then touch $f/new; else echo h >> $f; fi 2>/dev/null && echo $f; done; done; true";
        let all: Vec<&str> =
            ["sh", "-c", write, "sh"].into_iter().chain(read_only.iter().map(String::as_str)).collect();
        assert_eq!(node.exec("c", "read-only", &all).ok(), "", "{runsc:?}");
        let switches = "echo 1 > /proc/sys/kernel/yama/ptrace_scope && echo written";
        assert_eq!(
            node.exec("c", "switches", &["sh", "-c", switches]).ok(),
            "written\n",
            "{runsc:?}: docs/hardening.md"
        );
        node.remove("c");
    }
}

#[test]
fn the_capabilities_inside_are_those_that_the_hardened_spec_names() {
    let node = Node::start();
    let (_, ours) = specs(&node, "c", &["--cap-add", "CAP_SYS_PTRACE"]);
    let status = node.exec("c", "e", &["cat", "/proc/1/status"]).ok();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let bits = u64::from_str_radix(field("CapBnd:"), 16).unwrap();
    let names = strings(&ours["process"]["capabilities"]["bounding"]);
    assert_eq!(bits.count_ones() as usize, names.len(), "{bits:x} {names:?}");
    let (ptrace, raw) = (1 << 19, 1 << 13);
    assert!(bits & ptrace != 0 && names.contains(&"CAP_SYS_PTRACE".to_owned()), "{bits:x} {names:?}");
    assert!(bits & raw == 0 && !names.contains(&"CAP_NET_RAW".to_owned()), "{bits:x} {names:?}");
    assert_eq!(field("NoNewPrivs:"), "1", "{status}");
    node.remove("c");
}

#[test]
fn privileged_containers_keep_what_they_ask_for() {
    let node = Node::start();
    let (theirs, ours) = specs(&node, "c", &["--privileged", "--allow-new-privs"]);
    let mut asked = strings(&theirs["process"]["capabilities"]["effective"]);
    assert!(asked.contains(&"CAP_SYS_ADMIN".to_owned()), "{asked:?}");
    asked.retain(|name| name != "CAP_NET_RAW");
    assert_eq!(strings(&ours["process"]["capabilities"]["effective"]), asked);
    let status = node.exec("c", "e", &["cat", "/proc/1/status"]).ok();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(u64::from_str_radix(bits, 16).unwrap().count_ones() as usize, asked.len(), "{status}");
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    node.remove("c");
}

#[test]
fn a_capability_that_nobody_knows_and_a_label_without_meaning_do_not_stop_a_container() {
    let node = Node::start();
    let said = run_changed(&node, |spec| {
        command("grep CapBnd /proc/self/status")(spec);
        spec["process"]["capabilities"] = json!({"bounding": ["CAP_FLY", "chown"]});
        spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    });
    assert_eq!(said.ok(), "CapBnd:\t0000000000000001\n");
}

#[test]
fn what_is_refused_names_the_field_and_the_fix_and_leaves_nothing() {
    let node = Node::start();
    let link = node.path("link");
    std::os::unix::fs::symlink("/proc", &link).unwrap();
    let by_link = format!("type=bind,src={},dst=/x,options=rbind:ro", link.display());
    for (options, parts) in [
        (["--net-host"].as_slice(), ["linux.namespaces", "network is missing", r#"add {"type":"network"}"#]),
        (&["--with-ns", "network:/proc/1/ns/net"], ["linux.namespaces", "the host's", "omit the path"]),
        (&["--mount", "type=bind,src=/,dst=/x,options=rbind:ro"], ["mounts", "/x is the host's /", "omit it"]),
        (&["--mount", "type=bind,src=/sys,dst=/x,options=rbind:rw"], ["mounts", "host's /sys", "add the option ro"]),
        (&["--mount", &by_link], ["mounts", "/x is the host's /proc", "omit it"]),
    ] {
        let failed = node.run("c", options, &["true"]);
        let error = failed.stderr.lines().find(|line| line.starts_with("ctr: ")).unwrap_or_default();
        for part in parts {
            assert!(failed.status != 0 && error.contains(part), "{options:?}: no {part:?} in {failed:?}");
        }
        node.assert_nothing_left();
    }
    for (field, path, fix) in [
        ("maskedPaths", "/proc/mounts", "omit it"),
        ("maskedPaths", "/etc/..", "the whole root"),
        ("readonlyPaths", "etc", "absolute"),
    ] {
        let failed = run_changed(&node, |spec| spec["linux"][field] = json!([path]));
        let error = failed.stderr;
        assert!(error.contains(&format!("linux.{field}: ")) && error.contains(fix), "{field} {path}: {error}");
    }
    node.assert_nothing_left();
}

#[test]
fn on_the_hosts_kernel_the_lists_are_there_even_where_the_spec_has_none_and_all_devices_are_refused() {
    let containerd = Containerd::V2_4;
    let shim = containerd.bin().join("containerd-shim-runc-v2");
    let settings = format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n");
    let node = Node::with(Setup { containerd, settings, ..Setup::default() });
    let said = run_changed(&node, |spec| {
        command("head -c1 /proc/interrupts | wc -c; echo x > /proc/sys/kernel/hostname || echo refused")(spec);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = Value::Null;
    });
    assert_eq!(said.ok(), "0\nrefused\n");
    let failed = node.run("c", &["--privileged", "--allow-new-privs"], &["true"]);
    assert!(failed.status != 0 && failed.stderr.contains("linux."), "{failed:?}");
    node.assert_nothing_left();
}
