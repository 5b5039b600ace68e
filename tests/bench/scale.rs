//! As many fenced members as the machine holds: what each weighs, how fast they are made, and whether a claim and an exec notice how
//! many wait beside them.

use std::time::{Duration, Instant};

use crate::figures::{Samples, machine};
use crate::node::{Bench, Client, POOL, network, pause};
use crate::processes::{available, parts, usage};

/// Claims, and execs, of each number of members.
const CLAIMS: usize = 20;
/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(60);

fn claim(bench: &Bench<'_>, client: &mut Client, claims: &mut Samples) -> String {
    let answer = client.ask("POST", &format!("/v1/warm-pools/{POOL}/claims"), &bench.claim("fail"));
    claims.add(answer.took);
    answer.json()["sandbox"]["id"].as_str().unwrap().to_owned()
}

/// With so many members waiting: claims, and execs in what was claimed.
fn notice(bench: &Bench<'_>, ready: usize) -> (Samples, Samples) {
    let (mut client, mut claims, mut execs) = (bench.client(), Samples::default(), Samples::default());
    let ids: Vec<_> = (0..ready.min(CLAIMS)).map(|_| claim(bench, &mut client, &mut claims)).collect();
    for id in &ids {
        let shim = bench.agent.network.node.direct(id);
        let began = Instant::now();
        assert_eq!(shim.exec(&["true"]).0, 0);
        execs.add(began.elapsed());
    }
    bench.end(&ids);
    (claims, execs)
}

/// Up to so many members, as long as so much memory stays free.
pub fn run(members: usize, free_mib: usize) {
    let network = network();
    let bench = Bench::start(&network, "sqlite", members + CLAIMS);
    let mut rows = Vec::new();
    let mut levels: Vec<_> = [10, 100].into_iter().filter(|level| *level < members).chain([members]).collect();
    levels.dedup();
    let (mut had, mut reached) = (0, 0);
    for level in levels {
        let (ready, took) = bench.fill(level, || available() < free_mib);
        eprintln!("{ready} of {level} members wait, {} MiB are free", available());
        bench.keep(0); // nothing is made while it is claimed from
        pause(Duration::from_secs(2));
        let rate = (ready - had) as f64 / took.as_secs_f64();
        let (claims, execs) = notice(&bench, ready);
        rows.push(format!(
            "| {ready} | {rate:.1} | {:.1} / {:.1} | {:.1} / {:.1} | {} |",
            claims.percentile(50),
            claims.percentile(99),
            execs.percentile(50),
            execs.percentile(99),
            claims.len()
        ));
        (had, reached) = (ready - claims.len(), ready);
        if ready < level {
            break;
        }
    }
    let (waiting, _) = bench.fill(reached, || available() < free_mib);
    pause(Duration::from_secs(5));
    let before = usage(&network.node);
    let began = Instant::now();
    pause(IDLE);
    let (after, seconds) = (usage(&network.node), began.elapsed().as_secs_f64());

    println!(
        "\n| members | made a second | claim, p50 / p99, ms | exec of `true` by the shim, p50 / p99, ms | N |\n|---|---|---|---|---|"
    );
    rows.iter().for_each(|row| println!("{row}"));
    println!("\n| {waiting} idle members | processes | PSS a sandbox, MiB | of one core, % |\n|---|---|---|---|");
    let mut sum = (0, 0.0);
    for part in parts() {
        let (was, is) = (before.get(part).copied().unwrap_or_default(), after.get(part).copied().unwrap_or_default());
        let percent = is.ticks.saturating_sub(was.ticks) as f64 / seconds;
        let mib = is.pss as f64 / f64::from(1 << 20) / waiting as f64;
        println!("| {part} | {} | {mib:.2} | {percent:.2} |", is.processes);
        sum = (sum.0 + is.pss, sum.1 + percent);
    }
    println!("| all | | {:.2} | {:.2} |", sum.0 as f64 / f64::from(1 << 20) / waiting as f64, sum.1);
    machine();
    bench.keep(0);
    bench.clear();
}
