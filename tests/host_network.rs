//! The host's own network is for sandboxes of nodes whose operator allows it, and what is stated of them says so.

use std::fs;
use std::io::Write;
use std::net::TcpListener;

use serde_json::json;

use crate::harness::trust::Agent;
use crate::harness::{Containerd, Node, Setup};

#[test]
fn who_is_let_into_the_hosts_network_reaches_the_hosts_loopback_and_is_attested_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        for _ in 0..2 {
            listener.accept().unwrap().0.write_all(b"the host\n").unwrap();
        }
    });
    let shim = Containerd::V2_4.bin().join("containerd-shim-runc-v2");
    let settings = format!("[isolation]\nallow_host_network = true\n[delegates.runc]\nshim = {shim:?}\n");
    let node = Node::with(Setup { settings, ..Setup::default() });
    let call = format!("nc 127.0.0.1 {port}; cat /run/creto/attestation.dsse.json");
    for backend in ["gvisor", "runc"] {
        let option = format!("creto.dev/backend={backend}");
        let said = node.run(backend, &["--net-host", "--annotation", &option], &["sh", "-c", &call]).ok();
        let envelope = said.strip_prefix("the host\n").unwrap_or_else(|| panic!("{backend}: {said}"));
        let verified = node.verify(envelope.as_bytes(), &Default::default(), Default::default()).unwrap();
        let stated = serde_json::to_value(verified.statement.predicate()).unwrap();
        assert_eq!((&stated["hardening"]["hostNetwork"], stated.get("fence")), (&json!(true), None), "{backend}");
    }
    serving.join().unwrap();
    let strict = node.run("strict", &["--net-host", "--annotation", "creto.dev/profile=strict"], &["true"]);
    assert!(strict.status != 0 && strict.stderr.contains("network is missing"), "{strict:?}");
    node.ctr(&["container", "rm", "strict"]);
    node.assert_nothing_left();
}

#[test]
fn who_has_a_policy_is_not_let_into_a_network_where_it_cannot_be_held() {
    let node = Node::with(Setup { settings: "[isolation]\nallow_host_network = true\n".into(), ..Setup::default() });
    let agent = Agent::register(&node, "a", 1);
    let file = node.path("creto/etc/agents.d/a.toml");
    fs::write(&file, format!("default_policy = \"web-only\"\n{}", fs::read_to_string(&file).unwrap())).unwrap();
    fs::create_dir_all(node.path("creto/etc/policies.d")).unwrap();
    fs::write(node.path("creto/etc/policies.d/web-only.toml"), "rules = []\n").unwrap();
    let agent_is = format!("creto.dev/agent={}", agent.id);
    let said = node.run("c", &["--net-host", "--annotation", &agent_is], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("a network policy cannot be held"), "{said:?}");
    node.ctr(&["container", "rm", "c"]);
    assert_eq!(node.run("d", &["--annotation", &agent_is], &["true"]).status, 0);
    node.assert_nothing_left();
}
