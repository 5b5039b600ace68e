//! `health`: the node agent and all that it needs, each really asked.

use std::io::{self, Write};

use clap::Args;

use super::agent_api::{Agent, AgentApiError, block_on};
use super::output::{self, Colour};
use super::terminal;
use crate::api::types::{Health, HealthStatus};
use crate::node::Root;

/// How it is told.
#[derive(Debug, Args)]
pub struct Asked {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why health is not known, or not good.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HealthError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error("the node is {0}")]
    Not(&'static str),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

/// What an agent says that is well.
const OK: &str = "ok";

pub(super) fn run(asked: &Asked, root: &Root, out: &mut dyn Write) -> Result<(), HealthError> {
    let health = block_on(of(&Agent::of(root)))?;
    match asked.json {
        true => output::json(out, &health)?,
        false => {
            table(out, &health, terminal::has_colour())?;
            if health.draining {
                writeln!(out, "The node drains: it takes no more work (creto-runtime-cli enable --node).")?;
            }
        }
    }
    match health.status {
        HealthStatus::Healthy => Ok(()),
        status => Err(HealthError::Not(word(status))),
    }
}

/// Asks for it: whatever its status, it is an answer.
pub(super) async fn of(api: &Agent) -> Result<Health, AgentApiError> {
    api.ask_whatever_the_status("/health").await
}

/// As it is written.
pub(super) fn word(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Healthy => "healthy",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Unhealthy => "unhealthy",
    }
}

fn table(out: &mut dyn Write, health: &Health, colour: bool) -> io::Result<()> {
    let rows = health.components.iter().map(|(name, state)| vec![name.clone(), state.clone()]);
    let heading = ["COMPONENT", "STATE"];
    match colour {
        true => output::coloured_table(out, &heading, rows, "STATE", |word| match word {
            OK => Colour::Green,
            _ => Colour::Red,
        }),
        false => output::table(out, &heading, rows),
    }
}
