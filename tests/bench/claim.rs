//! What a claim costs its caller: of a pool that has members, of one that has none, alone and beside others, by step; and what a cold
//! spawn costs beside it. Nothing is warmed while a full pool is drained, but where it says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::{Dice, Samples, machine};
use crate::harness::images::BUSYBOX;
use crate::node::{Bench, POOL, network, pause};
use crate::peer;

/// Callers at the same time.
const CALLERS: usize = 20;
/// Members that a pool is filled with.
const FULL: usize = 20;
/// Lives that take the machine's time: cold spawns, misses.
const FEW: usize = 20;
/// Steady arrivals a second, for so many seconds, from a pool that is kept at so many.
const RATE: f64 = 1.0;
const STEADY: Duration = Duration::from_secs(60);
const KEPT: usize = 5;

/// The steps of the agent and, within `bind`, of the shim: as `took` names them.
const STEPS: [&str; 4] = ["take", "bind", "keep", "start"];
const WITHIN: [&str; 8] = ["identity", "policy", "secrets", "token", "fence", "delivery", "attestation", "record"];

/// What claims of one kind took.
#[derive(Default)]
struct Claims {
    /// As the caller sees it.
    whole: Samples,
    /// From the answer to the first byte of the command's output.
    first: Samples,
    steps: BTreeMap<&'static str, Samples>,
    hits: usize,
    /// No member within the time.
    failed: usize,
    ids: Vec<String>,
}

