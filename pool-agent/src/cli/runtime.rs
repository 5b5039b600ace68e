//! `drain` and `enable`: whether a backend makes sandboxes on this node.

use std::io::{self, Write};

use clap::Args;
use hyper::Method;

use super::agent_api::{Agent, AgentApiError, block_on};
use super::workload::backend;
use crate::api::types::Runtime;
use crate::node::Root;
use crate::spec::Backend;

/// Which backend.
#[derive(Debug, Args)]
pub struct Which {
    /// Its name
    #[arg(long, value_name = "NAME", value_parser = backend())]
    runtime: Backend,
}

/// Why it goes on as before.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RuntimeError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

pub(super) fn drain(asked: &Which, root: &Root, out: &mut dyn Write) -> Result<(), RuntimeError> {
    set(asked.runtime, true, root)?;
    Ok(writeln!(out, "{} makes no new sandboxes; those that wait are taken down, those that run go on", asked.runtime)?)
}

pub(super) fn enable(asked: &Which, root: &Root, out: &mut dyn Write) -> Result<(), RuntimeError> {
    set(asked.runtime, false, root)?;
    Ok(writeln!(out, "{} makes sandboxes again", asked.runtime)?)
}

fn set(backend: Backend, drained: bool, root: &Root) -> Result<(), AgentApiError> {
    let path = format!("/v1/runtimes/{backend}");
    block_on(async { Agent::of(root).tell::<Runtime>(Method::PUT, &path, &Runtime { drained }).await })?;
    Ok(())
}
