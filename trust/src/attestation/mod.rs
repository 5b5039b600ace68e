//! The proof of what a sandbox is: a signed statement of what was observed of it, linked to the one before.
//!
//! [`issue`]: what was observed (`predicate`) becomes a statement about files by their digests (`statement`), and is signed
//! (`dsse`). [`verify`]: the same way back, under keys that the verifier trusts. What is and is not proven by it:
//! docs/attestation.md.

pub mod dsse;
pub mod predicate;
pub mod statement;
pub mod verify;

use std::time::Duration;

use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::keys::Signer;
use dsse::Envelope;
use predicate::{Agent, Assurance, Backend, Fence, Hardening, Image, Launch, Node, Predicate, Sandbox};
use statement::Statement;

/// What was read back of a sandbox that is there; never what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// SHA-256 of the config.json that the backend ran.
    pub config: Digest,
    /// SHA-256 of the effective network policy.
    pub policy: Digest,
    /// Which sandbox.
    pub sandbox: Sandbox,
    /// For whom.
    pub agent: Agent,
    /// Made by what.
    pub backend: Backend,
    /// Where.
    pub node: Node,
    /// Behind which fence, once there is one.
    pub fence: Option<Fence>,
    /// How little it may do.
    pub hardening: Hardening,
    /// Of which image.
    pub image: Image,
    /// How it came about.
    pub launch: Launch,
}

/// Signs what was observed, from `now` for `validity`. `previous` is the [`Envelope::statement_digest`] of the sandbox's
/// current statement, if it has one. Fails only where JSON cannot be written.
pub fn issue(
    observed: Observed,
    previous: Option<Digest>,
    signer: &Signer,
    now: Timestamp,
    validity: Duration,
) -> Result<Envelope, serde_json::Error> {
    let Observed { config, policy, sandbox, agent, backend, node, fence, hardening, image, launch } = observed;
    let predicate = Predicate {
        sandbox,
        agent,
        backend,
        node,
        fence,
        hardening,
        image,
        launch,
        previous,
        issued_at: now,
        valid_until: now.plus(validity),
        assurance: Assurance::Software,
    };
    Ok(Envelope::sign(Statement::new(config, policy, predicate).to_json()?, signer))
}

#[cfg(test)]
mod tests;
