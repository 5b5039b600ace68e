//! What the node agent does for a caller is part of the caller's trace at an OpenTelemetry collector, where one is named; what a caller
//! does not want recorded is not; and a collector that is away, or takes nothing, is nobody's business but the operator's.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::collector::{Collector, Sent};
use crate::harness::http::{Answer, over_socket, question};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::wait_until;
use crate::leak_table::{POLICY, backend};

const JSON: &str = "Content-Type: application/json\r\n";
const SECRET: &str = "open-sesame";

fn claim(network: &Network, traceparent: &str) -> Answer {
    let headers = format!("{JSON}traceparent: {traceparent}\r\n");
    let body =
        format!("{{\"command\":[\"sleep\",\"1000\"],\"env\":{{\"PASSWORD\":\"{SECRET}\"}},\"onEmpty\":\"wait\"}}");
    let answer = over_socket(network, &question("POST", "/v1/warm-pools/demo/claims", &headers, &body));
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer
}

fn value(network: &Network, metric: &str) -> f64 {
    let answer = over_socket(network, &question("GET", "/metrics", "", ""));
    let text = String::from_utf8(answer.body).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok());
    line.unwrap_or_else(|| panic!("no {metric} in\n{text}"))
}

fn pool(agent: &PoolAgent<'_>) {
    agent.cli(&["pool", "create", "demo", "--image", BUSYBOX, "--min-ready", "1", "--max-ready", "4"]).ok();
    agent.wait_ready("demo", 1);
}

#[test]
fn what_is_done_for_a_caller_is_part_of_its_trace_unless_it_is_not_to_be_recorded() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let collector = Collector::start(&network);
    let agent = PoolAgent::start(&network, Collector::SETTINGS);
    pool(&agent);
    let (recorded, not) = ("4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4737");
    claim(&network, &format!("00-{not}-00f067aa0ba902b7-00"));
    let answer = claim(&network, &format!("00-{recorded}-00f067aa0ba902b7-01"));
    let told = answer.header("traceresponse").unwrap().split('-').nth(2).unwrap().to_owned();
    let spawn = format!("{{\"spec\":{{\"image\":{BUSYBOX:?},\"command\":[\"sleep\",\"1000\"]}}}}");
    let spawned = over_socket(&network, &question("POST", "/v1/sandboxes", JSON, &spawn));
    assert_eq!(spawned.status, 201, "{}", spawned.json());
    // What waits goes at the end; whoever is not recorded was before all that is looked for.
    agent.cli(&["pool", "delete", "demo"]).ok();
    agent.cli(&["terminate", "--all", "--force"]).ok();
    wait_until("no sandbox is left", || agent.cli(&["list"]).ok().is_empty());
    agent.stop(Signal::SIGTERM);
    let sent = collector.sent();
    let of = |trace: &str| sent.iter().filter(|span| span.trace == trace).cloned().collect::<Vec<Sent>>();

    assert!(of(not).is_empty(), "{:?}", of(not));
    let spans = of(recorded);
    let named = |name: &str| spans.iter().find(|it| it.name == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"));
    let request = named("POST /v1/warm-pools/{name}/claims");
    assert_eq!((&*request.parent, &*request.id, &*request.kind), ("00f067aa0ba902b7", &*told, "Server"), "{request:?}");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/warm-pools/{name}/claims"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/warm-pools/demo/claims"),
    ] {
        assert_eq!(request.attributes.get(key).map(String::as_str), Some(value), "{request:?}");
    }
    assert_eq!(request.resource.get("service.name").map(String::as_str), Some("creto-pool-agent"), "{request:?}");
    assert_eq!(named("claim").parent, request.id);
    for name in ["take", "bind", "start", "keep"] {
        assert_eq!(named(name).parent, named("claim").id, "{name}: {spans:?}");
    }

    // What nobody else has begun is a trace of its own: warming, and a request without a traceparent.
    let warmed = sent.iter().find(|span| span.name == "warm").unwrap_or_else(|| panic!("no warm: {sent:?}"));
    assert_eq!((&*warmed.parent, &*warmed.attributes["pool"]), ("", "demo"));
    let made: Vec<_> = sent.iter().filter(|span| span.parent == warmed.id).map(|span| &*span.name).collect();
    assert_eq!(made, ["image", "network", "create", "start", "readiness"], "{sent:?}");
    let spawn = sent.iter().find(|span| span.name == "spawn").unwrap_or_else(|| panic!("no spawn: {sent:?}"));
    assert_eq!(Value::from(&*spawn.attributes["sandbox"]), spawned.json()["id"]);
    let parent = sent.iter().find(|span| span.id == spawn.parent).unwrap();
    assert_eq!((&*parent.name, &*parent.parent, &parent.trace), ("POST /v1/sandboxes", "", &spawn.trace));
    assert!(!format!("{sent:?}").contains(SECRET));
    drop(collector);
    network.node.assert_nothing_left();
}

/// Answers every request with 500, as long as the test runs.
fn refuses(network: &Network) {
    let listener = network.host.inside(|| TcpListener::bind("127.0.0.1:4318").unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 64 << 10]);
            let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
}

#[test]
fn a_collector_that_is_away_or_takes_nothing_changes_nothing_for_callers() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, Collector::SETTINGS); // nobody listens there
    pool(&agent);
    let work = |trace: u8| {
        claim(&network, &format!("00-{trace:032x}-00f067aa0ba902b7-01"));
        agent.wait_ready("demo", 1);
    };
    work(1);
    let dropped = || value(&network, "creto_runtime_spans_dropped_total");
    wait_until("what nobody takes is dropped, and counted", || dropped() > 0.0);
    assert_eq!(value(&network, "creto_runtime_spans_exported_total"), 0.0);
    // One that says nothing: nobody takes the connections that wait at it.
    let before = dropped();
    let silent = network.host.inside(|| TcpListener::bind("127.0.0.1:4318").unwrap());
    work(2);
    wait_until("what is not answered is dropped, and counted", || dropped() > before);
    drop(silent);
    // One that says no.
    let before = dropped();
    refuses(&network);
    work(3);
    wait_until("what is refused is dropped, and counted", || dropped() > before);
    let said = agent.log().lines().filter(|line| line.contains("the collector takes no spans")).count();
    assert_eq!(said, 1, "{}", agent.log());
    agent.clear(); // within what SIGTERM is given, though nobody takes the last
}
