//! RequireAuthz: a connection waits for the decision point, and without its yes there is none.

use std::fs;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

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

/// A service that answers every question as it is told to; what it was asked it forgets.
fn answer(listener: std::net::TcpListener, said: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut asked = Vec::new();
            let mut part = [0; 4096];
            while !asked.windows(4).any(|end| end == b"\r\n\r\n") || !asked.ends_with(b"}") {
                match stream.read(&mut part) {
                    Ok(length @ 1..) => asked.extend_from_slice(&part[..length]),
                    _ => break,
                }
            }
            let _ = stream.write_all(said.lock().unwrap().as_bytes()); // the gate may have given it up
        }
    });
}

fn http(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn a_decision_point_that_lies_or_flaps_lets_nothing_through_that_it_does_not_plainly_allow() {
    let egress = "[authz]\nkind = \"authzen\"\nurl = \"http://127.0.0.1:7\"\ndeadline = \"2s\"\nttl = \"1s\"\n\
                  negative_ttl = \"100ms\"\nbreaker_failures = 1000\n";
    let network = Network::with(Setup::default(), &[("asked", POLICY)], egress);
    let said = Arc::new(Mutex::new(String::new()));
    answer(network.host.inside(|| std::net::TcpListener::bind("127.0.0.1:7").unwrap()), said.clone());
    let say = |answer: &str| answer.clone_into(&mut said.lock().unwrap());
    let netns = network.join(10);
    network.run_in(&netns, "c", "asked");
    let asked = || opens(&network, json!(["by_name", "open.creto.net", 443]));
    let json = "application/json";
    let yes = http("200 OK", json, "{\"decision\":true}");
    for (what, lie) in [
        ("a yes that is a text", http("200 OK", json, "{\"decision\":\"true\"}")),
        ("a yes that is a number", http("200 OK", json, "{\"decision\":1}")),
        ("a yes beside a no", http("200 OK", json, "{\"decision\":false,\"decision\":true}")),
        ("a yes in a list", http("200 OK", json, "[{\"decision\":true}]")),
        ("a yes in HTML", http("200 OK", "text/html", "{\"decision\":true}")),
        ("a yes that is an error", http("500 Oops", json, "{\"decision\":true}")),
        (
            "a yes elsewhere",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:7/yes\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        (
            "half a yes",
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"decision\":".into(),
        ),
        ("noise", "\0\u{1}\u{2}yes yes yes\r\n\r\n".into()),
        ("nothing", String::new()),
    ] {
        say(&lie);
        assert!(!asked(), "{what}");
    }
    assert!(network.internet.visits().is_empty(), "{:?}", network.internet.visits());
    // A yes counts for a second, whatever is said then; and after it whatever is said then.
    for (what, next) in [("no", http("200 OK", json, "{\"decision\":false}")), ("fails", http("503 Busy", json, "{}"))]
    {
        say(&yes);
        wait_until("the yes", asked);
        say(&next);
        wait_until(what, || !asked());
    }
    network.node.remove("c");
}
