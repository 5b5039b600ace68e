//! Members that run before they are claimed: ready when their probe is met, and claimed warm with what they serve.

use std::fs;

use serde_json::json;

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::trust::{Agent, claims};
use crate::harness::wait_until;
use crate::leak_table::{POLICY, backend};

/// A server that takes its time, and says which process it is.
const SERVER: &str = "sleep 1; mkdir /tmp/www; echo served by $$ > /tmp/www/index.html; touch /tmp/up; exec httpd -f -p 8080 -h /tmp/www";

/// A pool of one member that runs `command` and is asked `readiness`, by its file.
fn create(agent: &PoolAgent, name: &str, command: &str, readiness: &str) {
    let path = agent.network.node.path(&format!("{name}.toml"));
    let text = format!(
        "image = {BUSYBOX:?}\nmode = \"run\"\nmin_ready = 1\nmax_ready = 1\ncommand = [\"sh\", \"-c\", {command:?}]\n\
         [readiness]\ninterval = \"100ms\"\n{readiness}\n"
    );
    fs::write(&path, text).unwrap();
    agent.cli(&["pool", "create", "-f", path.to_str().unwrap()]).ok();
}

#[test]
fn a_server_that_runs_is_ready_when_its_probe_is_met_and_is_claimed_as_it_runs() {
    let network = Network::with(backend("gvisor"), &[("web", POLICY)], "");
    let agent = PoolAgent::start(&network, "");
    let owner = Agent::register(&network.node, "a", 1);
    for (pool, readiness) in
        [("port", "tcp = 8080"), ("path", "file = \"/tmp/up\""), ("program", "exec = [\"test\", \"-e\", \"/tmp/up\"]")]
    {
        create(&agent, pool, SERVER, readiness);
        agent.wait_ready(pool, 1);
        let words = ["claim", pool, "--on-empty", "fail", "--agent", &owner.id, "--policy", "web"];
        let claimed = agent.json(&words);
        let id = claimed["sandbox"]["id"].as_str().unwrap();
        assert_eq!((&claimed["warm"], &claimed["sandbox"]["phase"]), (&json!(true), &json!("Running")), "{claimed}");
        // What ran before the claim runs on, and has its caller's identity beside it now.
        let served = ["exec", id, "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"];
        wait_until("it serves", || agent.cli(&served).text().starts_with("served by 1\n"));
        let token = claims(agent.cli(&["exec", id, "--", "cat", "/run/creto/identity.jwt"]).ok().trim());
        assert_eq!(token["act"]["sub"], owner.id, "{token}");
        agent.cli(&["terminate", id, "--force"]).ok();
        agent.cli(&["pool", "delete", pool]).ok();
    }
    agent.clear();
}

#[test]
fn a_member_that_is_not_ready_in_time_or_ends_is_given_up_and_says_why() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    for (pool, command, readiness, said) in [
        (
            "never",
            "echo starting; sleep 1000",
            "exec = [\"sh\", \"-c\", \"echo not yet; exit 3\"]",
            &["status 3", "not yet", "starting"][..],
        ),
        ("closed", "sleep 1000", "tcp = 8080", &["tcp 8080", "127.0.0.1 port 8080", "refused"]),
        ("slow", "sleep 1000", "exec = [\"sleep\", \"100\"]\ntimeout = \"200ms\"", &["no answer within"]),
        ("ends", "echo no such file; exit 4", "file = \"/tmp/up\"", &["ended with 4", "no such file"]),
    ] {
        create(&agent, pool, command, &format!("deadline = \"2s\"\n{readiness}"));
        wait_until("the failure is kept", || {
            agent.json(&["pool", "logs", pool, "--phase", "Warming"]).as_array().is_some_and(|all| !all.is_empty())
        });
        let failure = agent.json(&["pool", "logs", pool, "--phase", "Warming"])[0].clone();
        assert_eq!(failure["code"], "not-ready", "{failure}");
        for part in said {
            assert!(failure["message"].as_str().unwrap().contains(part), "{pool}: {part:?} in {failure}");
        }
        assert_eq!(agent.json(&["pool", "stats", pool])["ready"], 0);
        agent.cli(&["pool", "delete", pool]).ok();
    }
    // In a member's place one is made for the claim alone, and is not ready either.
    create(&agent, "cold", "sleep 1000", "deadline = \"1s\"\nfile = \"/tmp/up\"");
    let claim = agent.cli(&["claim", "cold", "--on-empty", "cold"]);
    assert!(claim.status == 1 && claim.stderr.contains("SpawnError::NotReady"), "{}", claim.stderr);
    agent.clear();
}
