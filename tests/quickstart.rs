//! The README's first command: from a clone to a container in a sandbox, a fence around another and a claim of a third, and nothing left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::signal::Signal;

use crate::harness::process::{Finished, Running};
use crate::harness::{leaks, parts};

fn start(args: &[&str]) -> Running {
    let _built = (parts::shim_dir(), parts::cli(), parts::egress(), parts::hold()); // it builds them too, but not within a test's patience
    // Whoever runs the tests in the background has the shell ignore ^C for them, and a shell that begins so cannot trap it.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/quickstart"));
    command.args(args);
    parts::as_from_a_shell(&mut command);
    Running::start(command)
}

fn quickstart(args: &[&str]) -> Finished {
    start(args).finish_without_input()
}

/// All that one run shows; each test looks at a part of it.
fn shown() -> &'static Finished {
    static SHOWN: OnceLock<Finished> = OnceLock::new();
    SHOWN.get_or_init(|| {
        let _alone = alone();
        quickstart(&[])
    })
}

/// Where it says that its node is.
#[track_caller]
fn node(said: &Finished) -> PathBuf {
    let line = said.stderr.lines().find_map(|line| line.split_once("starting a private containerd in "));
    PathBuf::from(line.unwrap_or_else(|| panic!("{said:?}")).1)
}

/// The network namespaces of a node.
fn namespaces(node: &Path) -> Vec<String> {
    let prefix = format!("{}-", node.file_name().unwrap().to_str().unwrap());
    let all = fs::read_dir("/run/netns").into_iter().flatten();
    let mut own: Vec<_> = all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    own.retain(|name| name.starts_with(&prefix));
    own.sort();
    own.iter().map(|name| name[prefix.len()..].to_owned()).collect()
}

#[track_caller]
fn assert_nothing_left(node: &Path) {
    let (processes, mounts) = (leaks::processes_of(node), leaks::mounts_below(node));
    assert!(processes.is_empty() && mounts.is_empty(), "{processes:?} {mounts:?}");
    assert_eq!((namespaces(node), node.exists()), (Vec::new(), false), "{node:?}");
}

/// One at a time: each has a container of the same name in a containerd of its own, and cgroups are named by that.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn it_shows_the_sandbox_s_kernel_and_what_it_cost_and_leaves_nothing() {
    let said = shown();
    assert!(said.text().contains("Starting gVisor...") && said.text().contains("/proc/version: Linux"), "{said:?}");
    assert!(said.stderr.contains(" ms"), "{said:?}");
    assert!(said.text().contains("spiffe://example.org/agents/quickstart/sandbox/quickstart"), "who it is: {said:?}");
    let forged = r#"Error: VerificationResult::Invalid { reason: "Ed25519 signature invalid" }"#;
    assert!(said.stderr.contains(forged), "the flipped byte: {said:?}");
    assert!(
        said.text().contains("AttestationIssued") && said.text().contains("SandboxDeleted"),
        "the record: {said:?}"
    );
    assert_nothing_left(&node(said));
}

#[test]
fn it_shows_what_a_policy_lets_a_sandbox_reach_and_opens_more_of_it_without_a_restart() {
    let said = shown();
    let text = said.text();
    let visits: Vec<&str> = text.lines().filter(|line| line.starts_with("  https://")).collect();
    for (visit, (site, outcome)) in visits.iter().zip([
        ("open.example", "answered"),
        ("closed.example", "refused"),
        ("93.184.215.15", "refused"),
        ("closed.example", "answered"),
    ]) {
        let ms =
            visit.strip_prefix(&format!("  https://{site} {outcome} after ")).and_then(|rest| rest.split_once(" ms: "));
        let (ms, detail) = ms.unwrap_or_else(|| panic!("{visit} is not {outcome}: {said:?}"));
        assert!(ms.parse::<u32>().unwrap() < 1000, "at once, not after a time-out: {visit}");
        assert_eq!(detail == format!("hello from {site}"), outcome == "answered", "{visit}");
    }
    assert_eq!(visits.len(), 4, "{said:?}");
    for denied in ["closed.example", "93.184.215.15"] {
        let recorded = |line: &str| line.contains("EgressDenied") && line.contains(denied);
        assert!(text.lines().any(recorded), "the record names {denied}: {said:?}");
    }
    assert!(text.contains("Deny: closed.example:443 by sandbox default/network"), "why: {said:?}");
    assert!(said.stderr.contains("holds now for default/network"), "the rule: {said:?}");
    assert_eq!(said.status, 0, "{said:?}");
    assert_nothing_left(&node(said));
}

/// The milliseconds of a row of the table of what a cold spawn and a warm claim cost.
#[track_caller]
fn costs(text: &str, row: &str) -> Vec<f64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(row));
    let line = line.unwrap_or_else(|| panic!("no {row} in {text}"));
    line.split(" ms").filter_map(|ms| ms.trim().parse().ok()).collect()
}

#[test]
fn it_ends_with_a_warm_claim_beside_a_cold_spawn_and_with_what_the_agent_counts() {
    let said = shown();
    let text = said.text();
    assert!(said.stderr.contains("ms with the way there), warm"), "{said:?}");
    let hello = "for spiffe://example.org/agents/quickstart";
    let greetings: Vec<&str> = text.lines().filter(|line| line.contains("hello from Python 3")).collect();
    assert!(greetings.len() == 2 && greetings.iter().all(|line| line.ends_with(hello)), "{said:?}");
    assert!(greetings[0].contains("in sandbox-") && greetings[1].contains("in demo-"), "{greetings:?}");
    for row in ["the sandbox is its caller's", "and Python has said hello"] {
        assert_eq!(costs(&text, row).len(), 2, "{text}");
    }
    for line in [
        "Pool: demo",
        r#"{"status":"healthy""#,
        r#"creto_runtime_pool_claims_total{pool_id="demo",outcome="Hit"} 1"#,
        r#"creto_runtime_pool_claim_latency_seconds_count{pool_id="demo"} 1"#,
    ] {
        assert!(text.lines().any(|shown| shown.starts_with(line)), "no {line}: {said:?}");
    }
}

#[test]
fn it_leaves_nothing_when_it_is_interrupted() {
    let _alone = alone();
    let running = start(&[]);
    running.wait_for("pool demo: 3 to 6 ready"); // members, their networks and mounts are there
    running.signal(Signal::SIGINT);
    let said = running.finish_without_input();
    assert_eq!(said.status, 130, "{said:?}");
    assert_nothing_left(&node(&said));
}

#[test]
fn a_node_that_is_kept_runs_until_it_is_stopped() {
    let _alone = alone();
    let said = quickstart(&["--keep"]).ok();
    let stop = said.lines().find_map(|line| line.trim().strip_prefix("scripts/quickstart --stop "));
    let dir = PathBuf::from(stop.unwrap_or_else(|| panic!("{said:?}")));
    assert!(dir.join("c.sock").exists());
    assert_eq!(namespaces(&dir), ["box", "inet", "node"]);
    quickstart(&["--stop", dir.to_str().unwrap()]).ok();
    assert_nothing_left(&dir);
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_with_the_fix_and_leaves_nothing() {
    let _alone = alone();
    let said = quickstart(&["localhost:1/no/such:image"]);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("localhost:1/no/such:image") && said.stderr.contains("fix: "), "{said:?}");
    assert_nothing_left(&node(&said));
}
