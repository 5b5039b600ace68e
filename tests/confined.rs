//! A shim that serves a gVisor pod has given up what nothing of it needs; what it starts inherits that.

use std::fs;
use std::path::Path;

use crate::harness::{Containerd, Node, Setup};

/// SYS_MODULE, SYS_PACCT, SYS_BOOT, SYS_TIME, MAC_OVERRIDE, MAC_ADMIN, SYSLOG, WAKE_ALARM, BLOCK_SUSPEND, AUDIT_CONTROL, AUDIT_READ
/// (linux/capability.h).
const GIVEN_UP: [u32; 11] = [16, 20, 22, 25, 32, 33, 34, 35, 36, 30, 37];

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn capabilities(status: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(status, set), 16).unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn every_thread_of_a_serving_shim_and_its_hooks_are_confined() {
    let node = Node::start();
    let given_up: u64 = GIVEN_UP.iter().map(|bit| 1 << bit).sum();
    let ours = capabilities(&read("/proc/self/status"), "CapBnd");
    node.run_detached("c", &[], &["sleep", "1000"]);
    let [shim] = node.shims()[..] else { panic!("{:?}", node.shims()) };
    for thread in fs::read_dir(format!("/proc/{shim}/task")).unwrap() {
        let status = read(thread.unwrap().path().join("status"));
        assert_eq!((field(&status, "Seccomp").as_str(), field(&status, "NoNewPrivs").as_str()), ("2", "0"));
        assert_eq!(capabilities(&status, "CapBnd"), ours & !given_up, "more was given up, or less");
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(capabilities(&status, set) & given_up, 0, "{set}");
        }
    }
    for pid in node.sandboxes() {
        assert_eq!(capabilities(&read(format!("/proc/{pid}/status")), "CapBnd") & given_up, 0);
    }
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn a_shim_whose_sandbox_another_one_makes_keeps_what_that_may_need() {
    let shim = Containerd::V2_4.bin().join("containerd-shim-runc-v2");
    let settings = format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n");
    let node = Node::with(Setup { settings, ..Setup::default() });
    let ours = capabilities(&read("/proc/self/status"), "CapBnd");
    node.run_detached("c", &[], &["sleep", "1000"]);
    let status = read(format!("/proc/{}/status", node.shims()[0]));
    assert_eq!((field(&status, "Seccomp").as_str(), capabilities(&status, "CapBnd")), ("0", ours));
    node.remove("c");
    node.assert_nothing_left();
}
