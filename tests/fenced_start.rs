//! No first instruction in front of the fence, and the statement says what stands.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::network::{Network, address, refs};
use crate::leak_table::{POLICY, backend};

fn predicate(envelope: &[u8], network: &Network) -> Value {
    let proven = network.node.verify(envelope, &Default::default(), Duration::ZERO).unwrap();
    serde_json::to_value(proven.statement.predicate()).unwrap()
}

#[test]
fn the_first_instruction_is_behind_the_fence_and_the_statement_says_so() {
    for name in ["gvisor", "runc"] {
        let network = Network::with(backend(name), &[("web", POLICY)], "");
        let netns = network.join(10);
        // It connects before it does anything else.
        let options = network.options(&netns, "web");
        let options: Vec<&str> = ["--rm"].into_iter().chain(refs(&options)).collect();
        let words = [
            json!(["tcp", "93.184.215.15", 443, "hello"]).to_string(),
            json!(["tcp", "93.184.215.18", 9000, "hello"]).to_string(),
        ];
        let command = ["/usr/bin/python3", "/probe.py", &words[0], &words[1]];
        let said = network.node.ctr(&network.node.run_args("race", &options, &command)).ok();
        let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(answers[0].get("failed").is_some() && answers[1].get("ok").is_some(), "{name}: {said}");
        let leaked = network.wire.saw(|p| p.from.to_string() == address(10) && p.to.to_string() != "93.184.215.18");
        assert!(leaked.is_empty(), "{name}: {leaked:?}");

        let statements = network.node.statements("race");
        assert_eq!(statements.len(), 2, "{name}: one of Create, one of Start");
        let [before, after] = [0, 1].map(|n| predicate(&fs::read(&statements[n]).unwrap(), &network));
        assert_eq!(before.get("fence"), None, "{name}");
        assert_eq!(after["fence"]["mechanism"], "nftables", "{name}");
        assert!(after["previous"].is_string(), "{name}: {after}");
    }
}

#[test]
fn a_sandbox_with_a_network_does_not_start_without_the_daemon_and_is_told_what_to_start() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let netns = network.join(10);
    network.stop_egress(Signal::SIGTERM);
    let options = network.options(&netns, "web");
    let said = network.node.run("c", &refs(&options), &["true"]);
    assert!(said.status != 0 && said.stderr.contains("systemctl start creto-egress"), "{said:?}");
    network.node.ctr(&["container", "rm", "c"]);
    // One that has no interface needs no fence, and says so.
    network.node.run("sealed", &[], &["true"]).ok();
    let statements = network.node.statements("sealed");
    let sealed = predicate(&fs::read(statements.last().unwrap()).unwrap(), &network);
    assert_eq!(sealed["fence"]["mechanism"], "sealed");
    network.node.assert_nothing_left();
    network.start_egress();
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let netns = network.join(10);
    for (policy, expected) in [
        ("nowhere", "no policy nowhere"),
        (r#"{"rules":[{"destination":"*","action":"Allow"}]}"#, "rule 1: destination"),
        (r#"{"rules":[{"destination":"a.b.example","action":"Allow","port":1}]}"#, "port"),
    ] {
        let said = network.node.run("c", &refs(&network.options(&netns, policy)), &["true"]);
        assert!(said.status != 0 && said.stderr.contains(expected), "{policy}: {said:?}");
        network.node.ctr(&["container", "rm", "c"]);
    }
    // An interface whose packets do not come by us.
    netns.ip("link add eth1 type veth peer name eth2");
    netns.ip("link set eth1 up");
    let said = network.node.run("c", &refs(&network.options(&netns, "web")), &["true"]);
    assert!(said.status != 0 && said.stderr.contains("is no veth pair into this network namespace"), "{said:?}");
    network.node.ctr(&["container", "rm", "c"]);
    network.node.assert_nothing_left();
}
