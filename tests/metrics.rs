//! `ctr task metrics` and `ctr task ps` tell what a sandbox uses on the host.

use serde_json::Value;

use crate::harness::{Containerd, Node, Setup};

fn metrics(node: &Node) -> Value {
    serde_json::from_str(&node.ctr(&["task", "metrics", "--format", "json", "c"]).ok()).unwrap()
}

#[test]
fn memory_cpu_and_pids_are_those_of_the_sandbox() {
    for containerd in [Containerd::V1_6, Containerd::V1_7, Containerd::V2_4] {
        let node = Node::with(Setup { containerd, ..Setup::default() });
        let limit: u64 = 300 << 20;
        node.run_detached("c", &["--memory-limit", &limit.to_string()], &["sleep", "1000"]);
        let all = metrics(&node);
        let number = |path: &str| all.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {all}"));
        if all.get("cpu").is_some_and(|cpu| cpu.get("usage_usec").is_some()) {
            assert!(
                number("/cpu/usage_usec") > 0 && number("/memory/usage") > 0 && number("/pids/current") > 0,
                "{all}"
            );
        } else {
            assert!(number("/memory/usage/usage") > 1 << 20, "{containerd:?}: {all}");
            assert_eq!(number("/memory/usage/limit"), limit, "{containerd:?}: {all}");
            assert!(number("/cpu/usage/total") > 0 && number("/pids/current") > 0, "{containerd:?}: {all}");
        }
        node.remove("c");
    }
}

#[test]
fn every_part_is_there_even_without_any_limit() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let all = metrics(&node);
    for part in ["cpu", "memory", "pids"] {
        assert!(all.get(part).is_some_and(Value::is_object), "nerdctl stats fails without {part}: {all}");
    }
    node.remove("c");
}

#[test]
fn ps_shows_processes_of_the_host_and_among_them_the_task_s() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let (pid, _) = node.task("c").unwrap();
    let table = node.ctr(&["task", "ps", "c"]).ok();
    let pids: Vec<i32> = table.lines().skip(1).map(|l| l.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert!(pids.contains(&pid), "{table}");
    for pid in pids {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.contains("runsc"), "{pid} is not of the sandbox: {command}");
    }
    node.remove("c");
}
