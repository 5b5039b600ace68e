//! creto-egress may end, be killed, or find its rules changed: the fence stands, and what it cannot decide it refuses.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::network::Network;
use crate::harness::wait_until;
use crate::leak_table::{POLICY, backend};

fn by_name() -> Value {
    json!(["by_name", "open.creto.net", 443])
}

fn by_address() -> Value {
    json!(["tcp", "93.184.215.18", 9000, "hello"])
}

fn forbidden() -> Value {
    json!(["tcp", "93.184.215.15", 443, "hello"])
}

/// What a client resolves once, to connect to as long as it lives.
fn resolve(network: &Network) -> String {
    let answer = network.probe("c", &[json!(["dns", "open.creto.net"])]).remove(0);
    let address = answer["ok"].as_str().and_then(|found| found.strip_prefix("NOERROR 198."));
    format!("198.{}", address.unwrap_or_else(|| panic!("{answer}")))
}

/// Whether that still leads there.
fn leads_on(network: &Network, address: &str) -> bool {
    network.probe("c", &[json!(["tls", address, "open.creto.net"])])[0].get("ok").is_some()
}

/// Whether each gets through.
fn get_through(network: &Network) -> [bool; 3] {
    let answers = network.probe("c", &[by_name(), by_address(), forbidden()]);
    [0, 1, 2].map(|n| answers[n].get("ok").is_some())
}

#[test]
fn the_fence_stands_without_the_daemon_and_names_come_back_with_it() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let netns = network.join(10);
    network.run_in(&netns, "c", "web");
    assert_eq!(get_through(&network), [true, true, false]);
    let address = resolve(&network);
    let kept = || fs::read_to_string(network.node.path("creto/run/egress/names.json")).unwrap_or_default();
    wait_until("the name is kept", || kept().contains(&address)); // within a second: what a kill may cost
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        network.stop_egress(signal);
        assert_eq!(get_through(&network), [false, true, false], "without it, by {signal}");
        network.start_egress();
        wait_until("the remembered address again", || leads_on(&network, &address));
        assert_eq!((get_through(&network), resolve(&network)), ([true, true, false], address.clone()));
    }
    // A service manager may have opened its socket.
    network.stop_egress(Signal::SIGTERM);
    network.start_egress_activated();
    wait_until("names again", || get_through(&network) == [true, true, false]);
    // Its half that reads what sandboxes send may die alone.
    let worker = network.node.processes("creto-egress").into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(6).any(|word| word == b"worker"))
    });
    let worker = worker.expect("a worker");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    wait_until("the remembered address by the next worker", || leads_on(&network, &address));
    assert_eq!(get_through(&network), [true, true, false]);
    let status = network
        .node
        .processes("creto-egress")
        .into_iter()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap());
    let confined = |status: &String| {
        let has = |line: &str| status.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
        has("Seccomp: 2")
            && has("NoNewPrivs: 1")
            && has("CapEff: 0000000000000000")
            && has("CapBnd: 0000000000000000")
            && has("Uid: 65534 65534 65534 65534")
    };
    assert_eq!(status.filter(confined).count(), 1, "the worker has no power");
    network.node.remove("c");
    network.node.assert_nothing_left();
}

#[test]
fn a_fence_that_was_changed_by_hand_is_found_and_put_up_again() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "audit_every = \"200ms\"");
    let netns = network.join(10);
    network.run_in(&netns, "c", "web");
    let nft = |words: &[&str]| {
        let done = network.host.command("nft").args(words).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    nft(&["flush", "chain", "inet", "creto", "s1-policy"]);
    nft(&["add", "rule", "inet", "creto", "s1-policy", "accept"]);
    let tampered = || network.node.cli_json(&["audit", "search", "--event", "FenceTampered", "--sandbox-id", "c"]);
    wait_until("the alarm", || tampered().as_array().is_some_and(|all| !all.is_empty()));
    assert_eq!(get_through(&network), [true, true, false]);
    network.node.remove("c");
}

#[test]
fn a_sandbox_whose_shim_was_killed_leaves_no_fence() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "audit_every = \"200ms\"");
    let netns = network.join(10);
    network.run_in(&netns, "c", "web");
    let shim = network.node.shims()[0];
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    wait_until("the task's end", || network.node.task("c").is_none_or(|(_, status)| status == "STOPPED"));
    network.node.remove("c");
    let fences = || network.node.cli_json(&["network-policy", "list", "--sandboxes"]);
    wait_until("the fence's end", || fences().as_array().is_some_and(Vec::is_empty));
    // And where nobody can ask for its end: the network goes, and the daemon sweeps.
    network.run_in(&netns, "d", "web");
    network.stop_egress(Signal::SIGKILL);
    network.node.remove("d");
    drop(netns);
    network.start_egress();
    wait_until("the sweep", || fences().as_array().is_some_and(Vec::is_empty));
}
