//! Secrets reach the workload that they are for, and nobody else.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::trust::Agent;
use crate::harness::{Node, Setup, wait_until};

const VALUE: &str = "correct-horse-battery";

fn with_secrets() -> Node {
    let node = Node::with(Setup::default());
    let (dir, provider) = (node.path("secrets"), node.path("provider"));
    fs::create_dir_all(dir.join("everyone")).unwrap();
    fs::write(dir.join("everyone/db"), VALUE).unwrap();
    fs::write(&provider, "#!/bin/sh\ntest \"$1\" = token || exit 1\nprintf from-the-provider\n").unwrap();
    fs::set_permissions(&provider, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!("[secrets]\ndir = {dir:?}\ncommand = [{provider:?}]\n");
    fs::write(node.path("creto/etc/runtime.toml"), settings).unwrap();
    node
}

#[test]
fn a_secret_is_a_file_for_its_workload_alone_and_gone_with_it() {
    let node = with_secrets();
    let options = ["--user", "1000:1000", "--annotation", "creto.dev/secrets=file:db,command:token"];
    let script = "cd /run/creto/secrets; cat db token; stat -c %a:%u db; sleep 1000";
    let output = node.run_detached("c", &options, &["sh", "-c", script]);
    wait_until("its secrets", || fs::read_to_string(&output).is_ok_and(|text| text.ends_with("\n")));
    assert_eq!(fs::read_to_string(&output).unwrap(), format!("{VALUE}from-the-provider400:1000\n"));
    fs::remove_file(&output).unwrap(); // the one place where it may be: the workload put it there
    let kept = files_with(&node, VALUE);
    assert_eq!(kept.len(), 2, "the operator's own and the workload's: {kept:?}");
    assert_eq!(node.recorded("c")[0], "SecretsDelivered");
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    node.wait_for_task("c", "STOPPED");
    assert_eq!(files_with(&node, VALUE), [node.path("secrets/everyone/db")], "before anybody deletes the task");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn an_agents_secret_is_not_for_another_agent() {
    let node = with_secrets();
    let (one, other) = (Agent::register(&node, "a", 1), Agent::register(&node, "b", 2));
    let own = node.path("secrets/agents").join(one.id.strip_prefix("spiffe://").unwrap());
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("key"), VALUE).unwrap();
    let run = |id: &str, agent: &Agent| {
        let agent = format!("creto.dev/agent={}", agent.id);
        let options = ["--annotation", &agent, "--annotation", "creto.dev/secrets=file:key"];
        node.run(id, &options, &["cat", "/run/creto/secrets/key"])
    };
    assert_eq!(run("one", &one).text(), VALUE);
    let refused = run("other", &other);
    assert!(refused.status != 0 && refused.stderr.contains("none of that name for agent"), "{refused:?}");
    node.ctr(&["container", "rm", "other"]);
    node.assert_nothing_left();
}

#[test]
fn a_secret_that_is_not_there_fails_the_create_and_names_it() {
    let node = with_secrets();
    for (reference, expected) in [
        ("file:absent", "absent"),
        ("command:other", "status 1"),
        ("file:../etc/passwd", "give file:NAME"),
        ("env:HOME", "give file:NAME"),
    ] {
        let option = format!("creto.dev/secrets={reference}");
        let said = node.run("c", &["--annotation", &option], &["true"]);
        assert!(said.status != 0 && said.stderr.contains(expected), "{reference}: {said:?}");
        node.ctr(&["container", "rm", "c"]);
    }
    let failed = node.recorded("c").into_iter().filter(|event| event == "SandboxCreateFailed").count();
    assert_eq!(failed, 2, "whoever tries out names is seen");
    node.assert_nothing_left();
}

/// The files of the node with this text in them, containerd's own content and images aside.
fn files_with(node: &Node, text: &str) -> Vec<std::path::PathBuf> {
    let mut dirs = vec![node.path("creto"), node.path("state"), node.path("secrets"), node.path("fifos")];
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !entry.path().ends_with("rootfs") {
                dirs.push(entry.path());
            } else if kind.is_file()
                && fs::read(entry.path()).is_ok_and(|b| b.windows(text.len()).any(|w| w == text.as_bytes()))
            {
                found.push(entry.path());
            }
        }
    }
    let log = node.log();
    assert!(!log.contains(text), "it is in containerd's log");
    found.sort();
    found
}
