//! An imitation of `containerd-shim-kata-v2` for the tests of the delegate backend: Kata needs a machine that can boot
//! virtual machines. It has the real shim's habits, bad ones included, as observed with version 4.1.0; a comment "§n"
//! names the section of the project's notes on it (KATA.md) that a habit stands in. What it runs is real: a "VM" is a
//! pid namespace whose first process stands for the hypervisor, a workload is a process in it, in its own root.
//!
//! Not here: the network (§6), cgroups and netns of §5, metrics over HTTP.
//!
//! Reading order: `start` and `delete` (the actions), `service` and `lifecycle` (the RPCs), `sandbox` (what they act on), then what
//! that is made of. `inside` is what the re-executed binary does within the "VM".

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's answers to its caller")]

mod config;
mod delete;
mod events;
mod guest;
mod inside;
mod leftovers;
mod lifecycle;
mod sandbox;
mod service;
mod start;
mod stdio;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use sha2::{Digest, Sha256};

const NAME: &str = "io.containerd.kata.v2";
const VERSION: &str = "4.1.0";

type Failure = Box<dyn std::error::Error>;

/// The flags of a call by containerd, or by whoever stands in its place. The bundle is the working directory.
#[derive(Clone, Default)]
struct Call {
    namespace: String,
    id: String,
    address: String,
}

impl Call {
    /// Understands what containerd's shim library does, and gives the action, which is empty for the daemon.
    fn parse(words: &[String]) -> Result<(Self, String), Failure> {
        let (mut call, mut action) = (Self::default(), String::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.trim_start_matches('-') {
                "debug" => {}
                flag @ ("namespace" | "id" | "address" | "bundle" | "publish-binary" | "socket") => {
                    let value = words.next().ok_or_else(|| format!("flag needs an argument: -{flag}"))?.clone();
                    match flag {
                        "namespace" => call.namespace = value,
                        "id" => call.id = value,
                        "address" => call.address = value,
                        _ => {}
                    }
                }
                flag if word.starts_with('-') => return Err(format!("flag provided but not defined: -{flag}").into()),
                word => action = word.to_owned(),
            }
        }
        if call.id.is_empty() || call.namespace.is_empty() {
            return Err("shim namespace and id cannot be empty".into());
        }
        Ok((call, action))
    }

    /// Where the sandbox's daemon listens: containerd's rule, which knows no shim by name.
    fn socket(&self, sandbox: &str) -> PathBuf {
        let name = PathBuf::from(&self.address).join(&self.namespace).join(sandbox);
        let digest = Sha256::digest(name.to_string_lossy().as_bytes());
        PathBuf::from("/run/containerd/s").join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), Failure> {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // §1
        ["--version"] => {
            println!("Kata Containers containerd shim (Golang): id: \"{NAME}\", version: {VERSION}, commit: imitation");
            Ok(())
        }
        // §1: containerd's library, not Kata
        ["-v"] => {
            println!("containerd-shim-kata-v2:\n  Version:  1.7.33+unknown\n  Revision: ");
            Ok(())
        }
        ["-info"] => info(),
        ["vmm" | "virtiofsd", _] => inside::idle(),
        ["container", spec] => inside::container(spec),
        ["process", spec] => inside::process(spec),
        _ => {
            let (call, action) = Call::parse(words)?;
            match action.as_str() {
                "start" => start::run(&call),
                "delete" => delete::run(&call),
                "" => start::serve(call),
                other => Err(format!("unknown action {other}").into()),
            }
        }
    }
}

/// §1: name and version, no features, no options.
fn info() -> Result<(), Failure> {
    let version = RuntimeVersion { version: VERSION.into(), ..Default::default() };
    let info = RuntimeInfo { name: NAME.into(), version: MessageField::some(version), ..Default::default() };
    Ok(info.write_to_writer(&mut std::io::stdout())?)
}

/// Lets time pass where the real shim takes it.
fn linger(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "its thread serves nobody else")]
    std::thread::sleep(time);
}
