//! `exec`: a command in a sandbox that runs, its streams carried here, its exit code ours.

use std::io::Write;

use clap::Args;
use trust::id::SandboxId;

use super::agent_api::{Agent, AgentApiError, block_on, with_query};
use super::session::{self, SessionError, Wanted};
use super::terminal;
use super::workload::Process;
use crate::node::Root;

/// What runs where.
#[derive(Debug, Args)]
pub struct Exec {
    /// The sandbox's id or name
    id: SandboxId,
    /// Carry stdin to the command
    #[arg(short, long = "interactive")]
    interactive: bool,
    /// Give the command a terminal: this one
    #[arg(short, long = "tty")]
    tty: bool,
    #[command(flatten)]
    process: Process,
    /// What runs
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why the command's exit code is not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ExecError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("-t wants a terminal, and stdin is none\nleave out -t")]
    NoTerminal,
}

pub(super) fn run(asked: Exec, root: &Root, out: &mut dyn Write) -> Result<u8, ExecError> {
    let wanted = Wanted { stdin: asked.interactive, tty: asked.tty };
    if wanted.tty && !terminal::is_stdin() {
        return Err(ExecError::NoTerminal);
    }
    block_on(async {
        let stream = Agent::of(root).stream(&path(&asked)).await?;
        Ok(session::carry(stream, wanted, out).await?)
    })
}

fn path(asked: &Exec) -> String {
    let Exec { id, interactive, tty, process, command } = asked;
    let mut query: Vec<_> = command.iter().map(|word| ("command", word.clone())).collect();
    query.push(("stdin", interactive.to_string()));
    query.push(("tty", tty.to_string()));
    query.extend(process.env.iter().map(|(name, value)| ("env", format!("{name}={value}"))));
    query.extend(process.cwd.as_ref().map(|cwd| ("cwd", cwd.to_string())));
    query.extend(process.user.as_ref().map(|user| ("user", user.to_string())));
    with_query(&format!("/v1/sandboxes/{id}/exec"), query)
}
