//! What an operator, a full disk or a stranger at a socket may do to a node agent: it says what is wrong, and what runs goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::etcd::{Etcd, Version};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::process::{Finished, Running};
use crate::harness::trust::Agent;
use crate::harness::{leaks, parts, poll, wait_until};
use crate::leak_table::backend;

fn create(agent: &PoolAgent, name: &str, members: u32) {
    let (min, max) = (members.to_string(), (members + 1).to_string());
    agent.cli(&["pool", "create", name, "--image", BUSYBOX, "--min-ready", &min, "--max-ready", &max]).ok();
    agent.wait_ready(name, members.into());
}

/// Claims a member that runs a command; it goes on.
fn claimed(agent: &PoolAgent, command: &[&str]) -> String {
    let claimed = agent.network.node.ask("POST", "/v1/warm-pools/demo/claims", &json!({ "command": command })).unwrap();
    assert_eq!(claimed.0, 200, "{}", claimed.1);
    claimed.1["sandbox"]["id"].as_str().unwrap().to_owned()
}

/// One more agent at the same node, to its end.
fn another(network: &Network) -> Running {
    let mut command = network.host.command(parts::pool_agent().to_str().unwrap());
    command.arg("--root").arg(network.node.path("creto"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start_as_is(command)
}

#[test]
fn of_agents_started_at_once_one_runs_and_the_others_say_so() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "[api]\nlisten = \"\"\n"); // so that no port decides it
    create(&agent, "demo", 1);
    let refused =
        |done: Finished| assert!(done.status == 1 && done.stderr.contains("another creto-pool-agent"), "{done:?}");
    refused(another(&network).finish());
    agent.cli(&["health"]).ok(); // its socket is its own still
    agent.stop(Signal::SIGKILL);
    let all: Vec<_> = (0..4).map(|_| another(&network)).collect();
    wait_until("one of them serves", || agent.cli(&["health"]).status == 0);
    let mut all: Vec<_> = all.into_iter().map(Some).collect();
    wait_until("all others have ended", || {
        for one in &mut all {
            if one.as_mut().is_some_and(|running| running.has_ended()) {
                refused(one.take().unwrap().finish());
            }
        }
        all.iter().flatten().count() == 1
    });
    let last = all.into_iter().flatten().next().unwrap();
    assert_eq!(agent.json(&["pool", "stats", "demo"])["ready"], 1);
    last.signal(Signal::SIGTERM);
    assert_eq!(last.finish().status, 0);
    agent.launch();
    wait_until("it serves again", || agent.cli(&["health"]).status == 0);
    agent.clear();
}

