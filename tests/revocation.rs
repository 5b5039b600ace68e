//! What is no longer allowed ends at once; what still is goes on, whatever else changes.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::netns::Netns;
use crate::harness::network::Network;
use crate::harness::{Setup, wait_until};
use crate::leak_table::{POLICY, backend};

/// Begins a download from inside, by name; the returned file has its progress, in bytes, as long as it goes on.
fn download(network: &Network, exec: &str, from: &str) -> (crate::harness::process::Running, PathBuf) {
    let shared = network.node.path("shared");
    let words = json!(["download", from, 8080, format!("/shared/{exec}"), 60]).to_string();
    let command = ["task", "exec", "--exec-id", exec, "c", "/usr/bin/python3", "/probe.py", &words];
    let running = crate::harness::process::Running::start(network.node.ctr_command(&command));
    let progress = shared.join(exec);
    wait_until("the first bytes", || bytes(&progress) > 0);
    (running, progress)
}

fn bytes(progress: &PathBuf) -> u64 {
    fs::read_to_string(progress).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn network(setup: Setup, egress: &str) -> (Network, Netns) {
    let network = Network::with(setup, &[("web", POLICY)], egress);
    let shared = network.node.path("shared");
    fs::create_dir_all(&shared).unwrap();
    let netns = network.join(10);
    let mount = format!("type=bind,src={},dst=/shared,options=rbind:rw", shared.display());
    let mut options = network.options(&netns, "web");
    options.extend(["--mount".to_owned(), mount]);
    network.node.run_detached("c", &crate::harness::network::refs(&options), &["sleep", "1000"]);
    (network, netns)
}

fn said(running: crate::harness::process::Running) -> String {
    let answer: Value = serde_json::from_str(running.finish().ok().trim()).unwrap();
    answer["ok"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn a_download_is_cut_when_its_rule_goes_and_only_then() {
    // A second each: time to live, grace and rest of a name all pass while the download goes on.
    let egress = "[dns]\nttl_seconds = 1\ngrace_seconds = 1\nrest_seconds = 1\n";
    let (network, _netns) = network(backend("gvisor"), egress);
    let (running, progress) = download(&network, "d1", "open.creto.net");
    let began = std::time::Instant::now();
    wait_until("the name's end", || began.elapsed().as_secs() > 4);
    let before = bytes(&progress);
    wait_until("more", || bytes(&progress) > before);
    // Another policy, under which it may go on.
    let rule = ["--destination", "late.creto.net", "--action", "Allow", "--port", "443", "--policy", "web"];
    let held = network.node.cli(&[&["network-policy", "add-rule"][..], &rule].concat()).ok();
    assert!(held.contains(&format!("holds now for {}/c", network.node.namespace())), "{held}");
    let before = bytes(&progress);
    wait_until("more under the next policy", || bytes(&progress) > before);
    // And one under which it may not.
    network.node.cli(&["network-policy", "remove-rule", "open", "--policy", "web"]).ok();
    let said = said(running);
    assert!(said.starts_with("cut after"), "{said}");
    let refused = network.probe("c", &[json!(["by_name", "open.creto.net", 443])]).remove(0);
    assert!(refused.get("failed").is_some(), "{refused}");
    let events = network.node.cli_json(&["audit", "search", "--event", "PolicyChanged", "--sandbox-id", "c"]);
    assert_eq!(events.as_array().unwrap().len(), 2, "{events}");
    network.node.remove("c");
}

#[test]
fn a_flow_by_address_is_cut_in_the_kernel() {
    let policy = format!(
        "{POLICY}\n[[rules]]\nid = \"slow\"\ndestination = \"93.184.215.15\"\nports = [8080]\naction = \"Allow\"\n"
    );
    let (network, _netns) = network(backend("gvisor"), "");
    fs::write(network.node.path("creto/etc/policies.d/web.toml"), policy).unwrap();
    let (running, progress) = {
        network
            .node
            .cli(&["network-policy", "add-rule", "--destination", "x.creto.net", "--action", "Deny", "--policy", "web"])
            .ok();
        download(&network, "d1", "93.184.215.15")
    };
    let before = bytes(&progress);
    wait_until("more", || bytes(&progress) > before);
    network.node.cli(&["network-policy", "remove-rule", "slow", "--policy", "web"]).ok();
    let said = said(running);
    assert!(said.starts_with("cut after"), "{said}");
    network.node.remove("c");
}

#[test]
fn a_rule_of_one_sandbox_holds_for_it_alone_and_at_once() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let (one, two) = (network.join(10), network.join(11));
    network.run_in(&one, "one", "web");
    network.run_in(&two, "two", "web");
    let shut = json!(["by_name", "shut.creto.net", 443]);
    let opens = |id: &str| network.probe(id, std::slice::from_ref(&shut)).remove(0).get("ok").is_some();
    assert!(!opens("one"));
    let rule = ["--destination", "shut.creto.net", "--action", "Allow", "--sandbox-id", "one", "--id", "mine"];
    network.node.cli(&[&["network-policy", "add-rule"][..], &rule].concat()).ok();
    assert!(opens("one") && !opens("two"));
    let test = ["network-policy", "test", "--destination", "shut.creto.net", "--sandbox-id"];
    let verdict = |id| network.node.cli_json(&[&test[..], &[id]].concat())["verdict"].clone();
    assert_eq!((verdict("one"), verdict("two")), (json!("Allow"), json!("Deny")));
    // What one has is no use to the other: an address that stands for a name of the neighbour's.
    let address = network.probe("one", &[json!(["dns", "shut.creto.net"])]).remove(0);
    let address = address["ok"].as_str().unwrap().rsplit(' ').next().unwrap().to_owned();
    let stolen = network.probe("two", &[json!(["tls", address, "shut.creto.net"])]).remove(0);
    assert!(stolen.get("failed").is_some() && stolen["ms"].as_f64().unwrap() < 1500.0, "{stolen}");
    network.node.cli(&["network-policy", "remove-rule", "own/mine", "--sandbox-id", "one"]).ok();
    assert!(!opens("one"));
    // Nor is the address of a name that is not allowed any more.
    let stale = network.probe("one", &[json!(["tls", address, "shut.creto.net"])]).remove(0);
    assert!(stale.get("failed").is_some(), "{stale}");
    for id in ["one", "two"] {
        network.node.remove(id);
    }
}
