//! `creto-runtime-cli` about a node of the test's own.

use std::process::Command;

use serde_json::Value;

use super::process::{Finished, Running};
use super::{Node, parts};

impl Node {
    /// The client to its end, about this node.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Finished {
        let mut command = Command::new(parts::cli());
        command.args(args).env("CRETO_ROOT", self.path("creto"));
        Running::start(command).finish_without_input()
    }

    /// What the client says with `--json`; the test fails where the client does.
    #[track_caller]
    pub fn cli_json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.cli(&[args, &["--json"]].concat()).ok()).unwrap()
    }
}
