//! What claims, pods and many sandboxes that wait cost, and what reading the API does: a private node (containerd, creto-egress, creto-pool-agent, as the
//! tests have it), asked over the agent's socket. `scripts/bench claim`, `pod`, `scale` and `api` run this; docs/benchmarks.md has the method.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]

#[allow(dead_code, reason = "what the tests need more of it")]
#[path = "../harness/mod.rs"]
mod harness;

mod api;
mod claim;
mod etcd;
mod figures;
mod node;
mod peer;
mod pod;
mod processes;
mod scale;

use std::process::ExitCode;

const USAGE: &str = "usage: scripts/bench claim [--n N] [--store sqlite|etcd] | pod [--n N] | scale [--members N] [--free-mib MIB] | api [--spawns N]";

/// The number behind a flag, or what holds without it.
fn number(args: &[String], flag: &str, default: usize) -> Result<usize, String> {
    match args.iter().position(|arg| arg == flag) {
        None => Ok(default),
        Some(at) => {
            let value = args.get(at + 1).and_then(|value| value.parse().ok());
            value.filter(|value| *value > 0).ok_or_else(|| format!("{flag} takes a number; {USAGE}"))
        }
    }
}

fn run(args: &[String]) -> Result<(), String> {
    let known = |flags: &[&str]| match args[1..].chunks(2).find(|pair| !flags.contains(&&*pair[0])) {
        Some(pair) => Err(format!("unknown flag {:?}; {USAGE}", pair[0])),
        None => Ok(()),
    };
    match args.first().map(String::as_str) {
        Some("claim") => {
            known(&["--n", "--store"])?;
            let store = args.iter().position(|arg| arg == "--store").and_then(|at| args.get(at + 1));
            let stores = match store.map(String::as_str) {
                None => vec!["sqlite", "etcd"],
                Some(one @ ("sqlite" | "etcd")) => vec![one],
                Some(_) => return Err(USAGE.to_owned()),
            };
            claim::run(number(args, "--n", 100)?, &stores);
        }
        Some("pod") => {
            known(&["--n"])?;
            pod::run(number(args, "--n", 30)?);
        }
        Some("scale") => {
            known(&["--members", "--free-mib"])?;
            scale::run(number(args, "--members", 1000)?, number(args, "--free-mib", 2048)?);
        }
        Some("api") => {
            known(&["--spawns"])?;
            api::run(number(args, "--spawns", 50)?);
        }
        _ => return Err(USAGE.to_owned()),
    }
    Ok(())
}

fn main() -> ExitCode {
    // cargo adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(usage) => {
            eprintln!("error: {usage}");
            ExitCode::from(2)
        }
    }
}
