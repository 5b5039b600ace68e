//! The policy DNS over real sockets: what sandboxes get to hear, that nothing of it leaves the node, and what the gate's
//! resolver makes of good and bad upstreams. All on loopback, where each sandbox has an address of its own.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests may panic, and are named after what they promise")]

mod limits;
mod node;
mod questions;
mod redirected;
mod resolver;
mod resolving;
