//! A sandbox that waits belongs to nobody and reaches nothing; a claim makes it one agent's, once, and proves it.

use std::fs;

use creto_runtime::shim::ShimError;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use trust::refusal::Cause;
use trust::sandbox_api::{Claim, Phase, Policy, RebindRequest};

use crate::harness::network::Network;
use crate::harness::shim::{Direct, claim};
use crate::harness::trust::{Agent, claims};
use crate::harness::{Node, Setup};
use crate::leak_table::{POLICY, backend};

const SIGTERM: u32 = 15;
const SECRET: &str = "correct-horse-battery";

fn with_secret(node: &Node) {
    let dir = node.path("secrets/everyone");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("db"), SECRET).unwrap();
    let settings = format!("[secrets]\ndir = {:?}\n", node.path("secrets"));
    fs::write(node.path("creto/etc/runtime.toml"), settings).unwrap();
}

fn standing(shim: &Direct) -> (Claim, String) {
    let description = shim.describe();
    (description.claim(), description.claim_id)
}

fn predicates(node: &Node, id: &str) -> Vec<Value> {
    let read = |path: std::path::PathBuf| {
        let envelope: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let payload = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, envelope["payload"].as_str().unwrap());
        serde_json::from_slice::<Value>(&payload.unwrap()).unwrap()["predicate"].take()
    };
    node.statements(id).into_iter().map(read).collect()
}

#[test]
fn a_waiting_sandbox_becomes_one_agents_once_and_proves_it() {
    let node = Node::with(Setup::default());
    with_secret(&node);
    let (agent, revoked) = (Agent::register(&node, "a", 1), Agent::register(&node, "b", 2));
    revoked.write(&node, "b", "revoked");
    let shim = node.run_waiting("m", &[]);
    let waiting = shim.describe();
    assert_eq!((waiting.phase(), waiting.claim(), waiting.agent.as_str()), (Phase::Running, Claim::Waiting, ""));
    assert_eq!((waiting.id.as_str(), waiting.namespace.as_str()), ("m", node.namespace()));
    assert_eq!(Some(waiting.pid as i32), node.task("m").map(|(pid, _)| pid));
    let cold = waiting.bound.unwrap();
    let read = ["sh", "-c", "cd /run/creto; cat identity.jwt; echo; ls secrets; cat secrets/* identity.key"];
    let (_, before) = shim.exec(&read);
    assert!(claims(before.lines().next().unwrap()).get("act").is_none());

    let refused = shim.rebind(&claim("m", "c-0", &revoked)).unwrap_err();
    assert!(
        matches!(&refused, ShimError::Because { cause: Cause::IdentityRejected, message } if message.contains("is revoked")),
        "{refused}"
    );
    assert_eq!(standing(&shim), (Claim::Waiting, String::new()));
    let elsewhere = shim.rebind(&claim("other", "c-0", &agent)).unwrap_err();
    assert!(matches!(elsewhere, ShimError::NotFound(_)), "{elsewhere}");

    let request = RebindRequest { secrets: vec!["file:db".into()], ..claim("m", "c-1", &agent) };
    let bound = shim.rebind(&request).unwrap();
    let (status, inside) = shim.exec(&read);
    assert_eq!(status, 0, "{inside}");
    let lines: Vec<_> = inside.lines().collect();
    let token = claims(lines[0]);
    assert_eq!(token["sub"], json!(format!("{}/sandbox/m", agent.id)));
    assert_eq!((&token["sub"], &token["act"]["sub"]), (&json!(bound.workload), &json!(agent.id)));
    assert_eq!(lines[1], "db");
    assert!(lines[2].starts_with(SECRET), "{inside}");
    let key = |text: &str| text.lines().find(|line| line.starts_with("MC4")).map(str::to_owned);
    assert!(key(&inside).is_some() && key(&inside) != key(&before), "a key of its own");

    // By whoever verifies: all of the chain, and the last of it for what it is.
    let said = node.cli(&["attestation", "verify", "m"]);
    assert_eq!(said.status, 0, "{said:?}");
    let predicates = predicates(&node, "m");
    let last = predicates.last().unwrap();
    assert_eq!(last["previous"], json!(cold.statement_digest));
    assert_eq!(last["launch"], json!({"kind": "claimed", "pool": "agents", "claim": "c-1"}));
    assert_eq!(last["agent"], json!({"proof": "token", "id": agent.id}));
    assert_eq!(fs::read_to_string(node.statements("m").last().unwrap()).unwrap(), bound.statement);

    assert_eq!(shim.rebind(&request).unwrap(), bound, "the first answer may be lost");
    let second = shim.rebind(&claim("m", "c-2", &agent)).unwrap_err();
    assert!(matches!(&second, ShimError::Refused(why) if why.contains("claim c-1")), "{second}");
    assert_eq!(standing(&shim), (Claim::Taken, "c-1".to_owned()));
    assert_eq!(shim.describe().agent, agent.id);
    let recorded = node.recorded("m");
    for event in ["IdentityRejected", "SandboxClaimed", "SecretsDelivered"] {
        assert_eq!(recorded.iter().filter(|recorded| *recorded == event).count(), 1, "{event}: {recorded:?}");
    }

    assert_eq!(shim.end(SIGTERM), 0, "the holder ends when it is told to");
    node.wait_for_task("m", "STOPPED");
    node.remove("m");
    node.assert_nothing_left();
}

