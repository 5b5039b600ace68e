//! The node's control plane: [`cli`], the commands of `creto-runtime-cli`, and what the agent does on its node.
//!
//! Top-down: [`cli`] reads what was asked and prints the answer; [`node`] knows which node this is and where its things lie;
//! [`record`] says what it changed; [`statements`] finds what the shim has kept; [`agents`] writes what the registry of agents reads. What is proven, kept and
//! signed is the business of `trust`.
//!
//! [`spawn`] makes a sandbox out of an image and takes it away, by [`containerd`] and, where it has an interface, [`network`] (CNI).
#![forbid(unsafe_code)]

pub mod cli;

pub mod spawn;

pub mod containerd;
pub mod network;
mod own_thread;

pub mod agents;
pub mod node;
pub mod record;
pub mod shim;
pub mod statements;
