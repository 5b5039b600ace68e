//! Every sandbox works for somebody, or for nobody and says so: whom, is checked before it is made and shown inside it.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::harness::trust::{Agent, claims};
use crate::harness::{Node, Setup, wait_until};

/// What a workload reads of itself.
#[track_caller]
fn token_of(node: &Node, id: &str, options: &[&str]) -> Value {
    claims(node.run(id, options, &["cat", "/run/creto/identity.jwt"]).ok().trim())
}

fn agent_option(agent: &Agent) -> String {
    format!("creto.dev/agent={}", agent.id)
}

#[test]
fn a_sandbox_of_nobody_is_the_nodes_own() {
    let node = Node::start();
    let (one, two) = (token_of(&node, "one", &[]), token_of(&node, "two", &[]));
    let sub = one["sub"].as_str().unwrap();
    assert!(sub.starts_with("spiffe://creto.internal/node/") && sub.ends_with("/sandbox/one"), "{one}");
    assert_eq!(one.get("act"), None, "{one}");
    assert_ne!(one["cnf"], two["cnf"], "two sandboxes have one key");
    assert_ne!(one["jti"], two["jti"]);
    node.assert_nothing_left();
}

#[test]
fn a_sandbox_of_an_agent_says_so_and_by_whose_word() {
    let node = Node::start();
    let agent = Agent::register(&node, "a", 1);
    let claims = token_of(&node, "c", &["--annotation", &agent_option(&agent)]);
    assert_eq!(claims["sub"], format!("{}/sandbox/c", agent.id));
    assert_eq!(claims["act"]["sub"], agent.id);
    assert!(claims["exp"].as_u64() > claims["iat"].as_u64());
    wait_until("the record", || node.recorded("c").last().is_some_and(|last| last == "SandboxDeleted"));
    let heard = node.recorded("c");
    let expected = ["SandboxCreated", "AttestationIssued", "SandboxStarted", "SandboxExited", "SandboxDeleted"];
    assert_eq!(heard, expected);
    assert!(node.records().iter().all(|record| record["about"]["agent"] == agent.id));
}

#[test]
fn an_agents_token_counts_once_and_for_this_node_only() {
    let node =
        Node::with(Setup { settings: "[identity]\noperator = \"deny\"\nnode = \"n1\"\n".into(), ..Setup::default() });
    let agent = Agent::register(&node, "a", 1);
    let (file, agent_is) = (node.path("token"), agent_option(&agent));
    let with_token = format!("creto.dev/agent-token-file={}", file.display());
    let options = ["--annotation", &agent_is, "--annotation", &with_token];
    let run = |id: &str, token: &str| {
        fs::write(&file, token).unwrap();
        let said = node.run(id, &options, &["cat", "/run/creto/attestation.dsse.json"]);
        node.ctr(&["container", "rm", id]);
        said
    };
    let good = agent.token("creto:n1", "1");
    let envelope = run("first", &good).ok();
    let proven = node.verify(envelope.as_bytes(), &Default::default(), Default::default()).unwrap();
    let agent_said = serde_json::to_value(&proven.statement.predicate().agent).unwrap();
    assert_eq!((&agent_said["proof"], &agent_said["id"]), (&"token".into(), &agent.id.as_str().into()));
    let stranger = Agent::register(&node, "b", 2);
    for (id, token, expected) in [
        ("again", good.clone(), "jti was used before"),
        ("aud", agent.token("creto:n2", "2"), "aud"),
        ("key", stranger.token("creto:n1", "3"), "signature invalid"),
        ("none", format!("{}.", good.rsplit_once('.').unwrap().0), "signature"),
        ("text", "x".into(), "no compact JWS"),
    ] {
        let said = run(id, &token);
        assert!(said.status != 0 && said.stderr.contains(expected), "{id}: no {expected:?} in {said:?}");
        assert!(!said.stderr.contains(&token) || token == "x", "{id}: the token is in the answer");
        assert_eq!(node.recorded(id), ["IdentityRejected"], "{id}");
    }
    let said = node.run("bare", &["--annotation", &agent_is], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("identity.operator"), "{said:?}");
    node.ctr(&["container", "rm", "bare"]);
    node.assert_nothing_left();
}

#[test]
fn an_agent_that_is_unknown_or_revoked_gets_no_sandbox_from_that_moment_on() {
    let node = Node::start();
    let unknown = node.run("a", &["--annotation", "creto.dev/agent=spiffe://example.org/agents/x"], &["true"]);
    assert!(unknown.status != 0 && unknown.stderr.contains("not known"), "{unknown:?}");
    let agent = Agent::register(&node, "a", 1);
    let option = agent_option(&agent);
    assert_eq!(node.run("b", &["--annotation", &option], &["true"]).status, 0);
    agent.write(&node, "a", "revoked");
    let revoked = node.run("c", &["--annotation", &option], &["true"]);
    assert!(revoked.status != 0 && revoked.stderr.contains("revoked"), "{revoked:?}");
    for id in ["a", "c"] {
        node.ctr(&["container", "rm", id]);
    }
    node.assert_nothing_left();
}

