//! What containerd tells a kubelet of a container's and a pod's use is complete: no part that a client would stumble over is missing.

use std::collections::BTreeSet;

use k8s_cri::v1::{ContainerStatsRequest, ListPodSandboxMetricsRequest, PodSandboxStatsRequest};

use crate::harness::cri::{Cri, HANDLERS, of_all};
use crate::harness::{Setup, wait_until};

/// Something to be counted: memory that is held, and time that goes by.
const BUSY: &str =
    "head -c 8388608 /dev/zero > /dev/shm/held; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000";

#[test]
fn a_container_and_its_pod_have_cpu_memory_and_processes() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", BUSY);
        wait_until("use of the container", || {
            let request = ContainerStatsRequest { container_id: id.clone() };
            let stats = cri.ask(cri.client().container_stats(request)).unwrap().stats.unwrap();
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |n| n.value);
            let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |n| n.value);
            cpu > 0 && memory > 0
        });
        wait_until("use of the pod", || {
            let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
            let stats = cri.ask(cri.client().pod_sandbox_stats(request)).unwrap().stats.unwrap().linux.unwrap();
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |n| n.value);
            let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |n| n.value);
            let processes = stats.process.and_then(|p| p.process_count).map_or(0, |n| n.value);
            let ids: Vec<_> = stats.containers.iter().filter_map(|c| Some(c.attributes.as_ref()?.id.clone())).collect();
            cpu > 0 && memory > 0 && processes > 0 && ids == [id.clone()]
        });
        cri.remove_pod(&pod);
    });
}

#[test]
fn each_container_has_its_own_use_and_the_pod_has_all() {
    const FAT: &str = r#"awk 'BEGIN { s = sprintf("%83886080s", ""); while (1) ; }'"#;
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let (idle, busy) = (cri.run_script(&pod, "idle", "sleep 1000"), cri.run_script(&pod, "busy", FAT));
        let used = |id: &str| {
            let request = ContainerStatsRequest { container_id: id.into() };
            let stats = cri.ask(cri.client().container_stats(request)).unwrap().stats.unwrap();
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |n| n.value);
            (cpu, stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |n| n.value))
        };
        let (second, fat) = (1_000_000_000, 80 << 20);
        wait_until("the busy one to have done something", || {
            let (cpu, memory) = used(&busy);
            cpu > second && memory >= fat
        });
        let (cpu, memory) = used(&idle);
        assert!(cpu < second / 2 && memory < fat / 4, "{handler}: the idle one has {cpu} ns and {memory} bytes");
        wait_until("the pod to have as much", || {
            let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
            let stats = cri.ask(cri.client().pod_sandbox_stats(request)).unwrap().stats.unwrap().linux.unwrap();
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |n| n.value);
            cpu > second && stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |n| n.value) >= fat
        });
        cri.remove_pod(&pod);
    });
}

/// containerd 1.7 has no such call.
#[test]
fn a_pod_s_metrics_have_the_names_that_they_have_with_runc() {
    let cri = Cri::with(Setup::default(), &[]);
    let names = HANDLERS.map(|handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", BUSY);
        let mut names = BTreeSet::new();
        wait_until("metrics of the container", || {
            let all =
                cri.ask(cri.client().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})).unwrap().pod_metrics;
            let of_pod = all.into_iter().find(|m| m.pod_sandbox_id == pod.id);
            let of_container = of_pod.and_then(|m| m.container_metrics.into_iter().find(|c| c.container_id == id));
            names = of_container.map(|m| m.metrics.into_iter().map(|m| m.name).collect()).unwrap_or_default();
            names.contains("container_memory_working_set_bytes")
        });
        cri.remove_pod(&pod);
        names
    });
    let [runc, creto] = names;
    let missing: Vec<_> = runc.difference(&creto).collect();
    assert!(missing.is_empty(), "runc's containers have also {missing:?}");
}
