//! The node's control plane. So far its client alone: [`cli`], the commands of `creto-runtime-cli`.
//!
//! Top-down: [`cli`] reads what was asked and prints the answer; [`node`] knows which node this is and where its things lie;
//! [`record`] says what it changed; [`statements`] finds what the shim has kept; [`agents`] writes what the registry of agents reads. What is proven, kept and
//! signed is the business of `trust`.
#![forbid(unsafe_code)]

pub mod cli;

pub mod api;
pub mod channels;
pub mod error;
pub mod pool;
pub mod store;

pub mod image;
pub mod labels;
pub mod quantity;
pub mod sandbox;
pub mod spec;

pub mod agents;
pub mod node;
pub mod record;
pub mod statements;
