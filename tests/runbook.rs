//! docs/operations.md is true: each of its blocks of commands is typed into a shell on a real node, and prints what the document says.
//! And whatever line of creto-runtime-cli stands in the operator's own runbook is taken as it is spelled there.

use std::collections::BTreeSet;
use std::fs;

use crate::harness::network::Network;
use crate::harness::operator::Operator;
use crate::harness::trust::Agent;
use crate::harness::{markdown, wait_until};
use crate::leak_table::backend;

const DOCUMENT: &str = include_str!("../docs/operations.md");
/// The pool of the document, as its file would be in pools.d.
const POOL: &str = "creto-runtime-cli pool create agent-executor-pool --image python:3.11 --min-ready 2 --max-ready 4 --wait -- sleep 1000";
/// Whom its sandboxes are claimed for.
const POLICY: &str = "[[rules]]\nid = \"model\"\ndestination = \"open.creto.net\"\nports = [443]\naction = \"Allow\"\n";

/// Brings the node to where a scenario of the document begins.
type Prepare = fn(&Operator);

/// All scenarios, in the document's order. Each is left as the next one needs it: with a node that runs, and the pool.
const SCENARIOS: &[(&str, Prepare)] = &[
    ("startup", |_| {}),
    ("shutdown", |operator| {
        pool(operator);
        operator.ok("creto-runtime-cli claim agent-executor-pool --json -- sleep 3");
    }),
    ("emergency", pool),
    ("pools", pool),
    ("recovery", |operator| {
        pool(operator);
        operator.ok("systemctl stop creto-egress; creto-runtime-cli pool evict agent-executor-pool --count 4");
        wait_until("a member could not be made", || {
            operator.ok("creto-runtime-cli pool logs agent-executor-pool --phase Warming --json | jq length").trim()
                != "0"
        });
    }),
    ("escape", claimed),
    ("exfiltration", |operator| {
        claimed(operator);
        visits(operator, "shut.creto.net");
    }),
    ("exhaustion", claimed),
    ("pool-exhaustion", |operator| {
        pool(operator);
        operator.ok("for claim in 1 2 3; do creto-runtime-cli claim agent-executor-pool; done");
    }),
    ("tuning", pool),
    ("monitoring", claimed),
    ("images", pool),
    ("claims", pool),
    ("refused", |operator| {
        claimed(operator);
        visits(operator, "shut.creto.net");
    }),
    ("attestations", claimed),
    ("unwell", |operator| {
        pool(operator);
        operator.ok("systemctl stop containerd");
    }),
];

fn node() -> Network {
    let egress = "metrics = \"127.0.0.1:9466\"\n[events]\nwindow = \"1s\"";
    Network::with(backend("gvisor"), &[], egress)
}

/// Everything runs, and the pool is there as it was at first; nothing else is.
fn pool(operator: &Operator) {
    operator.ok(&format!(
        "systemctl start etcd containerd creto-egress creto-runtime
        creto-runtime-cli enable --node
        creto-runtime-cli enable --runtime gvisor
        creto-runtime-cli pool delete agent-executor-pool || true
        creto-runtime-cli terminate --all --force
        {POOL}"
    ));
}

/// And a sandbox of the agent's runs, of its policy.
fn claimed(operator: &Operator) {
    pool(operator);
    let node = &operator.network.node;
    Agent::register(node, "research", 1); // one scenario revokes it, another changes its policy
    for (name, text) in [("default", ""), ("research", POLICY)] {
        fs::write(node.path("creto/etc/policies.d").join(format!("{name}.toml")), text).unwrap();
    }
    let agent = "spiffe://example.org/agents/research";
    operator.ok(&format!("creto-runtime-cli claim agent-executor-pool --agent {agent} --policy research"));
}

/// From the one that runs somebody connects to where it may not, and it is in the record.
fn visits(operator: &Operator, host: &str) {
    let code =
        format!("import socket\ntry: socket.create_connection(('{host}', 443), 5)\nexcept OSError as e: print(e)");
    operator.ok(&format!("creto-runtime-cli exec $(creto-runtime-cli list --status Running) -- python3 -c \"{code}\""));
    wait_until("the attempt is in the record", || {
        operator.ok(&format!("creto-runtime-cli audit search --event EgressDenied --destination {host}")).contains(host)
    });
}

#[test]
fn the_operations_manual_is_typed_in_as_it_is_written() {
    let blocks = markdown::blocks(DOCUMENT);
    let mut scenarios: Vec<&str> = blocks.iter().map(|block| &*block.scenario).collect();
    scenarios.dedup();
    let prepared: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
    assert_eq!(scenarios, prepared, "each block is of a scenario that is prepared here, and the other way round");
    let network = node();
    let operator = Operator::of(&network);
    operator.ok("systemctl start etcd");
    for (scenario, prepare) in SCENARIOS {
        prepare(&operator);
        operator.type_in(&blocks.iter().filter(|block| block.scenario == *scenario).collect::<Vec<_>>());
    }
    operator.leave();
}

/// The names of metrics in a text, without what a histogram or a counter adds to them.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("creto_runtime_") && !word.ends_with('_'));
    names.map(|name| ["_bucket", "_count", "_sum"].iter().fold(name, |name, end| base(name, end)).to_owned()).collect()
}

