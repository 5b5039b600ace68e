//! What is found afterwards: in the sandboxes' output, on the wire, in the ledger, at the daemons, and on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::callers::{ALLOWED, Callers, FORBIDDEN, secret};
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::claims;
use crate::harness::{leaks, poll, wait_until};

/// What a sandbox has said of itself, as far as it came.
#[derive(Debug, Default)]
struct Said {
    claims: Vec<usize>,
    generation: Option<usize>,
    agent: Option<String>,
    secret: Option<String>,
    all: bool,
}

impl Said {
    fn read(text: &str) -> Self {
        let mut said = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("claim", number)) => said.claims.extend(number.parse::<usize>()),
                Some(("generation", number)) => said.generation = number.parse().ok(),
                _ if line.starts_with("ey") && line.matches('.').count() == 2 => {
                    said.agent = claims(line)["act"]["sub"].as_str().map(str::to_owned);
                }
                _ if line.starts_with("correct-horse") => said.secret = Some(line.to_owned()),
                _ => {}
            }
        }
        said.all = text.ends_with("end\n");
        said
    }
}

/// No sandbox has run for two claims, none was another's than its claim's in identity, secret or policy, and none is of a template that
/// had been replaced when its claim was asked. Also those whose caller was never answered.
pub fn each_was_one_claims(callers: &Callers, agent: &PoolAgent) {
    let network = agent.network;
    let (asked, got) = (callers.asked.lock().unwrap().clone(), callers.got.lock().unwrap().clone());
    let mut runs: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(network.node.path("creto/lib/logs")).unwrap() {
        let path = entry.unwrap().path();
        let id = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let said = Said::read(&fs::read_to_string(&path).unwrap());
        let Some(number) = said.claims.first() else { continue };
        assert_eq!(said.claims.len(), 1, "{id} was handed out more than once: {said:?}");
        let (wish, oldest) = &asked[number];
        assert_eq!(wish.bad, None, "{id}: {wish:?}");
        assert!(said.generation.is_none_or(|generation| generation >= *oldest), "{id} is stale: {said:?}, {oldest}");
        let whose = callers.agent(wish.caller).to_owned();
        assert!(said.agent.as_ref().is_none_or(|agent| *agent == whose), "{id} is another's: {said:?} for {wish:?}");
        assert!(said.secret.is_none_or(|told| told == secret(wish.caller)), "{id} knows another's secret: {wish:?}");
        if said.all {
            let reached = !network.wire.saw(|p| p.to.to_string() == ALLOWED && p.port == wish.port()).is_empty();
            assert!(reached, "{id} has not its own policy: {wish:?}");
        }
        if let Some(got) = got.get(&id) {
            assert_eq!(got.wish.number, *number, "{id} was handed to one claim, and runs for another");
        }
        runs.entry(*number).or_default().push(id);
    }
    for (number, ids) in &runs {
        // Under a key a claim whose sandbox was killed may be asked again; without, it is made once.
        assert!(asked[number].0.key || ids.len() == 1, "claim {number} has run in {ids:?}");
    }
    let out = network.wire.saw(|p| p.to.to_string() == FORBIDDEN.0 && p.port == FORBIDDEN.1);
    assert!(out.is_empty(), "nobody may get there: {out:?}");
    let own: BTreeSet<u16> = asked.values().map(|(wish, _)| wish.port()).collect();
    let others = network.wire.saw(|p| p.to.to_string() == ALLOWED && p.port >= 20_000 && !own.contains(&p.port));
    assert!(others.is_empty(), "{others:?}");
}

/// Each claim that was answered has its record, once, and nothing of the ledger is missing.
pub fn the_ledger_is_complete(callers: &Callers, agent: &PoolAgent) {
    let node = &agent.network.node;
    let report = node.cli_json(&["audit", "verify"]);
    assert_eq!((&report["intact"], &report["holes"]), (&true.into(), &Value::Array(Vec::new())), "{report}");
    let records = node.cli_json(&["audit", "search"]);
    let mut claimed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in records.as_array().unwrap().iter().filter(|record| record["event"]["type"] == "SandboxClaimed") {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        claimed.entry(text(&record["about"]["sandbox"])).or_default().push(text(&record["event"]["claim"]));
    }
    for (id, got) in callers.got.lock().unwrap().iter() {
        assert_eq!(claimed.get(id), Some(&vec![got.claim.clone()]), "{id}, {got:?}");
    }
    let twice: Vec<_> = claimed.iter().filter(|(_, claims)| claims.len() > 1).collect();
    assert!(twice.is_empty(), "claimed more than once: {twice:?}");
}

