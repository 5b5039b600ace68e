//! The privileged half: kernel, files, sockets. It reads what root says, and nothing that a sandbox does; what does stands in
//! `worker`.
//!
//! Reading order: `run`, `server`, `sandboxes`, which tells how a fence is put up; what that stands on follows: `fence` (over the
//! pure `ruleset` and `nf_tables`, and `netns`, `kernel` and `netlink` with effects, by one thread, `enforcer`), `state`, `names`, `worker`, `recorder`.

mod config;
mod enforcer;
mod events;
pub mod fence;
pub mod kernel;
mod known;
mod metrics;
mod names;
pub mod netlink;
pub mod netns;
pub mod nf_tables;
mod nflog;
mod recorder;
pub mod ruleset;
mod run;
mod sandboxes;
mod server;
mod sockets;
mod state;
mod worker;

pub use run::{DaemonFailed, check, run};
