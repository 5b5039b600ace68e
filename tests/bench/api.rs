//! What reading the API costs its callers over TCP: on a node with nothing on it, while many sandboxes are made, and with those there.
//! Asked by vegeta at a rate that does not go by the answers, so that an answer which is late delays no question after it.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::figures::{Samples, machine};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::node::{Bench, network, pause};

/// In PATH, by `scripts/bench`.
const VEGETA: &str = "vegeta";
/// What is read; of each so many a second.
const READS: [&str; 4] = ["/health", "/metrics", "/v1/sandboxes", "/v1/warm-pools"];
const RATE: &str = "50";
/// For so long, where nothing else says when it ends.
const WHILE: Duration = Duration::from_secs(20);

/// One reader for each path, until they are stopped.
struct Readers<'a> {
    network: &'a Network,
    all: Vec<Child>,
}

impl<'a> Readers<'a> {
    fn start(network: &'a Network) -> Self {
        let start = |(number, path): (usize, &&str)| {
            let targets = network.node.path(&format!("reads-{number}.txt"));
            std::fs::write(&targets, format!("GET http://127.0.0.1:8080{path}\n")).unwrap();
            let mut command = network.host.command(VEGETA);
            command.args(["attack", "-rate", RATE, "-duration", "0", "-timeout", "10s", "-targets"]).arg(targets);
            command.stdout(File::create(results(network, number)).unwrap()).stdin(Stdio::null());
            command.spawn().unwrap()
        };
        Self { network, all: READS.iter().enumerate().map(start).collect() }
    }

    /// Ends them, and prints what they were answered.
    fn report(self, when: &str, target: &str) {
        for mut reader in self.all {
            kill(Pid::from_raw(reader.id() as i32), Signal::SIGINT).unwrap(); // it waits for what it has asked
            reader.wait().unwrap();
        }
        for (number, path) in READS.iter().enumerate() {
            let mut command = Command::new(VEGETA);
            command.args(["report", "-type", "json"]).arg(results(self.network, number));
            let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
            let cells = ["50th", "95th", "99th", "max"]
                .map(|which| format!("{:.1}", report["latencies"][which].as_f64().unwrap() / 1e6));
            let (asked, good) = (&report["requests"], report["status_codes"]["200"].as_u64().unwrap_or_default());
            assert_eq!(asked.as_u64(), Some(good), "{path}: {report}");
            println!("| {path}, {when} | {target} | {} | {asked} |", cells.join(" | "));
        }
    }
}

fn results(network: &Network, number: usize) -> std::path::PathBuf {
    network.node.path(&format!("reads-{number}.bin"))
}

/// So many spawns at once, each by its own connection.
fn spawns(bench: &Bench<'_>, spawns: usize) -> (Samples, Vec<String>) {
    let body = json!({"spec": {"image": BUSYBOX, "command": ["sleep", "1000"]}});
    let one = || bench.client().ask("POST", "/v1/sandboxes", &body);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..spawns).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|spawn| spawn.join().unwrap()).collect()
    });
    let mut took = Samples::default();
    took.extend(answers.iter().map(|answer| answer.took));
    (took, answers.iter().map(|answer| answer.json()["id"].as_str().unwrap().to_owned()).collect())
}

/// All of it, on a node of its own.
pub fn run(many: usize) {
    let network = network();
    let bench = Bench::start(&network, "sqlite", 200);
    println!(
        "\n| reads over TCP, each {RATE} times a second, ms | target | p50 | p95 | p99 | max | N |\n|---|---|---|---|---|---|---|"
    );
    let readers = Readers::start(&network);
    pause(WHILE);
    readers.report("nothing else", "");
    let readers = Readers::start(&network);
    let (took, ids) = spawns(&bench, many);
    readers.report(&format!("while {many} spawns run"), "p99 ≤ 10");
    let readers = Readers::start(&network);
    pause(WHILE);
    readers.report(&format!("with {many} sandboxes there"), "");
    println!("| a spawn, {many} at once | | {} |", took.cells());
    bench.end(&ids);
    bench.clear();
    machine();
}
