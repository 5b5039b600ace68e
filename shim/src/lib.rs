//! The shim, a pod's one process. `start`, `delete` and `-info` answer and leave; without an action it serves one pod until
//! it is empty. A library so that `fuzz/` reaches its parsers; to everybody else it has [`main`] alone.

#[cfg(test)]
mod arbitrary;
mod args;
mod attest;
mod backend;
mod bootstrap;
mod bound;
mod bundle;
mod cgroup;
mod checkpoint;
mod confine;
mod create;
mod delete;
mod errand;
mod error;
mod events;
mod exec;
mod fence;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod harden;
mod hooks;
mod idmap;
mod image;
mod info;
mod interfaces;
mod log;
mod mounts;
mod nhi;
mod options;
mod paths;
mod ports;
mod processes;
mod program;
mod program_digest;
mod reaper;
mod rebind;
mod request;
mod run_dir;
mod secrets;
mod serve;
mod service;
mod settings;
mod start;
mod statements;
mod stdio;
#[allow(unsafe_code, reason = "prctl, fd passing and ioctl; each block has its SAFETY line")]
mod sys;
mod task;
mod tasks;

use std::process::ExitCode;

/// The whole process, from its command line to its exit code.
pub fn main() -> ExitCode {
    let done: Result<(), Box<dyn std::error::Error>> = match args::Args::parse(std::env::args_os().skip(1)) {
        Ok(args::Args::Version) => {
            version();
            Ok(())
        }
        Ok(args::Args::Start(call)) => start::run(&call).map_err(Into::into),
        Ok(args::Args::Serve(call)) => serve::run(&call),
        Ok(args::Args::Delete(call)) => delete::run(&call),
        Ok(args::Args::Image) => image::run(),
        Ok(args::Args::Agent) => nhi::run(),
        Ok(args::Args::Info) => info::run(),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "`-v` is for people")]
fn version() {
    println!("containerd-shim-creto-v2 {}", env!("CARGO_PKG_VERSION"));
}

/// The whole chain of causes on one line: containerd shows it to the user as it is.
#[expect(clippy::print_stderr, reason = "the only line a failing call prints")]
fn report(error: &dyn std::error::Error) {
    eprintln!("containerd-shim-creto-v2: {}", trust::chain::chain(error));
}