#[test]
fn run_creto_is_there_and_read_only_in_any_image_and_for_any_user() {
    let node = Node::start();
    let list = "cd /run/creto && ls && for f in identity.jwt identity.key attestation.dsse.json jwks.json; do test -r $f || echo $f; done; \
                echo x > /run/creto/x || echo read-only";
    let expected = "attestation.dsse.json\nidentity.jwt\nidentity.key\njwks.json\nsecrets\nread-only\n";
    for (id, options) in [
        ("root", &[][..]),
        ("user", &["--user", "1000:1000"]),
        ("sealed", &["--read-only"]),
        ("tmpfs", &["--mount", "type=tmpfs,src=tmpfs,dst=/run,options=rw"]),
    ] {
        let said = node.run(id, options, &["sh", "-c", list]);
        assert_eq!(said.text(), expected, "{id}: {said:?}");
    }
    let root = node.path("rootfs");
    fs::create_dir(&root).unwrap();
    crate::harness::images::unpack(&root);
    // A root that nobody can write to, as containerd mounts a view of an image.
    let view = node.path("merged");
    bind(&root, &view, MsFlags::MS_RDONLY);
    node.note("view");
    let run = ["run", "--rm", "--rootfs", "--runtime", crate::harness::containerd::RUNTIME, "--env", "PATH=/bin"];
    let said = node.ctr(&[&run[..], &[view.to_str().unwrap(), "view", "/bin/sh", "-c", list]].concat());
    umount2(&view, MntFlags::empty()).unwrap();
    assert_eq!(said.text(), expected, "{said:?}");
    // An image whose /run is a link, as many are.
    fs::create_dir_all(root.join("var/run")).unwrap();
    std::os::unix::fs::symlink("/var/run", root.join("run")).unwrap();
    node.note("linked");
    let said = node.ctr(&[&run[..], &[root.to_str().unwrap(), "linked", "/bin/sh", "-c", list]].concat());
    assert_eq!(said.text(), expected, "{said:?}");
    node.assert_nothing_left();
}

#[test]
fn another_users_process_does_not_read_the_key() {
    let node = Node::start();
    node.run_detached("c", &["--user", "1000:1000"], &["sleep", "1000"]);
    let as_user = node.exec("c", "e1", &["cat", "/run/creto/identity.key"]).ok();
    assert!(as_user.starts_with("-----BEGIN PRIVATE KEY-----"), "{as_user:.40}");
    let other = ["task", "exec", "--exec-id", "e2", "--user", "2000:2000", "c", "cat", "/run/creto/identity.key"];
    let said = node.ctr(&other);
    assert!(said.status != 0 && said.text().is_empty(), "{said:?}");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn the_containers_of_a_pod_share_its_identity_and_its_statement() {
    let node = Node::start();
    let agent = Agent::register(&node, "a", 1);
    let option = agent_option(&agent);
    let with =
        |kind| ["--annotation", kind, "--annotation", "io.kubernetes.cri.sandbox-id=pod", "--annotation", &option];
    let pod = with("io.kubernetes.cri.container-type=sandbox");
    node.run_detached("pod", &pod, &["sleep", "1000"]);
    let member = [&with("io.kubernetes.cri.container-type=container")[..], &["--user", "1000:1000"]].concat();
    let read = "cat /run/creto/identity.jwt; echo; cat /run/creto/attestation.dsse.json";
    let of_the_member = node.run("one", &member, &["sh", "-c", read]).ok();
    assert_eq!(of_the_member, node.exec("pod", "e", &["sh", "-c", read]).ok());
    assert_eq!(claims(of_the_member.lines().next().unwrap())["sub"], format!("{}/sandbox/pod", agent.id));
    let other = Agent::register(&node, "b", 2);
    let other = format!("creto.dev/agent={}", other.id);
    let refused = [&member[..], &["--annotation", &other]].concat();
    let said = node.run("two", &refused, &["true"]);
    assert!(said.status != 0 && said.stderr.contains("creto.dev/agent"), "{said:?}");
    node.ctr(&["container", "rm", "two"]);
    node.remove("pod");
    node.assert_nothing_left();
}

fn bind(from: &Path, to: &Path, flags: MsFlags) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    mount(None::<&str>, to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
}