/// The agent, containerd and creto-egress know of the same sandboxes, and each is behind a fence. What a caller was given and nobody has ended
/// is among them.
pub fn all_agree(callers: &Callers, agent: &PoolAgent, killed: &BTreeSet<String>) {
    let node = &agent.network.node;
    let mut last = Vec::new();
    let agreed = poll(|| {
        let (_, answer) = node.ask("GET", "/v1/sandboxes", &Value::Null).ok()?;
        let records = answer["sandboxes"].as_array().unwrap();
        let known = records.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        let containers = node.ctr(&["container", "ls", "-q"]).ok().lines().map(str::to_owned).collect();
        let tasks: BTreeSet<String> = node.ctr(&["task", "ls", "-q"]).ok().lines().map(str::to_owned).collect();
        let fences = ids_of(&node.cli_json(&["network-policy", "list", "--sandboxes"]));
        let settled = records.iter().all(|one| matches!(one["phase"].as_str(), Some("Ready" | "Running")));
        last = vec![known, containers, tasks, fences];
        (settled && last.iter().all(|ids| *ids == last[0])).then_some(())
    });
    assert!(agreed.is_some(), "records, containers, tasks and fences are not the same: {last:#?}\n{}", agent.log());
    for (id, got) in callers.got.lock().unwrap().iter().filter(|(id, got)| !got.over && !killed.contains(*id)) {
        let stays = got.wish.then == super::plan::Then::Stays;
        assert!(!stays || last[0].contains(id), "{id} is lost: {got:?}\n{}", agent.log());
        if stays {
            let described = node.direct(id).describe();
            assert_eq!(described.agent, callers.agent(got.wish.caller), "{id}");
            assert_eq!(described.claim_id, got.claim, "{id}");
            assert!(described.bound.is_some_and(|bound| bound.ruleset.starts_with("sha256:")), "{id} has no fence");
        }
    }
}

/// The sandboxes in a list of creto-egress'.
pub fn ids_of(fences: &Value) -> BTreeSet<String> {
    fences
        .as_array()
        .unwrap()
        .iter()
        .map(|fence| fence["fence"]["sandbox"]["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Everything that was made is taken away again, and nothing is left of it anywhere.
pub fn nothing_is_left(agent: &PoolAgent) {
    let (node, host) = (&agent.network.node, &agent.network.host);
    for dir in ["creto/lib/logs", "creto/lib/attestations"] {
        let below = entries(&node.path(dir)).into_iter().flat_map(|path| [entries(&path), vec![path]].concat());
        below.for_each(|path| node.note(path.file_stem().unwrap().to_str().unwrap()));
    }
    agent.clear();
    for what in [["container", "ls", "-q"], ["task", "ls", "-q"]] {
        assert_eq!(node.ctr(&what).ok(), "", "{what:?}");
    }
    // A lease of an agent that was killed is containerd's to end, within the hour.
    let leases = node.ctr(&["leases", "ls"]).ok();
    assert!(leases.lines().skip(1).all(|lease| lease.contains("containerd.io/gc.expire=")), "{leases}");
    let snapshots = node.ctr(&["snapshot", "--snapshotter", node.snapshotter(), "ls"]).ok();
    let of_ours = |line: &&str| !line.contains("sha256:") && !line.starts_with("KEY");
    assert_eq!(snapshots.lines().filter(of_ours).collect::<Vec<_>>(), Vec::<&str>::new());
    for dir in ["creto/run/networks", "creto/run/netns", "creto/run/sandboxes"] {
        assert_eq!(entries(&node.path(dir)), Vec::<PathBuf>::new(), "{dir}");
    }
    let leases = entries(&node.path("ipam/creto"))
        .into_iter()
        .filter(|path| path.file_name().unwrap().as_encoded_bytes().starts_with(b"10."));
    assert_eq!(leases.collect::<Vec<_>>(), Vec::<PathBuf>::new());
    let fences = agent.network.node.cli_json(&["network-policy", "list", "--sandboxes"]);
    assert_eq!(fences.as_array().map(Vec::len), Some(0), "{fences}");
    let said = |words: &[&str]| {
        let done = host.command(words[0]).args(&words[1..]).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let links = said(&["ip", "-o", "link", "show", "type", "veth"]);
    assert!(links.lines().all(|link| link.contains("uplink")), "{links}");
    let rules = said(&["nft", "list", "ruleset"]);
    let number = |line: &str| line.trim().strip_prefix("chain s").and_then(|rest| rest.chars().next());
    let of_a_sandbox = |line: &&str| number(line).is_some_and(|c| c.is_ascii_digit()); // `chain s7-policy`
    let fences: Vec<_> = rules.lines().filter(of_a_sandbox).collect();
    assert!(fences.is_empty(), "left in the kernel: {fences:?}");
    assert!(leaks::of(node).is_empty());
}

/// Output is kept as long as the settings say, and not for ever.
pub fn output_goes(agent: &PoolAgent) {
    let node = &agent.network.node;
    let path = node.path("creto/etc/pool-agent.toml");
    let text = fs::read_to_string(&path).unwrap().replace("keep_logs = \"1h\"", "keep_logs = \"0s\"");
    fs::write(&path, text).unwrap();
    agent.restart();
    wait_until("output of what is gone is gone", || entries(&node.path("creto/lib/logs")).is_empty());
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}
