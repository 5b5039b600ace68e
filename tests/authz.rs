//! RequireAuthz: a connection waits for the decision point, and without its yes there is none.

use std::fs;

use serde_json::{Value, json};

use crate::harness::network::Network;
use crate::harness::{Setup, wait_until};

const POLICY: &str = r#"
[[rules]]
id = "asked"
destination = "*.creto.net"
ports = [80, 443]
action = "RequireAuthz"
[[rules]]
id = "number"
destination = "93.184.215.18"
ports = [9000]
protocol = "tcp"
action = "RequireAuthz"
"#;

fn opens(network: &Network, words: Value) -> bool {
    network.probe("c", &[words]).remove(0).get("ok").is_some()
}

#[test]
fn cedar_decides_by_who_and_where_and_a_change_of_its_policies_counts() {
    let files = tempfile::tempdir().unwrap();
    let policies = files.path().join("policies.cedar");
    fs::write(
        &policies,
        "permit(principal, action == Action::\"connect\", resource == Destination::\"open.creto.net:443\");\n\
         permit(principal, action == Action::\"connect\", resource == Destination::\"93.184.215.18:9000\");\n",
    )
    .unwrap();
    let egress = format!("[authz]\nkind = \"cedar\"\npolicies = {policies:?}\n");
    let network = Network::with(Setup::default(), &[("asked", POLICY)], &egress);
    let netns = network.join(10);
    network.run_in(&netns, "c", "asked");
    let name = |name: &str| json!(["by_name", format!("{name}.creto.net"), 443]);
    assert!(opens(&network, name("open")));
    assert!(!opens(&network, name("shut")));
    assert!(opens(&network, json!(["tcp", "93.184.215.18", 9000, "hello"])), "by address");
    let leaked = network.leaked();
    assert!(leaked.is_empty(), "all of it went through the gate: {leaked:?}");
    let recorded = |event: &str| network.node.cli_json(&["audit", "search", "--event", event, "--sandbox-id", "c"]);
    wait_until("the record", || !recorded("AuthzRequired").as_array().unwrap().is_empty());
    wait_until("the refusal", || recorded("EgressDenied").to_string().contains("shut.creto.net"));
    fs::write(&policies, "forbid(principal, action, resource);\n").unwrap();
    network.node.cli(&["network-policy", "reload"]).ok();
    assert!(!opens(&network, name("open")), "no longer");
    fs::write(&policies, "permit(principal").unwrap();
    let bad = network.node.cli(&["network-policy", "reload"]).ok();
    assert!(bad.contains("the decision point stays as it was"), "{bad}");
    assert!(!opens(&network, name("open")), "still not");
    network.node.remove("c");
}

#[test]
fn a_decision_point_that_is_down_or_silent_lets_nothing_through() {
    for (what, url) in [("down", "http://127.0.0.1:9"), ("silent", "http://127.0.0.1:7")] {
        let egress = format!("[authz]\nkind = \"authzen\"\nurl = {url:?}\ndeadline = \"300ms\"\n");
        let network = Network::with(Setup::default(), &[("asked", POLICY)], &egress);
        // One that takes the question and never answers.
        let _silent = network.host.inside(|| std::net::TcpListener::bind("127.0.0.1:7").unwrap());
        let netns = network.join(10);
        network.run_in(&netns, "c", "asked");
        assert!(!opens(&network, json!(["tls", "198.18.0.1", "open.creto.net"])), "{what}");
        assert!(!opens(&network, json!(["by_name", "open.creto.net", 443])), "{what}");
        let visits = network.internet.visits();
        assert!(visits.is_empty(), "{what}: {visits:?}");
        network.node.remove("c");
    }
}
