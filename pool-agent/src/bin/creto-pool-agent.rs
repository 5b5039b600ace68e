//! creto-pool-agent: the node's agent. Settings: /etc/creto/pool-agent.toml; log: stderr; unit: configs/systemd/creto-runtime.service.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use creto_runtime::daemon;
use trust::chain::chain;

/// The agent of a node: keeps sandboxes warm, hands them over, and answers for them.
#[derive(Debug, Parser)]
#[command(name = "creto-pool-agent", version)]
struct Args {
    /// Where the node's things lie: DIR/{lib,etc,run} instead of /var/lib/creto, /etc/creto and /run/creto
    #[arg(long, value_name = "DIR", env = "CRETO_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,
    /// Log what is done in detail
    #[arg(long)]
    debug: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let level = if args.debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    match daemon::run(args.root.as_deref(), level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "Error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
