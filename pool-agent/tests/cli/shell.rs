//! Completions and man pages are those of the commands there are.

use std::fs;
use std::process::{Command, Stdio};

use crate::node::Node;

#[test]
fn every_shells_completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Node::new().run(&["completions", shell]).good();
        for word in ["attestation", "agent-nhi", "EgressDenied"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_reads_its_script() {
    let script = Node::new().run(&["completions", "bash"]).good();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), script).unwrap();
    assert!(Command::new("bash").arg("-n").arg(file.path()).status().unwrap().success());
}

#[test]
fn every_command_has_its_man_page() {
    let node = Node::new();
    let dir = node.path("man/man1");
    node.run(&["man", dir.to_str().unwrap()]).good();
    for (page, word) in [
        ("creto-runtime-cli.1", "attestation"),
        ("creto-runtime-cli-attestation-verify.1", "trust"),
        ("creto-runtime-cli-audit-search.1", "EgressDenied"),
        ("creto-runtime-cli-agent-add.1", "SPIFFE"),
    ] {
        let text = fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.starts_with(".ie") || text.contains(".TH"), "{page}: {text}");
        assert!(text.contains(word), "{page}: {text}");
    }
}

#[test]
fn the_root_is_an_option_or_the_shims_variable() {
    let node = Node::new();
    node.keyring();
    let run = |variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_creto-runtime-cli"));
        command.args(["keys", "list"]).stderr(Stdio::null()).env_remove("CRETO_ROOT");
        variable.map(|root| command.env("CRETO_ROOT", root));
        command.output().unwrap().status.success()
    };
    assert!(run(node.path("").to_str()));
    assert!(!run(node.path("elsewhere").to_str()));
}

#[test]
fn who_stops_reading_hears_no_complaint() {
    let node = Node::new();
    let mut child = node.command(&["completions", "bash"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take()); // before or while it writes: both end alike
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