/// Of a histogram; `pool_ready_count` and its like are gauges that are called so.
fn base<'a>(name: &'a str, end: &str) -> &'a str {
    match name.strip_suffix(end) {
        Some(base) if base.ends_with("_seconds") => base,
        _ => name,
    }
}

#[test]
fn every_metric_that_the_operations_manual_names_is_exported() {
    let network = node();
    let operator = Operator::of(&network);
    operator.ok("systemctl start etcd");
    claimed(&operator);
    operator.ok("creto-runtime-cli spawn --image python:3.11 --wait -- true"); // over before it is looked at
    visits(&operator, "shut.creto.net");
    let exported = metrics(&operator.ok("curl -s http://localhost:8080/metrics http://localhost:9466/metrics"));
    let named = metrics(DOCUMENT);
    let missing: Vec<_> = named.difference(&exported).collect();
    assert!(!named.is_empty() && missing.is_empty(), "{missing:?} of {exported:?}");
    operator.leave();
}

/// The lines of the operator's runbook (issue 6), with what stands there in angle brackets as a variable. Those of a backend's upgrade are
/// taken too; `checkpoint` has an issue of its own.
const RUNBOOK: &[&str] = &[
    "creto-runtime-cli spawn --image python:3.11 --runtime gvisor",
    "creto-runtime-cli list --status Running | wc -l",
    "creto-runtime-cli list",
    "creto-runtime-cli spawn --image alpine --runtime gvisor",
    "creto-runtime-cli drain --runtime kata",
    "creto-runtime-cli enable --runtime kata",
    "creto-runtime-cli pool stats agent-executor-pool",
    "creto-runtime-cli pool get agent-executor-pool",
    "creto-runtime-cli pool logs agent-executor-pool --phase Warming",
    "creto-runtime-cli pool spawn agent-executor-pool",
    "creto-runtime-cli pool update agent-executor-pool --min-ready 5 --max-ready 10",
    "creto-runtime-cli pool evict agent-executor-pool --count 10",
    "creto-runtime-cli pool update agent-executor-pool --auto-scaling-headroom 2.0  # 2x claims/min",
    "creto-runtime-cli pool update agent-executor-pool --auto-scaling-enabled false",
    "creto-runtime-cli attestation get $SANDBOX > attestation.json",
    "creto-runtime-cli attestation get $SANDBOX --json | jq '.validUntil'",
    "creto-runtime-cli keys list",
    "creto-runtime-cli attestation verify attestation.json --key-version v1",
    "creto-runtime-cli get $SANDBOX --json > sandbox-config.json",
    "jq '.spec.networkPolicy' sandbox-config.json",
    "creto-runtime-cli get $SANDBOX --json | jq '.spec.resourceLimits'",
    "creto-runtime-cli audit search --event EgressDenied --destination $DOMAIN",
    "creto-runtime-cli network-policy add-rule --destination $DOMAIN --action Deny",
    "creto-runtime-cli audit search --agent-nhi $AGENT --event EgressAttempt",
    "creto-runtime-cli network-policy test --destination api.anthropic.com",
    "creto-runtime-cli network-policy add-rule --destination api.anthropic.com --action RequireAuthz",
    "creto-runtime-cli audit search --sandbox-id $SANDBOX --event EgressDenied",
    "creto-runtime-cli list --sort-by cpu_usage --descending",
    "creto-runtime-cli list --sort-by memory_usage --descending",
    "creto-runtime-cli list --cpu-usage '>80%' --limit 5",
    "creto-runtime-cli terminate $SANDBOX",
    "creto-runtime-cli terminate $(creto-runtime-cli claim agent-executor-pool) --force",
    "creto-runtime-cli spawn --image python@$DIGEST",
    "creto-runtime-cli pool update agent-executor-pool --max-ready 50",
    "creto-runtime-cli pool drain --all",
    // Twenty are asked for and, the pool drains, not made: what is tried here is the line.
    "creto-runtime-cli pool update agent-executor-pool --min-ready 20 --max-ready 50",
    "creto-runtime-cli terminate --all --force",
];

#[test]
fn every_line_of_the_operators_runbook_is_taken_as_it_is_spelled() {
    let network = node();
    let operator = Operator::of(&network);
    operator.ok("systemctl start etcd");
    claimed(&operator);
    let given = format!(
        "SANDBOX={} AGENT=spiffe://example.org/agents/research DOMAIN=shut.creto.net DIGEST={}\n",
        operator.ok("creto-runtime-cli list --status Running").trim(),
        operator.ok("ctr -n creto images ls name==docker.io/library/python:3.11 | awk 'NR == 2 {print $3}'").trim(),
    );
    operator.ok(&(given.clone() + "ctr -n creto images pull docker.io/library/python@$DIGEST"));
    for line in RUNBOOK {
        operator.ok(&(given.clone() + line));
    }
    // A canary's runsc, from where runtime.toml allows one; Kata is not there where the tests run, and says so.
    let kata = operator.run("creto-runtime-cli spawn --image alpine --runtime kata");
    assert!(kata.status == 1 && kata.stderr.contains("there is no containerd-shim-kata-v2"), "{}", kata.stderr);
    let canary = operator.run("cp $(readlink -f $(command -v runsc)) ./runsc; creto-runtime-cli spawn --image alpine --runtime gvisor --runsc-path ./runsc");
    assert!(canary.status == 1 && canary.stderr.contains("runsc_dirs"), "{}", canary.stderr);
    operator.leave();
}
