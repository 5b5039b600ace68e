//! Many pods at once, all their lives, with containerd restarted under them: every status is right and nothing is left.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use k8s_cri::v1::ContainerState;

use crate::harness::cri::Cri;
use crate::harness::{Setup, wait_until};

const PODS: u32 = 50;
const AT_A_TIME: u32 = 10;
/// containerd is restarted when so many pods are gone.
const RESTARTS: [u32; 2] = [12, 30];

/// One pod's life. Between two steps containerd may be another one; `running` is held where a kubelet's question is open.
fn live(cri: &Cri, n: u32, running: &RwLock<()>) {
    let name = format!("p{n}");
    let status = i32::try_from(n % 100).unwrap() + 1;
    let step = || running.read().unwrap();
    let pod = {
        let _here = step();
        cri.run_pod("creto", &name)
    };
    let [stays, ends] =
        [("stays", "echo up; sleep 1000".to_owned()), ("ends", format!("exit {status}"))].map(|(name, script)| {
            let _here = step();
            cri.run_script(&pod, name, &script)
        });
    for round in 0..3 {
        let _here = step();
        assert_eq!(cri.shell(&stays, &format!("echo {name} {round}")), format!("{name} {round}\n"));
    }
    wait_until("the end of its second container", || {
        let _here = step();
        cri.status(&ends).state() == ContainerState::ContainerExited
    });
    {
        let _here = step();
        assert_eq!(cri.status(&ends).exit_code, status, "{name}");
        let runs = cri.status(&stays);
        assert_eq!(runs.state(), ContainerState::ContainerRunning, "{name}: {runs:?}");
        cri.logs(&pod, "stays", "up\n");
        cri.stop(&stays, 0);
        assert_eq!(cri.ended(&stays).exit_code, 137, "{name}");
    }
    let _here = step();
    cri.remove_pod(&pod);
}

#[test]
fn fifty_pods_ten_at_a_time_under_a_containerd_that_is_restarted_twice() {
    let cri = Cri::with(Setup::default(), &[]);
    let (next, gone, running) = (AtomicU32::new(0), AtomicU32::new(0), RwLock::new(()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= PODS {
                        return;
                    }
                    live(&cri, n, &running);
                    if RESTARTS.contains(&(gone.fetch_add(1, Ordering::Relaxed) + 1)) {
                        let _nobody_asks = running.write().unwrap();
                        cri.restart_containerd();
                    }
                }
            });
        }
    });
    assert_eq!(gone.into_inner(), PODS);
    cri.network.node.assert_nothing_left();
}