#[test]
fn what_was_not_made_to_wait_is_not_handed_over() {
    let node = Node::start();
    let agent = Agent::register(&node, "a", 1);
    node.run_detached("c", &[], &["sleep", "1000"]);
    let shim = node.direct("c");
    let refused = shim.rebind(&claim("c", "c-1", &agent)).unwrap_err();
    assert!(matches!(&refused, ShimError::Refused(why) if why.contains("creto.dev/claimable")), "{refused}");
    assert_eq!(standing(&shim), (Claim::Never, String::new()));
    node.remove("c");
    // And what waits has nothing of anybody's.
    let agent = format!("creto.dev/agent={}", agent.id);
    let said = node.run("d", &["--annotation", "creto.dev/claimable=true", "--annotation", &agent], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("comes with the claim"), "{said:?}");
    node.ctr(&["container", "rm", "d"]);
    node.assert_nothing_left();
}

#[test]
fn a_claim_that_fails_half_way_leaves_nobody_in_the_sandbox() {
    let node = Node::with(Setup::default());
    with_secret(&node);
    let agent = Agent::register(&node, "a", 1);
    let shim = node.run_waiting("m", &[]);
    // The token, which is put there last, has something in its way.
    let sandboxes = fs::read_dir(node.path("creto/run/sandboxes")).unwrap();
    let inside = sandboxes.map(|sandbox| sandbox.unwrap().path().join("creto/m")).find(|dir| dir.is_dir()).unwrap();
    fs::create_dir_all(inside.join(".identity.jwt/x")).unwrap();
    let request = RebindRequest { secrets: vec!["file:db".into()], ..claim("m", "c-1", &agent) };
    for _ in 0..2 {
        let spoilt = shim.rebind(&request).unwrap_err();
        assert!(matches!(&spoilt, ShimError::Spoilt(why) if why.contains("destroy it")), "{spoilt}");
    }
    assert!(matches!(shim.rebind(&claim("m", "c-2", &agent)), Err(ShimError::Refused(_))));
    assert_eq!(standing(&shim), (Claim::Spoilt, "c-1".to_owned()));
    fs::remove_dir_all(inside.join(".identity.jwt")).unwrap();
    let (_, left) = shim.exec(&["find", "/run/creto", "-type", "f"]);
    assert_eq!(left, "/run/creto/jwks.json\n");
    assert_eq!(node.statements("m").len(), 1, "nothing more is said of it");
    node.remove("m");
    node.assert_nothing_left();
}

