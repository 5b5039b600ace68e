//! `drain` and `enable`: whether a backend, or the whole node, makes sandboxes.

use std::io::{self, Write};

use clap::{ArgGroup, Args};
use hyper::Method;

use super::agent_api::{Agent, AgentApiError, block_on};
use super::workload::backend;
use crate::api::types::{Node, Runtime};
use crate::node::Root;
use crate::spec::Backend;

/// What of the node.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Which {
    /// A backend, by its name
    #[arg(long, value_name = "NAME", value_parser = backend(), group = "what")]
    runtime: Option<Backend>,
    /// All of it: no spawns, no claims, and what waits in pools is taken down
    #[arg(long, group = "what")]
    node: bool,
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
    Ok(match set(asked, true, root)? {
        What::Runtime(backend) => {
            writeln!(out, "{backend} makes no new sandboxes; those that wait are taken down, those that run go on")
        }
        What::Node(node) => {
            writeln!(out, "node {node} takes no more work; sandboxes that wait are taken down, those that run go on")
        }
    }?)
}

pub(super) fn enable(asked: &Which, root: &Root, out: &mut dyn Write) -> Result<(), RuntimeError> {
    Ok(match set(asked, false, root)? {
        What::Runtime(backend) => writeln!(out, "{backend} makes sandboxes again"),
        What::Node(node) => writeln!(out, "node {node} takes work again"),
    }?)
}

enum What {
    Runtime(Backend),
    Node(String),
}

fn set(asked: &Which, drained: bool, root: &Root) -> Result<What, AgentApiError> {
    let (api, body) = (Agent::of(root), Runtime { drained });
    block_on(async {
        match asked.runtime {
            Some(backend) => {
                api.tell::<Runtime>(Method::PUT, &format!("/v1/runtimes/{backend}"), &body).await?;
                Ok(What::Runtime(backend))
            }
            None => {
                let node: Node = api.tell(Method::PUT, "/v1/node", &body).await?;
                Ok(What::Node(node.node.to_string()))
            }
        }
    })
}
