//! What a pod costs under containerd's CRI plugin, as a kubelet asks it: with us, with runc and, where it starts here, with gVisor's own shim; one
//! life of each in turn. Pods are wired by the same CNI plugins; ours are behind a fence besides, attested and recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::figures::{self, Samples};
use crate::harness::Setup;
use crate::harness::cri::{Cri, GVISORS_OWN, HANDLERS, Pod, hierarchies};
use crate::processes::{self, Usage};

/// So many pods at once, where pods a minute are counted.
const AT_ONCE: usize = 4;
/// So many pods stay while their memory is measured.
const MEASURED: usize = 5;
/// Commands in each pod.
const EXECS: usize = 3;
/// What a sandbox's kernel is asked to do before its memory is looked at again.
const WORK: &str =
    "i=0; while [ $i -lt 500 ]; do ls -lR /bin /etc /dev > /tmp/listed; i=$((i+1)); done; rm /tmp/listed";

/// What one handler's pods took.
#[derive(Default)]
struct Lives {
    sandbox: Samples,
    container: Samples,
    up: Samples,
    exec: Samples,
    down: Samples,
}

/// All rows, of so many lives of each handler.
pub fn run(lives: usize) {
    let cri = Cri::with(Setup::default(), &[]);
    let handlers = handlers(&cri);
    let mut all: BTreeMap<&str, Lives> = BTreeMap::new();
    for life in 0..=lives {
        for handler in &handlers {
            let mut warm_up = Lives::default();
            live(&cri, handler, if life == 0 { &mut warm_up } else { all.entry(handler).or_default() });
        }
    }
    let rate: Vec<_> = handlers.iter().map(|handler| a_minute(&cri, handler, lives)).collect();
    println!("\n| pods, ms | p50 | p95 | p99 | max | N |\n|---|---|---|---|---|---|");
    type Row = (&'static str, fn(&Lives) -> &Samples);
    let rows: [Row; 5] = [
        ("up: RunPodSandbox, CreateContainer, StartContainer", |l| &l.up),
        ("– RunPodSandbox", |l| &l.sandbox),
        ("– CreateContainer, StartContainer", |l| &l.container),
        ("execSync of `true`", |l| &l.exec),
        ("down: StopPodSandbox, RemovePodSandbox", |l| &l.down),
    ];
    for (what, of) in rows {
        for handler in &handlers {
            println!("| {what}, {handler} | {} |", of(&all[handler]).cells());
        }
    }
    println!("\n| pods a minute, {AT_ONCE} at once | |\n|---|---|");
    for (handler, rate) in handlers.iter().zip(rate) {
        println!("| {handler} | {rate:.0} |");
    }
    println!("\n| memory of a pod of one container, MiB | proportional set size by part | its control group | N |");
    println!("|---|---|---|---|");
    for handler in &handlers {
        for row in memory(&cri, handler) {
            println!("| {handler}, {row} | {MEASURED} |");
        }
    }
    figures::machine();
}

/// runc and ours; and gVisor's own where its pods start.
fn handlers(cri: &Cri) -> Vec<&'static str> {
    let mut handlers = HANDLERS.to_vec();
    match cri.try_run_pod(GVISORS_OWN, cri.pod("try")) {
        Ok(pod) => {
            cri.remove_pod(&pod);
            handlers.push(GVISORS_OWN);
        }
        Err(why) => println!("\ngVisor's own shim starts no pod here: {}", why.message()),
    }
    handlers
}

/// One pod, from its beginning to its end.
fn live(cri: &Cri, handler: &str, took: &mut Lives) {
    let began = Instant::now();
    let pod = cri.run_pod(handler, "p");
    took.sandbox.add(began.elapsed());
    let made = Instant::now();
    let id = cri.run_script(&pod, "c", "sleep 1000");
    took.container.add(made.elapsed());
    took.up.add(began.elapsed());
    for _ in 0..EXECS {
        let asked = Instant::now();
        assert_eq!(cri.exec(&id, &["/bin/true"], 0).unwrap().code, 0);
        took.exec.add(asked.elapsed());
    }
    let asked = Instant::now();
    cri.remove_pod(&pod);
    took.down.add(asked.elapsed());
}

/// Whole lives, some at once.
fn a_minute(cri: &Cri, handler: &str, lives: usize) -> f64 {
    let (began, next) = (Instant::now(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < lives {
                    live(cri, handler, &mut Lives::default());
                }
            });
        }
    });
    lives as f64 / began.elapsed().as_secs_f64() * 60.0
}

/// A pod's share, by part, and what the kernel counts in its control group: as it came up, and after some work.
fn memory(cri: &Cri, handler: &str) -> [String; 2] {
    let up = || {
        let pod = cri.run_pod(handler, "p");
        let id = cri.run_script(&pod, "c", "sleep 1000");
        (pod, id)
    };
    let pods: Vec<_> = (0..MEASURED).map(|_| up()).collect();
    let share = |bytes: u64| format!("{:.1}", bytes as f64 / MEASURED as f64 / f64::from(1 << 20));
    let now = |when: &str| {
        let mut parts = BTreeMap::<_, Usage>::new();
        pods.iter().for_each(|(pod, _)| processes::of_pod(&pod.id, &groups(pod), &mut parts));
        let parts: Vec<_> = parts.iter().map(|(part, usage)| format!("{part} {}", share(usage.pss))).collect();
        format!("{when} | {} | {}", parts.join(", "), share(pods.iter().map(|(pod, _)| counted(pod)).sum()))
    };
    let idle = now("idle");
    for (_, id) in &pods {
        cri.shell(id, WORK);
    }
    let worked = now("after 500 programs that looked at files");
    pods.iter().for_each(|(pod, _)| cri.remove_pod(pod));
    [idle, worked]
}

/// A pod's control group in each hierarchy.
fn groups(pod: &Pod) -> Vec<PathBuf> {
    let parent = &pod.config.linux.as_ref().unwrap().cgroup_parent;
    hierarchies().into_iter().map(|top| top.join(parent.trim_start_matches('/'))).collect()
}

/// What the kernel holds against the pod's limit, in bytes.
fn counted(pod: &Pod) -> u64 {
    let files =
        groups(pod).into_iter().flat_map(|group| ["memory.usage_in_bytes", "memory.current"].map(|f| group.join(f)));
    let text = files.filter_map(|file| fs::read_to_string(file).ok()).next();
    text.expect("a hierarchy counts memory").trim().parse().unwrap()
}
