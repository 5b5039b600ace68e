//! creto-runtime-cli, by noun and verb. Answers go to stdout: tables for people, `--json` for programs. What went wrong goes
//! to stderr as `Error: …` with its causes; the exit code is then 1, or 2 where the command itself makes no sense. Where a command in
//! a sandbox is waited for, the exit code is its own.
//!
//! One file per noun; each has its verbs' arguments, the verbs, and one error enum. Sandboxes and pools are asked of the node agent
//! (`agent_api`), a command's streams go through `session`. `output` prints. docs/cli.md shows the shapes of the answers.

pub mod claim;
pub mod cp;
pub mod events;
pub mod exec;
pub mod health;
pub mod pool;
pub mod runtime;
pub mod sandbox;
pub mod top;

pub mod agent;
pub mod attestation;
pub mod audit;
pub mod keys;
pub mod network_policy;

pub mod agent_api;
pub mod chunks;
pub mod session;
pub mod workload;

pub mod output;
pub mod shell;
pub mod terminal;

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::node::Root;

/// What people ask of a node: its sandboxes and pools, its attestations, its audit record, its keys, its agents, its network policies.
#[derive(Debug, Parser)]
#[command(name = "creto-runtime-cli", version, arg_required_else_help = true)]
pub struct Cli {
    /// Where the node's things lie: DIR/{lib,etc,run} instead of /var/lib/creto, /etc/creto and /run/creto
    #[arg(long, global = true, value_name = "DIR", env = "CRETO_ROOT", hide_env_values = true, display_order = 900)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Make a sandbox, and print its id
    Spawn(Box<sandbox::Spawn>),
    /// List the sandboxes; where stdout is no terminal, their ids alone
    List(sandbox::list::List),
    /// Print all about a sandbox
    Get(sandbox::Get),
    /// End sandboxes, and print the ids of those that end
    Terminate(sandbox::Terminate),
    /// Run a command in a sandbox
    Exec(exec::Exec),
    /// Print what a sandbox has written
    Logs(sandbox::Logs),
    /// Copy files into a sandbox or out of it
    Cp(cp::Cp),
    /// Take a sandbox out of a pool, and print its id or run a command in it
    Claim(Box<claim::Claim>),
    /// Sandboxes that wait to be claimed
    #[command(subcommand)]
    Pool(pool::Verb),
    /// Let a backend, or the whole node, make no new sandboxes
    Drain(runtime::Which),
    /// Let a backend, or the whole node, make sandboxes again
    Enable(runtime::Which),
    /// Print what happens to sandboxes, as it happens
    Events(events::Asked),
    /// Print whether the node is well
    Health(health::Asked),
    /// Watch the node, its pools and its busiest sandboxes
    Top(top::Asked),
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
    Sandbox(#[from] sandbox::SandboxError),
    #[error(transparent)]
    Exec(#[from] exec::ExecError),
    #[error(transparent)]
    Cp(#[from] cp::CpError),
    #[error(transparent)]
    Claim(#[from] claim::ClaimError),
    #[error(transparent)]
    Pool(#[from] pool::PoolError),
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    #[error(transparent)]
    Events(#[from] events::EventsError),
    #[error(transparent)]
    Health(#[from] health::HealthError),
    #[error(transparent)]
    Top(#[from] top::TopError),
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
    let failure = cli.noun.failure();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(cli, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?));
    drop(out); // what was answered before it failed comes first
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            if !is_closed_pipe(&error) {
                let text: Vec<_> = chain(&error).lines().map(output::plain).collect();
                let _ = writeln!(io::stderr(), "Error: {}", text.join("\n"));
            }
            failure.into()
        }
    }
}

impl Noun {
    /// The exit code where it fails: another than that of a command whose exit code is ours.
    fn failure(&self) -> u8 {
        let carries = match self {
            Self::Exec(_) => true,
            Self::Claim(asked) => asked.carries(),
            Self::Spawn(asked) => asked.carries(),
            _ => false,
        };
        if carries { session::OURS } else { 1 }
    }
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<u8, CliError> {
    let root = Root::new(cli.root.as_deref());
    match cli.noun {
        Noun::Spawn(asked) => return Ok(sandbox::spawn(*asked, &root, out)?),
        Noun::Exec(asked) => return Ok(exec::run(asked, &root, out)?),
        Noun::Claim(asked) => return Ok(claim::run(*asked, &root, out)?),
        Noun::List(asked) => sandbox::list::run(&asked, &root, out)?,
        Noun::Get(asked) => sandbox::get(&asked, &root, out)?,
        Noun::Terminate(asked) => sandbox::terminate(&asked, &root, out)?,
        Noun::Logs(asked) => sandbox::logs(&asked, &root, out)?,
        Noun::Cp(asked) => cp::run(asked, &root, out)?,
        Noun::Pool(verb) => pool::run(verb, &root, out)?,
        Noun::Drain(asked) => runtime::drain(&asked, &root, out)?,
        Noun::Enable(asked) => runtime::enable(&asked, &root, out)?,
        Noun::Events(asked) => events::run(&asked, &root, out)?,
        Noun::Health(asked) => health::run(&asked, &root, out)?,
        Noun::Top(asked) => top::run(&asked, &root, out)?,
        Noun::Attestation(verb) => attestation::run(verb, &root, out)?,
        Noun::Audit(verb) => audit::run(verb, &root, out)?,
        Noun::Keys(verb) => keys::run(verb, &root, out)?,
        Noun::Agent(verb) => agent::run(verb, &root, out)?,
        Noun::NetworkPolicy(verb) => network_policy::run(verb, &root, out)?,
        Noun::Completions { shell } => out.write_all(&shell::completions(shell))?,
        Noun::Man { dir } => shell::man(&dir).map_err(|why| CliError::Man { dir, why })?,
    }
    Ok(0)
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

/// Whether whoever read the answer has gone, as `head` does: nothing to complain of. That the node agent has gone is another matter.
fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.is::<hyper::Error>() || cause.is::<tokio_tungstenite::tungstenite::Error>() {
            return false;
        }
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
            ("spawn --runtime gvisor", ErrorKind::MissingRequiredArgument, "--image"),
            ("spawn --image Python", ErrorKind::ValueValidation, "lower case"),
            ("spawn --image a --runtime runc", ErrorKind::InvalidValue, "gvisor, kata"),
            ("spawn --image a --runsc-path /nonexistent/runsc", ErrorKind::ValueValidation, "No such file"),
            ("spawn --image a --memory 512", ErrorKind::ValueValidation, "16Mi"),
            ("spawn --image a --cpus 0", ErrorKind::ValueValidation, "10m"),
            ("spawn --image a --env A", ErrorKind::ValueValidation, "NAME=VALUE"),
            ("spawn --image a --label A=ä", ErrorKind::ValueValidation, "letters"),
            ("spawn --image a --secret NAME", ErrorKind::ValueValidation, "file:NAME"),
            ("spawn --image a --policy {}x", ErrorKind::ValueValidation, "network policy"),
            ("spawn --image a sleep", ErrorKind::UnknownArgument, "sleep"),
            ("list --status Sleeping", ErrorKind::ValueValidation, "Warming, Ready"),
            ("list --cpu-usage 80%", ErrorKind::ValueValidation, "'>80%'"),
            ("list --sort-by size", ErrorKind::InvalidValue, "cpu_usage, memory_usage, age"),
            ("list --descending", ErrorKind::MissingRequiredArgument, "--sort-by"),
            ("get ../x", ErrorKind::ValueValidation, "sandbox id"),
            ("terminate", ErrorKind::MissingRequiredArgument, "--all"),
            ("terminate a --all", ErrorKind::ArgumentConflict, "--all"),
            ("exec a", ErrorKind::MissingRequiredArgument, "COMMAND"),
            ("exec a ls", ErrorKind::UnknownArgument, "ls"),
            ("exec a --cwd x -- ls", ErrorKind::ValueValidation, "begins with /"),
            ("exec a --user a:b:c -- ls", ErrorKind::ValueValidation, "USER:GROUP"),
            ("cp a", ErrorKind::MissingRequiredArgument, "TO"),
            ("cp a:b c", ErrorKind::ValueValidation, "begins with /"),
            ("claim a/b", ErrorKind::ValueValidation, "pool name"),
            ("claim a --on-empty sleep", ErrorKind::InvalidValue, "cold, wait, fail"),
            ("claim a --timeout soon", ErrorKind::ValueValidation, "soon"),
            ("claim a --selector a=b=c", ErrorKind::ValueValidation, "label"),
            ("drain", ErrorKind::MissingRequiredArgument, "--runtime"),
            ("enable --runtime runc", ErrorKind::InvalidValue, "gvisor, kata"),
            ("drain --runtime kata --node", ErrorKind::ArgumentConflict, "--node"),
            ("events --pool a/b", ErrorKind::ValueValidation, "pool name"),
            ("pool create", ErrorKind::MissingRequiredArgument, "--file"),
            ("pool create a", ErrorKind::MissingRequiredArgument, "--image"),
            ("pool create a -f b", ErrorKind::ArgumentConflict, "--file"),
            ("pool create -f b --image c", ErrorKind::ArgumentConflict, "--file"),
            ("pool update a", ErrorKind::MissingRequiredArgument, "--min-ready"),
            ("pool update a --min-ready many", ErrorKind::ValueValidation, "many"),
            ("pool update a --auto-scaling-enabled maybe", ErrorKind::InvalidValue, "true, false"),
            ("pool evict a", ErrorKind::MissingRequiredArgument, "--count"),
            ("pool drain", ErrorKind::MissingRequiredArgument, "--all"),
            ("pool logs a --phase Sleeping", ErrorKind::ValueValidation, "Warming, Ready"),
        ] {
            let line = ["creto-runtime-cli"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(line).expect_err(why);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(why) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn the_runbooks_lines_are_understood() {
        for line in [
            "spawn --image python:3.11 --runtime gvisor",
            "spawn --image alpine --runtime gvisor --runsc-path /proc/self/exe",
            "spawn --image alpine --runtime kata",
            "spawn --image python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "spawn --image a --agent spiffe://example.org/a --policy web --env A=b=c --memory 512Mi --cpus 0.5 --name x --wait -- sh -c true",
            "list",
            "list --status Running",
            "list --sort-by cpu_usage --descending",
            "list --sort-by memory_usage --descending",
            "list --cpu-usage >80% --limit 5",
            "get box-1 --json",
            "terminate box-1",
            "terminate box-1 --force",
            "terminate --all --force",
            "exec box-1 -it -- sh",
            "exec -i box-1 --env A=b --user 1000:1000 --cwd /tmp -- cat -n",
            "logs box-1",
            "logs box-1 -f --tail 10",
            "cp box-1:/etc/hostname .",
            "drain --runtime kata",
            "enable --runtime kata",
            "drain --node",
            "enable --node",
            "events --json --pool demo",
            "claim demo",
            "claim demo --agent spiffe://example.org/a --policy web --secret file:a --env A=b --on-empty wait --timeout 30s \
             --idempotency-key k --selector a=b --json --time -- python3 -c print(1)",
            "pool list",
            "pool get agent-executor-pool",
            "pool stats agent-executor-pool",
            "pool create -f pool.toml",
            "pool create demo --image python:3.11 --min-ready 3",
            "pool update agent-executor-pool --min-ready 20 --max-ready 50",
            "pool update agent-executor-pool --auto-scaling-headroom 2.0",
            "pool update agent-executor-pool --auto-scaling-enabled false",
            "pool evict agent-executor-pool --count 10",
            "pool logs agent-executor-pool --phase Warming",
            "pool spawn agent-executor-pool",
            "pool drain --all",
            "pool drain agent-executor-pool",
            "pool delete agent-executor-pool",
            "health",
            "top",
        ] {
            let line = ["creto-runtime-cli"].into_iter().chain(line.split_whitespace());
            Cli::try_parse_from(line).unwrap();
        }
    }

    #[test]
    fn a_commands_exit_code_is_not_mistaken_for_ours() {
        for (line, code) in [
            ("exec a -- ls", 125),
            ("claim a -- ls", 125),
            ("claim a --json -- ls", 1),
            ("claim a", 1),
            ("spawn --image a --wait", 125),
            ("spawn --image a -- ls", 1),
            ("list", 1),
        ] {
            let line = ["creto-runtime-cli"].into_iter().chain(line.split(' '));
            assert_eq!(Cli::parse_from(line).noun.failure(), code);
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
