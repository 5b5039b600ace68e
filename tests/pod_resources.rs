//! What a container may have of a node is what it gets and no more, by itself also where it shares a sandbox with others: of runc first, then of
//! us, as a kubelet asks; what CRI has no words for, as `ctr` does.

use std::fs;

use containerd_client::services::v1::UpdateTaskRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::tonic::metadata::MetadataValue;
use containerd_client::tonic::{Code, Request};
use k8s_cri::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use serde_json::{Value, json};

use crate::harness::cri::{Cri, Pod, hierarchies, of_all};
use crate::harness::events::Events;
use crate::harness::parts::Runsc;
use crate::harness::specs::{RUNC, Specs};
use crate::harness::{Node, Setup, wait_until};
use crate::pod::{MEMBER, POD};

const MIB: i64 = 1 << 20;
/// Takes memory without end.
const EATS: &str = "exec tail /dev/zero";
/// Takes 100 MiB and keeps it.
const HOLDS: &str = r#"awk 'BEGIN { s = sprintf("%104857600s", ""); system("echo up; exec sleep 1000") }'"#;
/// What the sandbox has for gVisor itself, beside what its containers have.
const ROOM: i64 = 128 * MIB;

fn memory(bytes: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: bytes, memory_swap_limit_in_bytes: bytes, ..Default::default() }
}

#[track_caller]
fn run_limited(cri: &Cri, pod: &Pod, name: &str, script: &str, resources: LinuxContainerResources) -> String {
    let mut container = cri.container(name, script);
    container.linux.as_mut().unwrap().resources = Some(resources);
    cri.run(pod, container)
}

fn update(cri: &Cri, id: &str, resources: LinuxContainerResources) -> Result<(), containerd_client::tonic::Status> {
    let linux = Some(resources);
    let request = UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
    cri.ask(cri.client().update_container_resources(request)).map(drop)
}

/// A file of the control group of a task's process, by version 1's and version 2's names.
fn of_sandbox(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &str| {
        let line = groups.lines().find(|line| line.split(':').nth(1).unwrap().split(',').any(|one| one == wanted));
        line.map(|line| line.splitn(3, ':').nth(2).unwrap().trim_start_matches('/').to_owned())
    };
    let tops = hierarchies();
    let file = match path(controller) {
        Some(below) => tops.iter().find(|top| top.ends_with(controller)).unwrap().join(below).join(v1),
        None => tops[0].join(path("").unwrap()).join(v2),
    };
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
}

