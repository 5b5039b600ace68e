//! The README's first command: from a clone to a container in a sandbox, and nothing left.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::parts;
use crate::harness::process::{Finished, Running};

fn quickstart(args: &[&str]) -> Finished {
    let _built = (parts::shim_dir(), parts::cli()); // it builds them too, but not within a test's patience
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/quickstart"));
    command.args(args);
    Running::start(command).finish_without_input()
}

#[test]
fn it_shows_the_sandbox_s_kernel_and_what_it_cost_and_leaves_nothing() {
    let said = quickstart(&[]);
    assert!(said.text().contains("Starting gVisor...") && said.text().contains("/proc/version: Linux"), "{said:?}");
    assert!(said.stderr.contains(" ms"), "{said:?}");
    assert!(said.text().contains("spiffe://example.org/agents/quickstart/sandbox/quickstart"), "who it is: {said:?}");
    let forged = r#"Error: VerificationResult::Invalid { reason: "Ed25519 signature invalid" }"#;
    assert!(said.stderr.contains(forged), "the flipped byte: {said:?}");
    assert!(
        said.text().contains("AttestationIssued") && said.text().contains("SandboxDeleted"),
        "the record: {said:?}"
    );
}

#[test]
fn a_node_that_is_kept_runs_until_it_is_stopped() {
    let said = quickstart(&["--keep"]).ok();
    let stop = said.lines().find_map(|line| line.trim().strip_prefix("scripts/quickstart --stop "));
    let dir = PathBuf::from(stop.unwrap_or_else(|| panic!("{said:?}")));
    assert!(dir.join("c.sock").exists());
    quickstart(&["--stop", dir.to_str().unwrap()]).ok();
    assert!(!dir.exists());
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_with_the_fix_and_leaves_nothing() {
    let said = quickstart(&["localhost:1/no/such:image"]);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("localhost:1/no/such:image") && said.stderr.contains("fix: "), "{said:?}");
}