#[test]
fn on_a_full_disk_claims_fail_whole_and_go_on_when_there_is_room() {
    let network = Network::with(backend("gvisor"), &[], "");
    let lib = network.node.path("creto/lib");
    fs::create_dir_all(&lib).unwrap();
    mount(Some("tmpfs"), &lib, Some("tmpfs"), MsFlags::empty(), Some("size=4m,mode=755")).unwrap();
    let agent = PoolAgent::start(&network, "");
    create(&agent, "demo", 2);
    let running = claimed(&agent, &["sleep", "1000"]);
    agent.wait_ready("demo", 2);
    fill(&lib);
    let mut failed = 0;
    for n in 0..8 {
        let key = format!("key-{n}");
        let words = ["claim", "demo", "--on-empty", "fail", "--idempotency-key", &key, "--json", "--", "sleep", "1000"];
        let done = agent.cli(&words);
        match done.status {
            0 => {} // a record found its place still
            _ => {
                assert!(done.stderr.contains("Error"), "{done:?}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "the disk was not full: this shows nothing");
    agent.cli(&["exec", &running, "--", "true"]).ok(); // what runs goes on
    assert!(agent.cli(&["health"]).status == 0 || agent.cli(&["health"]).status == 1, "it answers");
    fs::remove_file(lib.join("filler")).unwrap();
    wait_until("claims succeed again", || agent.cli(&["claim", "demo", "--json"]).status == 0);
    wait_until("the pool is full again", || agent.json(&["pool", "stats", "demo"])["ready"] == 2);
    // Nothing is half-made: what the agent knows of is all that there is.
    wait_until("records and containers agree", || {
        let known = agent.json(&["list"]).as_array().unwrap().len();
        known == network.node.ctr(&["container", "ls", "-q"]).ok().lines().count()
    });
    agent.clear();
    umount2(&lib, MntFlags::MNT_DETACH).unwrap();
}

/// To the last block, as a workload that logs does.
fn fill(dir: &Path) {
    let mut filler = fs::File::create(dir.join("filler")).unwrap();
    let block = vec![0; 4096];
    while filler.write_all(&block).is_ok() {}
}

#[test]
fn keys_and_agents_that_others_may_write_are_not_used_and_the_file_is_named() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    let caller = Agent::register(&network.node, "a", 1);
    create(&agent, "demo", 1);
    let claim = ["claim", "demo", "--agent", &caller.id, "--json"];
    let spawn = ["spawn", "--image", BUSYBOX]; // a member that waits has read its key already
    for (place, mode, right, words) in [
        ("creto/etc/agents.d/a.toml", 0o666, 0o644, &claim[..]),
        ("creto/etc/agents.d", 0o777, 0o755, &claim),
        ("creto/lib/keys", 0o777, 0o700, &spawn),
    ] {
        let path = network.node.path(place);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let done = agent.cli(words);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(done.status == 1 && done.stderr.contains(name), "{place}: {done:?}");
        fs::set_permissions(&path, fs::Permissions::from_mode(right)).unwrap();
        agent.wait_ready("demo", 1);
    }
    agent.json(&["claim", "demo", "--agent", &caller.id]);
    agent.clear();
}

#[test]
fn garbage_on_a_socket_costs_its_sender_the_connection_and_nobody_anything() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    create(&agent, "demo", 1);
    let id = claimed(&agent, &["sleep", "1000"]);
    let shim = leaks::shim_socket(&network.node, &id);
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ttrpc = |length: u32, kind: u8| [&length.to_be_bytes()[..], &1_u32.to_be_bytes(), &[kind, 0]].concat();
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        noise,
        vec![0; 70_000],
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"POST /v1/warm-pools/demo/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/warm-pools/demo/claims HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        ttrpc(u32::MAX, 1),
        [ttrpc(10, 1), vec![0xff; 10]].concat(),
        [ttrpc(4, 99), vec![1; 4]].concat(),
    ];
    for socket in
        [network.node.path("creto/run/pool-agent.sock"), shim.clone(), network.node.path("creto/run/egress.sock")]
    {
        // All at once, and some who say nothing and stay.
        let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        for garbage in &cases {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.write_all(garbage); // it may be cut off before all is said
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.take(1 << 20).read_to_end(&mut Vec::new());
        }
        agent.cli(&["health"]).ok();
        agent.cli(&["exec", &id, "--", "true"]).ok();
        drop(silent);
    }
    agent.wait_ready("demo", 1);
    agent.json(&["claim", "demo"]);
    agent.clear();
}

#[test]
fn a_drain_in_the_middle_of_claims_hands_out_no_more_and_takes_from_nobody() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    create(&agent, "demo", 4);
    let claim = |n: usize| {
        let on_empty = ["wait", "cold", "fail"][n % 3];
        let request = json!({"onEmpty": on_empty, "timeout": "20s", "command": ["sleep", "1000"]});
        network.node.ask("POST", "/v1/warm-pools/demo/claims", &request).unwrap()
    };
    let answers: Vec<(u16, Value)> = std::thread::scope(|all| {
        let claims: Vec<_> = (0..12).map(|n| all.spawn(move || claim(n))).collect();
        agent.cli(&["pool", "drain", "demo"]).ok();
        claims.into_iter().map(|claim| claim.join().unwrap()).collect()
    });
    for (status, answer) in &answers {
        let refused = ["pool-draining", "pool-empty", "claim-timeout"].iter().any(|code| answer["code"] == *code);
        assert!(*status == 200 || refused, "{status} {answer}");
    }
    let (status, after) = claim(0);
    assert_eq!((status, &after["code"]), (503, &json!("pool-draining")), "{after}");
    wait_until("nobody waits in it any more", || {
        let stats = agent.json(&["pool", "stats", "demo"]);
        stats["ready"] == 0 && stats["warming"] == 0
    });
    for (_, claimed) in answers.iter().filter(|(status, _)| *status == 200) {
        let id = claimed["sandbox"]["id"].as_str().unwrap();
        agent.cli(&["exec", id, "--", "true"]).ok();
    }
    agent.cli(&["pool", "enable", "demo"]).ok();
    agent.wait_ready("demo", 4);
    agent.clear();
}

#[test]
fn without_etcd_what_runs_goes_on_claims_say_why_they_fail_and_all_is_well_when_it_is_back() {
    for version in [Version::V3_4, Version::V3_7] {
        let network = Network::with(backend("gvisor"), &[], "");
        let etcd = Etcd::start(&network, version);
        let agent = PoolAgent::start(&network, Etcd::SETTINGS);
        create(&agent, "demo", 1);
        let script = "while :; do date; sleep 1; done";
        let id = claimed(&agent, &["sh", "-c", script]);
        agent.wait_ready("demo", 1);
        etcd.kill();
        let log = network.node.path(&format!("creto/lib/logs/{id}.log"));
        let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        let before = lines();
        let claim = network.node.ask("POST", "/v1/warm-pools/demo/claims", &json!({})).unwrap();
        assert_eq!((claim.0, &claim.1["code"]), (503, &json!("store-unavailable")), "{version:?}: {}", claim.1);
        let detail = claim.1["detail"].as_str().unwrap().to_owned() + claim.1["hint"].as_str().unwrap();
        assert!(detail.contains("etcd") && detail.contains("etcdctl endpoint health"), "{version:?}: {detail}");
        let (status, health) = network.node.ask("GET", "/health", &Value::Null).unwrap();
        assert_eq!((status, &health["status"]), (503, &json!("unhealthy")), "{version:?}: {health}");
        let said = health["components"]["etcd"].as_str().unwrap();
        assert!(said != "ok" && health["components"]["containerd"] == "ok", "{version:?}: {health}");
        assert_eq!(network.node.task(&id).unwrap().1, "RUNNING", "{version:?}");
        wait_until("what runs goes on", || lines() > before + 2);
        // One that is started meanwhile says why it does not serve.
        agent.stop(Signal::SIGKILL);
        let done = another(&network).finish();
        assert!(done.status == 1 && done.stderr.contains("etcd"), "{version:?}: {done:?}");
        etcd.start_again();
        agent.restart();
        agent.wait_ready("demo", 1);
        agent.cli(&["exec", &id, "--", "true"]).ok();
        // And one that has waited for it goes on by itself.
        etcd.kill();
        assert!(poll(|| (agent.cli(&["health"]).status != 0).then_some(())).is_some());
        etcd.start_again();
        wait_until("it is well again", || agent.cli(&["health"]).status == 0);
        agent.json(&["claim", "demo", "--on-empty", "wait"]);
        agent.wait_ready("demo", 1);
        agent.clear();
    }
}