#[test]
fn a_container_over_its_memory_limit_is_oom_killed_and_its_neighbours_go_on() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let neighbours =
            [run_limited(cri, &pod, "n", "sleep 1000", memory(64 * MIB)), cri.run_script(&pod, "m", "sleep 1000")];
        for attempt in 0..2 {
            let greedy = run_limited(cri, &pod, &format!("c{attempt}"), EATS, memory(64 * MIB));
            let ended = cri.ended(&greedy);
            assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{handler}");
            for id in &neighbours {
                assert_eq!(cri.shell(id, "echo alive"), "alive\n", "{handler}");
            }
        }
        assert!(cri.pod_is_ready(&pod.id), "{handler}");
        cri.remove_pod(&pod);
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn files_that_are_written_read_and_cached_are_nobody_s_memory() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let script = "head -c 150000000 /dev/zero > /f; cat /f > /dev/null; cat /f > /dev/null; wc -c < /f";
        let id = run_limited(cri, &pod, "c", script, memory(64 * MIB));
        let ended = cri.ended(&id);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"), "{handler}");
        cri.logs(&pod, "c", "150000000\n");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_limit_that_was_raised_lets_more_be_taken_and_one_that_was_lowered_holds() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let neighbour = cri.run_script(&pod, "n", "sleep 1000");
        let id = run_limited(cri, &pod, "c", "sleep 1000", memory(32 * MIB));
        update(cri, &id, memory(300 * MIB)).unwrap();
        let said = cri.exec(&id, &["/bin/sh", "-c", &HOLDS.replace("sleep 1000", "true")], 0).unwrap();
        assert_eq!((said.code, said.stdout.as_str()), (0, "up\n"), "{handler}: {said:?}");
        update(cri, &id, memory(32 * MIB)).unwrap();
        // It is taken by an exec, and by whom it is, does not matter.
        let said = cri.exec(&id, &["/bin/sh", "-c", HOLDS], 0).unwrap();
        assert_eq!(said.code, 137, "{handler}: {said:?}");
        if handler == "creto" {
            // runc's kernel kills the process that asked for more, and ours the container.
            let ended = cri.ended(&id);
            assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
        }
        assert_eq!(cri.shell(&neighbour, "echo alive"), "alive\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn the_sandbox_has_the_sum_of_its_containers_limits_if_all_have_one() {
    let cri = Cri::with(Setup::default(), &[]);
    let pod = cri.run_pod("creto", "p");
    let limited = |quota: i64| LinuxContainerResources { cpu_quota: quota, cpu_period: 100_000, ..memory(64 * MIB) };
    let wall = || {
        let pid = cri.pid(&pod.id);
        let memory = of_sandbox(pid, "memory", "memory.limit_in_bytes", "memory.max");
        let cpu = of_sandbox(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split(' ').next().unwrap().to_owned();
        (
            memory.parse::<i64>().ok().filter(|bytes| *bytes < i64::MAX - (1 << 20)),
            cpu.parse::<i64>().ok().filter(|cpu| *cpu > 0),
        )
    };
    let stated = |id: &str| -> Value {
        let envelope: Value = serde_json::from_str(&cri.shell(id, "cat /run/creto/attestation.dsse.json")).unwrap();
        let payload = base64_of(envelope["payload"].as_str().unwrap());
        serde_json::from_slice::<Value>(&payload).unwrap()["predicate"]["hardening"]["limits"].clone()
    };
    assert_eq!(wall(), (None, None), "of containers, there is none");
    let one = run_limited(&cri, &pod, "one", "sleep 1000", limited(30_000));
    assert_eq!(wall(), (Some(64 * MIB + ROOM), Some(30_000)));
    let two = run_limited(&cri, &pod, "two", "sleep 1000", limited(20_000));
    assert_eq!(wall(), (Some(128 * MIB + ROOM), Some(50_000)));
    assert_eq!(stated(&one), json!({"memoryBytes": 128 * MIB + ROOM, "cpuMillis": 500}));
    update(&cri, &one, LinuxContainerResources { cpu_quota: 40_000, cpu_period: 100_000, ..memory(128 * MIB) })
        .unwrap();
    assert_eq!(wall(), (Some(192 * MIB + ROOM), Some(60_000)));
    // What each sees of its own.
    let sees = |id: &str| cri.shell(id, "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max");
    assert_eq!((sees(&one), sees(&two)), (format!("{}\n", 128 * MIB), format!("{}\n", 64 * MIB)));
    cri.remove(&two);
    wait_until("the sandbox to have the first one's time alone", || wall().1 == Some(40_000));
    cri.run_script(&pod, "free", "sleep 1000");
    assert_eq!(wall(), (None, None), "one of them has none");
    assert_eq!(stated(&one), json!({}));
    cri.remove_pod(&pod);
}

fn base64_of(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn a_members_end_for_want_of_memory_is_told_before_its_exit_and_of_nobody_else() {
    for runsc in [Runsc::Y2026, Runsc::Y2024] {
        let node = Node::with(Setup { runsc, ..Setup::default() });
        let events = Events::of(&node);
        node.run_detached("pod", &POD, &["sleep", "1000"]);
        node.run_detached("neighbour", &MEMBER, &["sleep", "1000"]);
        let limit = (64 * MIB).to_string();
        let killed = node.run("one", &[&MEMBER[..], &["--memory-limit", &limit]].concat(), &["tail", "/dev/zero"]);
        assert_eq!(killed.status, 137, "{runsc:?}: {killed:?}");
        assert_eq!(events.until("one", "delete"), ["create", "start", "oom", "exit", "delete"], "{runsc:?}");
        assert_eq!(node.exec("neighbour", "e", &["echo", "alive"]).ok(), "alive\n", "{runsc:?}");
        for id in ["neighbour", "pod"] {
            node.remove(id);
            let heard = events.until(id, "delete");
            assert!(!heard.iter().any(|event| event == "oom"), "{runsc:?} {id}: {heard:?}");
        }
        node.assert_nothing_left();
    }
}

#[test]
fn more_processes_than_the_limit_are_refused_and_what_runs_goes_on() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let fails = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; echo all";
    for (limit, status) in [(6, 2), (100, 0)] {
        for runtime in [RUNC, crate::harness::containerd::RUNTIME] {
            let mut spec = specs.spec(fails);
            spec["linux"]["resources"]["pids"] = json!({"limit": limit});
            let ended = specs.run(runtime, &spec);
            assert_eq!(ended.status, status, "{runtime} {limit}: {ended:?}");
            assert_eq!(ended.stderr.contains("can't fork"), status != 0, "{runtime} {limit}: {ended:?}");
        }
    }
}

#[test]
fn a_busy_neighbour_keeps_its_limit_of_processes_to_itself() {
    let node = Node::start();
    node.run_detached("pod", &POD, &["sleep", "1000"]);
    node.run_detached("neighbour", &MEMBER, &["sleep", "1000"]);
    let specs = Specs::of(&node);
    let mut spec = specs.spec("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; echo all");
    spec["annotations"] =
        json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"});
    spec["linux"]["resources"]["pids"] = json!({"limit": 6});
    let bombed = specs.run(crate::harness::containerd::RUNTIME, &spec);
    assert!(bombed.status == 2 && bombed.stderr.contains("can't fork"), "{bombed:?}");
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0 & done; wait; echo all";
    assert_eq!(node.exec("neighbour", "e", &["sh", "-c", script]).ok(), "all\n");
    node.remove("neighbour");
    node.remove("pod");
    node.assert_nothing_left();
}

#[test]
fn a_build_that_cannot_limit_a_member_s_processes_says_so() {
    let node = Node::with(Setup { runsc: Runsc::Y2024, ..Setup::default() });
    node.run_detached("pod", &POD, &["sleep", "1000"]);
    let specs = Specs::of(&node);
    let mut spec = specs.spec("true");
    spec["annotations"] =
        json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"});
    spec["linux"]["resources"]["pids"] = json!({"limit": 6});
    let refused = specs.run(crate::harness::containerd::RUNTIME, &spec);
    assert!(refused.status != 0 && refused.stderr.contains("linux.resources.pids.limit: 6"), "{refused:?}");
    node.remove("pod");
    node.assert_nothing_left();
}

/// The Update of containerd's own API, which passes on what it is given.
fn raw_update(cri: &Cri, id: &str, json: &str) -> Result<(), containerd_client::tonic::Status> {
    let mut message = UpdateTaskRequest { container_id: id.into(), ..Default::default() };
    let resources = message.resources.get_or_insert_default();
    resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
    resources.value = json.as_bytes().to_vec();
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    cri.ask(TasksClient::new(cri.channel()).update(request)).map(drop)
}

#[test]
fn limits_out_of_any_range_are_refused_by_their_field_and_change_nothing() {
    let cri = Cri::with(Setup::default(), &[]);
    let pod = cri.run_pod("creto", "p");
    let id = run_limited(&cri, &pod, "c", "sleep 1000", memory(64 * MIB));
    for of in [&pod.id, &id] {
        for (json, field) in [
            (r#"{"memory":{"limit":-2}}"#, "linux.resources.memory.limit"),
            (r#"{"memory":{"limit":9223372036854775808}}"#, "linux.resources.memory.limit"),
            (r#"{"cpu":{"quota":-7}}"#, "linux.resources.cpu.quota"),
            (r#"{"cpu":{"period":1000001}}"#, "linux.resources.cpu.period"),
            (r#"{"pids":{"limit":-9}}"#, "linux.resources.pids.limit"),
            (r#"{"memory":"all"}"#, "linux.resources"),
            ("[]", "resources"),
        ] {
            let refused = raw_update(&cri, of, json).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{json}: {refused}");
            assert!(refused.message().contains(field), "{json}: {refused}");
        }
    }
    let limit = of_sandbox(cri.pid(&pod.id), "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (64 * MIB + ROOM).to_string());
    for (of, linux) in
        [("memory", memory(-5)), ("cpu", LinuxContainerResources { cpu_quota: -5, ..Default::default() })]
    {
        let mut container = cri.container(&format!("bad-{of}"), "true");
        container.linux.as_mut().unwrap().resources = Some(linux);
        let refused = cri.create(&pod, container).and_then(|id| cri.start(&id)).unwrap_err();
        assert!(refused.message().contains(&format!("linux.resources.{of}")), "{refused}");
    }
    assert_eq!(cri.shell(&id, "echo alive"), "alive\n");
    cri.remove_pod(&pod);
    cri.network.node.assert_nothing_left();
}

#[test]
fn a_control_group_that_climbs_is_refused_and_nothing_is_made() {
    let node = Node::start();
    let specs = Specs::of(&node);
    for path in ["/a/../../b", "../b", "a.slice:..:c"] {
        let mut spec = specs.spec("true");
        spec["linux"]["cgroupsPath"] = json!(path);
        let refused = specs.run(crate::harness::containerd::RUNTIME, &spec);
        assert!(refused.status != 0 && refused.stderr.contains("linux.cgroupsPath"), "{path}: {refused:?}");
        node.assert_nothing_left();
    }
}
