//! The privileged half: puts fences into the kernel, keeps what stands, answers egress.sock. It reads what root says, and
//! nothing that a sandbox does; what does stands in `worker`.

mod config;
mod events;
mod fences;
mod kernel;
mod metrics;
mod netns;
mod recorder;
mod ruleset;
mod run;
mod server;
mod sockets;
mod state;
mod worker;

pub use run::{DaemonFailed, run};
