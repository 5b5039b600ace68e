//! The node's control plane. [`cli`] is its client, the commands of `creto-runtime-cli`. Of the agent itself there is what it decides and keeps: [`pool`]
//! says what a pool needs, without a clock or a file; [`store`] keeps the records; [`sandbox`] and [`mod@spec`] are the records, [`error`] why there is none.
//!
//! Top-down: [`cli`] reads what was asked and prints the answer; [`node`] knows which node this is and where its things lie;
//! [`record`] says what it changed; [`statements`] finds what the shim has kept; [`agents`] writes what the registry of agents reads. What is proven, kept and
//! signed is the business of `trust`.
#![forbid(unsafe_code)]

pub mod cli;

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
