//! creto-runtime-cli, by noun and verb. Answers go to stdout: tables for people, `--json` for programs. What went wrong goes
//! to stderr as `Error: …` with its causes; the exit code is then 1, or 2 where the command itself makes no sense.
//!
//! One file per noun; each has its verbs' arguments, the verbs, and one error enum. `output` prints. docs/cli.md shows the
//! shapes of the answers.

pub mod agent;
pub mod attestation;
pub mod audit;
pub mod keys;
pub mod network_policy;

pub mod output;
pub mod shell;

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::node::Root;

/// What people ask of a node: its attestations, its audit record, its keys, its agents, its network policies.
#[derive(Debug, Parser)]
#[command(name = "creto-runtime-cli", version)]
pub struct Cli {
    /// Where the node's things lie: DIR/{lib,etc,run} instead of /var/lib/creto, /etc/creto and /run/creto
    #[arg(long, global = true, value_name = "DIR", env = "CRETO_ROOT", hide_env_values = true, display_order = 900)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// The signed statements about sandboxes
    #[command(subcommand)]
    Attestation(attestation::Verb),
    /// The record of what happened
    #[command(subcommand)]
    Audit(audit::Verb),
    /// The node's signing keys
    #[command(subcommand)]
    Keys(keys::Verb),
    /// The agents that may have sandboxes on this node
    #[command(subcommand)]
    Agent(agent::Verb),
    /// What sandboxes may connect to
    #[command(subcommand)]
    NetworkPolicy(network_policy::Verb),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: shell::Shell,
    },
    /// Write man pages, one for each command
    Man {
        /// The directory to write them into; it is made if it is not there
        dir: PathBuf,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "one per noun")]
pub enum CliError {
    #[error(transparent)]
    Attestation(#[from] attestation::AttestationError),
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    #[error(transparent)]
    NetworkPolicy(#[from] network_policy::PolicyError),
    #[error("writing the man pages to {}", dir.display())]
    Man {
        dir: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // Warnings of the library: a file that is not taken, an event that could not be recorded.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_target(false)
        .init();
    let cli = Cli::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(cli, &mut out).and_then(|()| Ok(out.flush()?));
    drop(out); // what was answered before it failed comes first
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !is_closed_pipe(&error) {
                let text: Vec<_> = chain(&error).lines().map(output::plain).collect();
                let _ = writeln!(io::stderr(), "Error: {}", text.join("\n"));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<(), CliError> {
    let root = Root::new(cli.root.as_deref());
    match cli.noun {
        Noun::Attestation(verb) => attestation::run(verb, &root, out)?,
        Noun::Audit(verb) => audit::run(verb, &root, out)?,
        Noun::Keys(verb) => keys::run(verb, &root, out)?,
        Noun::Agent(verb) => agent::run(verb, &root, out)?,
        Noun::NetworkPolicy(verb) => network_policy::run(verb, &root, out)?,
        Noun::Completions { shell } => out.write_all(&shell::completions(shell))?,
        Noun::Man { dir } => shell::man(&dir).map_err(|why| CliError::Man { dir, why })?,
    }
    Ok(())
}

/// An error with its causes; one that its effect has repeated already is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// Whether whoever read the answer has gone, as `head` does: nothing to complain of.
fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_commands_contradict_neither_each_other_nor_themselves() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused_naming_the_fix() {
        for (line, kind, why) in [
            ("audit search --event Escaped", ErrorKind::InvalidValue, "SandboxCreated"),
            ("audit search --since yesterday", ErrorKind::ValueValidation, "1h"),
            ("audit export --format csv", ErrorKind::InvalidValue, "ocsf"),
            ("audit prove first", ErrorKind::ValueValidation, "POSITION"),
            ("attestation get ../x", ErrorKind::ValueValidation, "sandbox id"),
            ("attestation verify a --key-version 1", ErrorKind::ValueValidation, "v1, v2"),
            ("attestation verify a --policy-digest abc", ErrorKind::ValueValidation, "sha256:"),
            ("keys rotate --overlap soon", ErrorKind::ValueValidation, "soon"),
            ("keys deprecate", ErrorKind::MissingRequiredArgument, "VERSION"),
            ("keys export --pem --note", ErrorKind::ArgumentConflict, "--note"),
            ("agent add spiffe://Example.org/a --key k", ErrorKind::ValueValidation, "lower case"),
            ("agent add spiffe://example.org/a", ErrorKind::MissingRequiredArgument, "--key"),
            ("agent add spiffe://example.org/a --key k --policy a/b", ErrorKind::ValueValidation, "policy name"),
            ("network-policy add-rule --destination a.b --action Open", ErrorKind::InvalidValue, "RequireAuthz"),
            ("network-policy add-rule --action Deny", ErrorKind::MissingRequiredArgument, "--destination"),
            ("network-policy get --policy a --sandbox-id b", ErrorKind::ArgumentConflict, "--sandbox-id"),
            ("completions tcsh", ErrorKind::InvalidValue, "zsh"),
        ] {
            let line = ["creto-runtime-cli"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(line).expect_err(why);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(why) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn a_cause_is_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("opening the door")]
        struct Outer(#[source] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("turning the key: {0}")]
        struct Middle(#[source] io::Error);
        let error = Outer(Middle(io::Error::other("it is broken")));
        assert_eq!(chain(&error), "opening the door: turning the key: it is broken");
        assert!(is_closed_pipe(&Outer(Middle(io::ErrorKind::BrokenPipe.into()))) && !is_closed_pipe(&error));
    }
}
