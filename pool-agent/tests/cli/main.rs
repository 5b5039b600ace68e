//! creto-runtime-cli as people run it: the program itself, on a node made by the library that the shim uses.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod agents;
mod attestations;
mod audit;
mod claims;
mod copies;
mod health;
mod keys;
mod pools;
mod sandboxes;
mod sessions;
mod shell;

mod node;
mod pool_agent;
mod pty;
