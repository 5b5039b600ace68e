//! What a kubelet does with pods and containers, under both containerds: of runc first, then of us.

use k8s_cri::v1::{Mount, ReopenContainerLogRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::cri::{Said, hierarchies, of_all};
use crate::harness::wait_until;

#[test]
fn a_pod_comes_up_runs_to_its_end_and_leaves_nothing() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        assert!(cri.pod_is_ready(&pod.id), "{handler}");
        let id = cri.run_script(&pod, "c", "echo out; hostname; exit 3");
        let ended = cri.ended(&id);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"), "{handler}");
        cri.logs(&pod, "c", "out\np\n");
        assert!(cri.pod_is_ready(&pod.id), "{handler}: a container's end is not its pod's");
        cri.remove_pod(&pod);
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn exec_sync_answers_with_status_and_both_outputs_and_what_takes_too_long_is_killed() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", "sleep 1000");
        let said = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"], 30).unwrap();
        assert_eq!(said, Said { code: 5, stdout: "out\n".into(), stderr: "err\n".into() }, "{handler}");
        let late = cri.exec(&id, &["sh", "-c", "exec sleep 1234"], 1).unwrap_err();
        assert!(late.message().contains("timed out") || late.message().contains("timeout"), "{handler}: {late}");
        wait_until("the process to be gone", || !cri.shell(&id, "ps").contains("sleep 1234"));
        let missing = cri.exec(&id, &["no-such-program"], 0).unwrap_err();
        assert!(missing.message().contains("no-such-program"), "{handler}: {missing}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_log_that_was_moved_away_goes_on_in_a_new_file() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id =
            cri.run_script(&pod, "c", "echo one; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo two; sleep 1000");
        cri.logs(&pod, "c", "one\n");
        let at = |name: &str| format!("{}/{name}.log", pod.config.log_directory);
        std::fs::rename(at("c"), at("old")).unwrap();
        cri.ask(cri.client().reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() })).unwrap();
        cri.shell(&id, "touch /tmp/go");
        cri.logs(&pod, "c", "two\n");
        assert_eq!(cri.log(&pod, "old"), "one\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_container_is_restarted_in_a_living_pod() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let neighbour = cri.run_script(&pod, "n", "sleep 1000");
        let sandbox = cri.pid(&pod.id);
        for attempt in 0..3 {
            let mut again = cri.container("c", "echo $$ >> /tmp/lives; wc -l < /tmp/lives; exit 1");
            again.metadata.as_mut().unwrap().attempt = attempt;
            again.log_path = format!("c{attempt}.log");
            let id = cri.run(&pod, again);
            assert_eq!(cri.ended(&id).exit_code, 1, "{handler}");
            cri.logs(&pod, &format!("c{attempt}"), "1\n"); // its files are new, too
            cri.remove(&id);
        }
        assert_eq!(cri.pid(&pod.id), sandbox, "{handler}: the pod was made anew");
        assert_eq!(cri.shell(&neighbour, "echo alive"), "alive\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn init_containers_come_before_and_leave_what_they_have_written_in_a_volume() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let volume = cri.network.node.path(&format!("volume-{handler}"));
        std::fs::create_dir(&volume).unwrap();
        let with_volume = |name: &str, script: &str| {
            let host_path = volume.display().to_string();
            let mount = Mount { container_path: "/data".into(), host_path, ..Default::default() };
            let mut container = cri.container(name, script);
            container.mounts.push(mount);
            container
        };
        for n in ["one", "two"] {
            let init = cri.run(&pod, with_volume(n, &format!("echo {n} >> /data/order")));
            assert_eq!(cri.ended(&init).exit_code, 0, "{handler}");
        }
        let main = cri.run(&pod, with_volume("main", "cat /data/order; echo main >> /data/order"));
        assert_eq!(cri.ended(&main).exit_code, 0, "{handler}");
        cri.logs(&pod, "main", "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(volume.join("order")).unwrap(), "one\ntwo\nmain\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_sidecar_starts_before_the_main_container_and_ends_after_it() {
    const UNTIL_TERM: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let sidecar =
            cri.run_script(&pod, "sidecar", &UNTIL_TERM.replace("echo up", "nc -ll -p 8088 -e echo side & echo up"));
        cri.logs(&pod, "sidecar", "up\n");
        let main =
            cri.run_script(&pod, "main", &UNTIL_TERM.replace("echo up", "until nc 127.0.0.1 8088; do sleep 0.1; done"));
        cri.logs(&pod, "main", "side\n"); // they share a network
        cri.stop(&main, 30);
        assert_eq!(cri.ended(&main).exit_code, 0, "{handler}");
        cri.logs(&pod, "main", "side\nbye\n");
        assert_eq!(cri.log(&pod, "sidecar"), "up\n", "{handler}: it was told to end with the main container");
        cri.stop(&sidecar, 30);
        cri.logs(&pod, "sidecar", "up\nbye\n");
        assert!(cri.ended(&main).finished_at < cri.ended(&sidecar).finished_at, "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_container_has_its_grace_period_and_not_more() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        for (name, trap, grace, code) in [("polite", "exit 7", 30, 7), ("deaf", "echo no", 1, 137)] {
            let script = format!("trap '{trap}' TERM; echo up; while :; do sleep 0.1; done");
            let id = cri.run_script(&pod, name, &script);
            wait_until("its first words", || cri.log(&pod, name).starts_with("up"));
            cri.stop(&id, grace);
            assert_eq!(cri.ended(&id).exit_code, code, "{handler} {name}");
        }
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_pod_whose_sandbox_is_killed_is_not_ready_and_is_removed_whole() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let ids = ["a", "b"].map(|name| cri.run_script(&pod, name, "sleep 1000"));
        kill(Pid::from_raw(cri.pid(&pod.id)), Signal::SIGKILL).unwrap();
        wait_until("the pod to be not ready", || !cri.pod_is_ready(&pod.id));
        if handler == "creto" {
            // Their kernel was in that process; runc's are processes of the host, and a kubelet kills them.
            for id in &ids {
                assert_eq!(cri.ended(id).exit_code, 137, "{handler}");
            }
        }
        cri.remove_pod(&pod);
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn a_container_s_pids_are_pids_of_the_host_in_the_pod_s_control_group() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", "sleep 1000");
        let parent = &pod.config.linux.as_ref().unwrap().cgroup_parent;
        let table = cri.network.node.ctr(&["task", "ps", &id]).ok();
        let pids: Vec<i32> =
            table.lines().skip(1).map(|l| l.split_whitespace().next().unwrap().parse().unwrap()).collect();
        assert!(!pids.is_empty() && pids.contains(&cri.pid(&id)), "{handler}: {table}");
        for pid in pids {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let in_the_pod = groups.lines().filter(|line| line.contains(&format!(":{parent}"))).count();
            assert!(in_the_pod > 0, "{handler}: {pid} is in {groups}");
        }
        let limited = hierarchies().into_iter().map(|top| top.join(parent.trim_start_matches('/')));
        assert!(limited.into_iter().all(|group| group.exists()), "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_missing_command_is_named() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let mut config = cri.container("c", "");
        config.command = vec!["no-such-program".into()];
        let failed = cri.create(&pod, config).and_then(|id| cri.start(&id)).unwrap_err();
        assert!(failed.message().contains("no-such-program"), "{handler}: {failed}");
        let id = cri.run_script(&pod, "next", "sleep 1000");
        assert_eq!(cri.shell(&id, "echo alive"), "alive\n", "{handler}: the pod is unharmed");
        cri.remove_pod(&pod);
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn a_loopback_is_there_and_connects_a_pod_with_itself() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let server = cri.run_script(&pod, "s", "nc -ll -p 7000 -e echo hello");
        let client = cri.run_script(&pod, "c", "until nc 127.0.0.1 7000; do sleep 0.1; done; sleep 1000");
        cri.logs(&pod, "c", "hello\n");
        for id in [server, client] {
            assert!(cri.shell(&id, "ip addr show lo").contains("127.0.0.1/8"), "{handler}");
        }
        cri.remove_pod(&pod);
    });
}
