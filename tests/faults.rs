//! Whatever is killed, and whenever: each sandbox of a pool is handed out once or taken down, behind its fence, with nothing of anybody else's
//! in it; and nothing is lost or left behind. The real thing under `kill -9`; the state machine alone, by thousands of schedules, is
//! `pool-agent/src/pool/model`. `CRETO_FAULT_SEED` repeats a plan, `CRETO_FAULT_CLAIMS` makes it longer (scripts/soak).

mod callers;
mod chaos;
mod evidence;
mod plan;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::etcd::{Etcd, Version};
use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::{poll, wait_until};
use crate::leak_table::backend;
use callers::{CALLERS, Callers};
use chaos::Chaos;
use plan::Dice;

/// So many wait in the pool.
const MIN_READY: usize = 4;
const LIMITS: &str = "[limits]\nkeep_logs = \"1h\"\n";

#[test]
fn whatever_is_killed_each_member_is_one_claims_or_gone() {
    let network = Network::with(backend("gvisor"), &[], "");
    claims_while_all_is_killed(&network, None);
}

#[test]
fn whatever_is_killed_etcd_too_each_member_is_one_claims_or_gone() {
    let network = Network::with(backend("gvisor"), &[], "");
    let etcd = Etcd::start(&network, Version::V3_4);
    claims_while_all_is_killed(&network, Some(&etcd));
}

/// The template by its number: a claim's command finds it in its environment.
fn spec(generation: usize) -> Value {
    json!({"image": BUSYBOX, "env": {"GENERATION": generation.to_string()}})
}

fn claims_while_all_is_killed(network: &Network, etcd: Option<&Etcd>) {
    let (seed, claims) = (plan::seed(), plan::claims());
    #[expect(clippy::print_stderr, reason = "by it a run that found something is repeated")]
    {
        eprintln!("CRETO_FAULT_SEED={seed} CRETO_FAULT_CLAIMS={claims}");
    }
    Callers::settings(network);
    let store = etcd.map_or("", |_| Etcd::SETTINGS);
    let agent = PoolAgent::start(network, &format!("{store}{LIMITS}"));
    let callers = Callers::at(network);
    let pool = json!({
        "name": "chaos", "template": {"spec": spec(0)},
        "scaling": {"minReady": MIN_READY, "maxReady": 2 * MIN_READY},
    });
    let made = network.node.ask("POST", "/v1/warm-pools", &pool).unwrap();
    assert_eq!(made.0 / 100, 2, "{made:?}");
    agent.wait_ready("chaos", MIN_READY as u64);

    let chaos = Chaos::of(&agent, etcd);
    let (enough, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|all| {
        let killer = all.spawn(|| chaos.run(&mut Dice::of(seed, u64::MAX), &enough));
        let watcher = all.spawn(|| none_is_unfenced(&chaos, &enough));
        let changer = all.spawn(|| change_the_template(&callers, network, claims, &asked, &enough));
        let each = claims.div_ceil(CALLERS);
        let work: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (callers, asked) = (&callers, &asked);
                all.spawn(move || {
                    let mut dice = Dice::of(seed, caller as u64);
                    let numbers = caller * each..((caller + 1) * each).min(claims);
                    callers.claim(caller, numbers.inspect(|_| _ = asked.fetch_add(1, Ordering::Relaxed)), &mut dice);
                })
            })
            .collect();
        let done: Vec<_> = work.into_iter().map(thread::ScopedJoinHandle::join).collect();
        enough.store(true, Ordering::Relaxed);
        let others = [killer, watcher, changer].map(thread::ScopedJoinHandle::join);
        for failed in done.into_iter().chain(others).filter_map(Result::err) {
            std::panic::resume_unwind(failed);
        }
    });
    #[expect(clippy::print_stderr, reason = "a run that hit nothing shows nothing: how much it hit is worth a line")]
    {
        eprintln!("killed: {:?}\nanswered: {:?}", chaos.history.lock().unwrap(), callers.answers.lock().unwrap());
    }
    let got = callers.got.lock().unwrap().len();
    assert!(got >= claims / 4, "only {got} claims of {claims} came through: this shows little\n{}", agent.log());

    wait_until("the agent is well again", || {
        agent.revive();
        agent.cli(&["health"]).status == 0
    });
    let full = (0..3).any(|_| poll(|| is_full(network).then_some(())).is_some()); // one whose warming failed backs off for a minute
    assert!(full, "the pool does not come back to {MIN_READY}: {}", agent.log());
    evidence::all_agree(&callers, &agent, &chaos.killed.lock().unwrap());
    evidence::each_was_one_claims(&callers, &agent);
    evidence::the_ledger_is_complete(&callers, &agent);
    evidence::nothing_is_left(&agent);
    evidence::output_goes(&agent);
    agent.stop(Signal::SIGTERM);
}

fn is_full(network: &Network) -> bool {
    let stats = network.node.ask("GET", "/v1/warm-pools/chaos/stats", &Value::Null);
    stats.is_ok_and(|(_, stats)| stats["ready"].as_u64() >= Some(MIN_READY as u64))
}

/// Another template, twice on the way: from its answer on nobody gets a member of the one before.
fn change_the_template(callers: &Callers, network: &Network, claims: usize, asked: &AtomicUsize, enough: &AtomicBool) {
    for generation in 1..=2 {
        let due = || asked.load(Ordering::Relaxed) >= claims * generation / 3 || enough.load(Ordering::Relaxed);
        while poll(|| due().then_some(())).is_none() {} // as long as the claims take
        let update = json!({ "template": spec(generation) });
        let changed =
            poll(|| matches!(network.node.ask("PATCH", "/v1/warm-pools/chaos", &update), Ok((200, _))).then_some(()));
        assert!(changed.is_some(), "the template cannot be changed");
        callers.generation.store(generation, Ordering::SeqCst);
    }
}

/// What the agent says is Ready or Running before and after creto-egress was asked has been behind a fence in between; but where its shim
/// was killed, which the agent may not have heard of yet.
fn none_is_unfenced(chaos: &Chaos, enough: &AtomicBool) {
    let agent = chaos.agent;
    let settled = || -> Option<BTreeSet<String>> {
        let (_, answer) = agent.network.node.ask("GET", "/v1/sandboxes", &Value::Null).ok()?;
        let is = |one: &&Value| matches!(one["phase"].as_str(), Some("Ready" | "Running"));
        Some(
            answer["sandboxes"]
                .as_array()?
                .iter()
                .filter(is)
                .map(|one| one["id"].as_str().unwrap().to_owned())
                .collect(),
        )
    };
    while !enough.load(Ordering::Relaxed) {
        let before = settled();
        let asked = agent.cli(&["network-policy", "list", "--sandboxes", "--json"]);
        let fences: Option<Value> = (asked.status == 0).then(|| serde_json::from_slice(&asked.stdout).unwrap());
        if let (Some(before), Some(fences), Some(after)) = (before, fences, settled()) {
            let fenced = evidence::ids_of(&fences);
            let killed = chaos.killed.lock().unwrap().clone();
            let held = |id: &&String| fenced.contains(*id) || killed.contains(*id);
            let open: Vec<_> = before.intersection(&after).filter(|id| !held(id)).collect();
            assert!(open.is_empty(), "not behind a fence: {open:?}\n{}", agent.log());
        }
    }
}