impl Claims {
    fn add(&mut self, one: One) {
        let claimed: Value = serde_json::from_slice(&one.body).unwrap();
        if one.status != 200 {
            self.failed += 1;
            eprintln!("a claim failed: {claimed}");
            return;
        }
        self.whole.add(one.took);
        self.first.extend(one.first);
        self.hits += usize::from(claimed["warm"] == true);
        self.ids.push(claimed["sandbox"]["id"].as_str().unwrap().to_owned());
        let took = &claimed["took"];
        for (names, of) in [(&STEPS[..], took), (&WITHIN, &took["steps"])] {
            for name in names {
                self.steps.entry(name).or_default().add_micros(of[name].as_u64().unwrap_or_default());
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.whole.append(other.whole);
        self.first.append(other.first);
        for (name, samples) in other.steps {
            self.steps.entry(name).or_default().append(samples);
        }
        self.hits += other.hits;
        self.failed += other.failed;
        self.ids.extend(other.ids);
    }
}

/// A claim as it was timed; read later.
struct One {
    took: Duration,
    status: u16,
    body: Vec<u8>,
    first: Option<Duration>,
}

/// Claims once, and waits for the command's first output.
fn one(bench: &Bench<'_>, client: &mut crate::node::Client, body: &Value) -> One {
    let answer = client.ask("POST", &format!("/v1/warm-pools/{POOL}/claims"), body);
    let mut first = None;
    if answer.status == 200 && !body["command"].is_null() {
        let claimed: Value = serde_json::from_slice(&answer.body).unwrap();
        let log = bench.log(claimed["sandbox"]["id"].as_str().unwrap());
        while answer.at.elapsed() < Duration::from_secs(10) {
            if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
                first = Some(answer.at.elapsed());
                break;
            }
            pause(Duration::from_micros(200));
        }
    }
    One { took: answer.took, status: answer.status, body: answer.body, first }
}

/// One after the other.
fn serial(bench: &Bench<'_>, claims: usize, on_empty: &str) -> Claims {
    let (mut client, body, mut all) = (bench.client(), bench.claim(on_empty), Claims::default());
    for _ in 0..claims {
        all.add(one(bench, &mut client, &body));
    }
    all
}

/// All at once, each by its own connection. Gives the time until the last answer, too.
fn at_once(bench: &Bench<'_>, claims: usize, body: &Value) -> (Claims, Duration) {
    let (all, start) = (Mutex::new(Vec::new()), Arc::new(Barrier::new(claims + 1)));
    let whole = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..claims)
            .map(|_| {
                let (mut client, start, body, all) = (bench.client(), start.clone(), body, &all);
                scope.spawn(move || {
                    start.wait();
                    let done = one(bench, &mut client, body);
                    let at = Instant::now() - done.first.unwrap_or_default();
                    all.lock().unwrap().push(done);
                    at
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        let last = callers.into_iter().map(|caller| caller.join().unwrap()).max().unwrap();
        last.saturating_duration_since(began)
    });
    let mut claims = Claims::default();
    all.into_inner().unwrap().into_iter().for_each(|one| claims.add(one));
    (claims, whole)
}

/// As strangers come: at times that know nothing of each other.
fn steady(bench: &Bench<'_>) -> Claims {
    let (body, all, mut dice) = (bench.claim("cold"), Mutex::new(Claims::default()), Dice::new(6));
    let (began, mut due) = (Instant::now(), Duration::ZERO);
    std::thread::scope(|scope| {
        loop {
            due += dice.pause(RATE);
            if due > STEADY {
                return;
            }
            pause(due.saturating_sub(began.elapsed()));
            let (body, all) = (&body, &all);
            scope.spawn(move || {
                let done = one(bench, &mut bench.client(), body);
                let mut claims = Claims::default();
                claims.add(done);
                bench.end(&claims.ids); // it leaves, as callers do
                all.lock().unwrap().merge(claims);
            });
        }
    });
    all.into_inner().unwrap()
}

/// A full pool that is not filled up while it is claimed from.
fn fill(bench: &Bench<'_>, members: usize) {
    bench.fill(members, || false);
    bench.keep(0);
    pause(Duration::from_millis(500)); // for the last of what warming leaves to do
}

fn row(what: &str, target: &str, samples: &Samples) {
    println!("| {what} | {target} | {} |", samples.cells());
}

fn rows(what: &str, target: &str, claims: &Claims) {
    row(what, target, &claims.whole);
    row(&format!("{what}: first output after the answer"), "p99 ≤ 15", &claims.first);
}

fn table(title: &str) {
    println!("\n| {title} | target | p50 | p95 | p99 | max | N |\n|---|---|---|---|---|---|---|");
}

fn waterfall(store: &str, claims: &Claims) {
    table(&format!("a claim by step, {store}, ms"));
    for name in STEPS {
        row(name, "", &claims.steps[name]);
        if name == "bind" {
            for name in WITHIN {
                row(&format!("– {name}"), "", &claims.steps[name]);
            }
        }
    }
}

/// Spawns through the API, a life after the other.
fn cold_spawns(bench: &Bench<'_>) -> Samples {
    let (mut client, mut all) = (bench.client(), Samples::default());
    let spec = json!({"spec": {"image": BUSYBOX, "command": ["sleep", "1000"]}});
    for _ in 0..FEW {
        let spawned = client.ask("POST", "/v1/sandboxes", &spec);
        all.add(spawned.took);
        bench.end(&[spawned.json()["id"].as_str().unwrap().to_owned()]);
    }
    all
}

fn measure(bench: &Bench<'_>, store: &str, target: &str, claims: usize) {
    let mut hits = Claims::default();
    while hits.whole.len() + hits.failed < claims {
        fill(bench, FULL);
        let done = serial(bench, FULL, "fail");
        bench.end(&done.ids);
        hits.merge(done);
    }
    let (mut parallel, mut bare, mut rates) = (Claims::default(), Claims::default(), [Vec::new(), Vec::new()]);
    let with_command = bench.claim("fail");
    let mut without = with_command.clone();
    without.as_object_mut().unwrap().remove("command");
    for _ in 0..claims.div_ceil(CALLERS) {
        let [full, empty] = &mut rates;
        for (body, all, rate) in [(&with_command, &mut parallel, full), (&without, &mut bare, empty)] {
            fill(bench, CALLERS);
            let (done, whole) = at_once(bench, CALLERS, body);
            bench.end(&done.ids);
            rate.push(done.whole.len() as f64 / whole.as_secs_f64());
            all.merge(done);
        }
    }
    bench.keep(0);
    let misses = serial(bench, FEW, "cold");
    bench.end(&misses.ids);
    fill(bench, CALLERS / 2);
    bench.keep(CALLERS / 2);
    let (burst, _) = at_once(bench, CALLERS, &bench.claim("wait"));
    bench.end(&burst.ids);
    bench.fill(KEPT, || false);
    let arrivals = steady(bench);
    bench.keep(0);

    table(&format!("claims, {store}, ms"));
    rows("hit, one after the other", target, &hits);
    rows(&format!("hit, {CALLERS} at once"), "", &parallel);
    rows("miss: made for the claim", "", &misses);
    rows(&format!("burst: {CALLERS} that wait, of {} ready", CALLERS / 2), "", &burst);
    let ratio = |claims: &Claims| 100.0 * claims.hits as f64 / (claims.whole.len() + claims.failed).max(1) as f64;
    rows(&format!("Poisson, {RATE} a second, {KEPT} kept ready: {:.0} % hits", ratio(&arrivals)), "", &arrivals);
    row(&format!("hit, {CALLERS} at once, without a command"), "", &bare.whole);
    for (what, mut rate) in [("", rates[0].clone()), (", without a command", rates[1].clone())] {
        rate.sort_by(f64::total_cmp);
        let (median, slowest) = (rate[rate.len() / 2], rate[0]);
        println!(
            "| a full pool, drained by {CALLERS}{what}: claims a second, median and slowest | ≥ 200/s | {median:.0} | | | {slowest:.0} | {} |",
            rate.len()
        );
    }
    let failed: usize = [&hits, &parallel, &bare, &misses, &burst, &arrivals].iter().map(|claims| claims.failed).sum();
    println!("| claims that failed | 0 | {failed} | | | | |");
    waterfall(&format!("{store}, one after the other"), &hits);
    waterfall(&format!("{store}, {CALLERS} at once"), &parallel);
}

/// All of it, on a node of its own for each store.
pub fn run(claims: usize, stores: &[&str]) {
    for store in stores {
        let network = network();
        let bench = Bench::start(&network, store, 200);
        bench.end(&[]);
        if *store == "sqlite" {
            let (bare, ours) = (peer::bare(&network, FEW), cold_spawns(&bench));
            table("cold, until its command runs, ms");
            row("spawn through the API: fenced, attested, recorded", "p99 ≤ 700", &ours);
            row("runsc and the same CNI plugins, by hand", "", &bare);
        }
        let target = if *store == "etcd" { "p99 ≤ 50" } else { "p99 ≤ 20" };
        measure(&bench, store, target, claims);
        bench.clear();
    }
    machine();
}