#[test]
fn the_holder_buries_what_is_left_to_it() {
    let node = Node::start();
    let shim = node.run_waiting("m", &[]);
    // Its parent is gone before it ends, so it is left to the first process.
    let (_, left) = shim.exec(&["sh", "-c", "(sleep 0.1 & echo $!) ; true"]);
    let gone = format!("while [ -e /proc/{} ]; do sleep 0.05; done; echo buried", left.trim());
    assert_eq!(shim.exec(&["sh", "-c", &gone]), (0, "buried\n".to_owned()));
    assert_eq!(shim.end(SIGTERM), 0);
    node.wait_for_task("m", "STOPPED");
    node.remove("m");
}

#[test]
fn a_waiting_sandbox_reaches_nothing_and_a_claimed_one_what_its_policy_allows() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = Agent::register(&network.node, "a", 1);
    let reached = |id: &str| {
        let tries = [
            json!(["by_name", "open.creto.net", 443]),
            json!(["tcp", "93.184.215.18", 9000, "hello"]),
            json!(["tcp", "93.184.215.15", 443, "hello"]),
        ];
        let answers = network.probe(id, &tries);
        [0, 1, 2].map(|n| answers[n].get("ok").is_some())
    };
    let netns = network.join(10);
    let options = network.options(&netns, r#"{"rules":[]}"#);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let shim = network.node.run_waiting("m", &options);
    assert_eq!(reached("m"), [false; 3]);
    let cold = shim.describe().bound.unwrap();

    // No fence for it, no claim; what stood stands, and it is claimed when there is one again.
    network.stop_egress(Signal::SIGKILL);
    let request = RebindRequest { policy: Some(Policy::named("web")), ..claim("m", "c-1", &agent) };
    let down = shim.rebind(&request).unwrap_err();
    assert!(
        matches!(&down, ShimError::Because { cause: Cause::EgressUnavailable, message } if message.contains("systemctl start creto-egress")),
        "{down}"
    );
    assert_eq!((standing(&shim).0, reached("m")), (Claim::Waiting, [false; 3]));
    network.start_egress();
    let unknown = RebindRequest { policy: Some(Policy::named("nowhere")), ..request.clone() };
    assert!(matches!(
        shim.rebind(&unknown),
        Err(ShimError::Because { cause: Cause::PolicyInvalid, .. } | ShimError::Invalid(_))
    ));
    assert_eq!(reached("m"), [false; 3]);

    let bound = shim.rebind(&request).unwrap();
    assert_eq!(reached("m"), [true, true, false]);
    assert_ne!((&bound.ruleset, &bound.policy_digest), (&cold.ruleset, &cold.policy_digest));
    let last = predicates(&network.node, "m").pop().unwrap();
    assert_eq!(last["fence"], json!({"mechanism": "nftables", "digest": bound.ruleset}));
    assert_eq!((&last["previous"], &last["launch"]["claim"]), (&json!(cold.statement_digest), &json!("c-1")));
    let fences = network.node.cli_json(&["network-policy", "list", "--sandboxes"]);
    assert!(fences.to_string().contains(&agent.id), "creto-egress knows whose it is: {fences}");

    let closed = shim.update_policy(Policy::inline(r#"{"rules":[]}"#)).unwrap();
    assert_eq!(reached("m"), [false; 3]);
    assert_eq!(closed.policy_digest, cold.policy_digest);
    let last = predicates(&network.node, "m").pop().unwrap();
    assert_eq!((&last["previous"], &last["launch"]["claim"]), (&json!(bound.statement_digest), &json!("c-1")));
    assert_eq!(shim.describe().bound.unwrap(), closed);
    assert_eq!(network.node.cli(&["attestation", "verify", "m"]).status, 0);
    network.node.remove("m");
    network.node.assert_nothing_left();
}
