//! gVisor: `runsc` by its command line for a sandbox's life, by its control socket for all that happens in it.

pub mod cli;
pub mod control;
pub mod urpc;
