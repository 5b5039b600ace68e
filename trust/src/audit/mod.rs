//! Audit: what happened to every sandbox, kept so that a later change of it is found.
//!
//! A producer (shim, egress daemon, node agent) hands events to a [`Spool`], which needs no daemon; the ledger drains the
//! spools into a Merkle tree whose head is signed from time to time. [`record`] is what is kept, [`spool`] writes it,
//! [`inbox`] reads it back, [`ledger`] keeps it, [`log`] is the tree's mathematics, [`tree_head`] the signed note,
//! [`node_key`] who signs it,
//! [`ocsf`] the form for others. What all this does and does not prove: docs/audit.md.

pub mod inbox;
#[cfg(feature = "ledger")]
pub mod ledger;
pub mod log;
pub mod node_key;
pub mod ocsf;
pub mod record;
mod record_id;
pub mod spool;
mod sync;
pub mod tree_head;

pub use record::{About, AuditRecord, Connection, Event, Protocol, Text};
pub use spool::{Limits, Spool};
pub use tree_head::TreeHeadSigner;

/// Where audit events go in. Recording never fails its caller: audit being down never stops work, it is loud instead
/// (an error in the log, [`Audit::lost`], and a gap in the record itself).
pub trait Audit: Send + Sync {
    /// Records events that belong together, in this order; they reach the disk with one sync.
    fn record_all(&self, about: &About, events: Vec<Event>);

    /// Records one event.
    fn record(&self, about: &About, event: Event) {
        self.record_all(about, vec![event]);
    }

    /// How many events could not be recorded since this process started: a counter for its metrics.
    fn lost(&self) -> u64;
}
