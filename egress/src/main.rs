//! creto-egress: the daemon that holds sandboxes' packets to their policies. `creto-egress worker` is its half without
//! privileges, which it starts by itself.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Holds what sandboxes connect to to their policies
#[derive(Debug, Parser)]
#[command(name = "creto-egress", version, about)]
struct Args {
    /// Where the node's things lie, instead of /run/creto, /var/lib/creto and /etc/creto
    #[arg(long, value_name = "DIR", env = "CRETO_ROOT", hide_env_values = true)]
    root: Option<std::path::PathBuf>,
    /// Log what it does, too
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read egress.toml and the policies, say what is wrong with them, and end
    Check,
    /// The half without privileges; started by the daemon
    #[command(hide = true)]
    Worker,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let level = if args.debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(std::io::stderr).init();
    let done: Result<(), Box<dyn std::error::Error>> = match args.verb {
        None => egress::daemon::run(args.root.as_deref(), args.debug).map_err(Into::into),
        Some(Verb::Check) => egress::daemon::check(args.root.as_deref()).map_err(Into::into),
        Some(Verb::Worker) => egress::worker::run().map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "creto-egress ends");
            ExitCode::FAILURE
        }
    }
}
