//! A workload's root file system is what containerd's snapshotter says, of whatever kind.

use crate::harness::{Node, Setup};

/// The kinds of file systems that are mounted for a running container.
#[track_caller]
fn kinds_of(snapshotter: &'static str) -> Vec<String> {
    let node = Node::with(Setup { snapshotter: Some(snapshotter), ..Setup::default() });
    node.run_detached("c", &[], &["sleep", "1000"]);
    let script = "echo mine > /bin/new && cat /bin/new /etc/group && test -x /bin/busybox";
    let said = node.exec("c", "e", &["sh", "-c", script]).ok();
    assert!(said.starts_with("mine\nroot:x:0:"), "{said}");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = table.lines().filter(|line| line.contains(node.path("").to_str().unwrap()));
    // What comes after the dash is the kind: proc(5).
    let kinds = ours.filter_map(|line| line.split(" - ").nth(1)?.split(' ').next()).map(str::to_owned).collect();
    node.remove("c");
    node.assert_nothing_left();
    kinds
}

#[test]
fn a_directory() {
    kinds_of("native");
}

#[test]
fn read_only_images_below_a_writable_layer() {
    let kernel = std::fs::read_to_string("/proc/filesystems").unwrap();
    assert!(kernel.contains("erofs"), "this test needs a kernel with erofs (CONFIG_EROFS_FS)");
    let kinds = kinds_of("erofs");
    assert!(kinds.iter().any(|kind| kind == "erofs") && kinds.iter().any(|kind| kind == "overlay"), "{kinds:?}");
}
