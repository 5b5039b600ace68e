//! The node's control plane, for whoever embeds it, for the daemon `creto-pool-agent` and for the client `creto-runtime-cli`.
//!
//! Top-down: [`cli`] asks and prints · [`daemon`] is the agent from its start to its end, and [`api`] what it answers over HTTP ·
//! [`sandboxes`] spawns, lists and ends sandboxes; [`pools`] keeps members warm, and [`claim`] hands one over · [`making`], [`ending`] and
//! [`running`] are what both do with one sandbox · [`spawn`] makes one out of an image, by [`containerd`] and [`network`] (CNI), and
//! [`shim`] speaks to it · [`store`] keeps the records, [`pool`] decides what a pool needs, and [`error`] says what went wrong.
//! The rest is what a node has: its name and places ([`node`]), agents, statements ([`attested`]: what they say), keys, policies, the record
//! ([`ledger`]). What is
//! proven, kept and signed is the business of `trust`; what may be connected to, that of `egress`.
#![forbid(unsafe_code)]

pub mod cli;

pub mod api;
pub mod daemon;

pub mod claim;
pub mod pools;
pub mod sandboxes;
pub mod warming;

pub mod admission;
pub mod ending;
pub mod exec;
pub mod logs;
pub mod making;
pub mod ports;
pub mod recovery;
pub mod running;

pub mod config;
pub mod metrics;

pub mod spawn;

pub mod containerd;
pub mod network;
mod own_thread;
pub mod shim;

pub mod channels;
pub mod error;
pub mod pool;
pub mod store;

pub mod image;
pub mod labels;
pub mod quantity;
pub mod sandbox;
mod schema;
pub mod span;
pub mod spec;

pub mod agents;
pub mod attested;
pub mod keys;
pub mod ledger;
pub mod node;
pub mod policies;
pub mod record;
pub mod statements;
