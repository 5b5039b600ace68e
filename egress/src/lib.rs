//! Where a sandbox may connect.
//!
//! `policy` says it: pure, the one judge that every layer asks. The fence (nftables, on the host's end of the sandbox's
//! network) holds every packet to it; names are answered by our own DNS and connected to through our own gate. `protocol` and
//! `client` are what the shim and the command line speak to the daemon `creto-egress` with; the daemon itself stands behind the
//! feature `daemon`, so that they stay small.
//!
//! Reading order: `policy`, `protocol`, `client`; then `daemon` (privileged: kernel, files, sockets) and `worker` (no
//! privileges: reads what sandboxes send).

pub mod client;
pub mod explain;
pub mod paths;
pub mod policy;
pub mod protocol;

#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "daemon")]
mod sys;
#[cfg(feature = "daemon")]
pub mod worker;
