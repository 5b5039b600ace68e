//! Who a sandbox works for, the proof of what it runs in, and the record of what became of it: what a sandbox is bound to
//! before its first instruction. A library: no daemon, no runtime of its own.
//!
//! Top-down: [`attestation`] signs what was observed of a sandbox; [`identity`] decides who it works for; [`audit`] keeps what
//! happened; [`keys`] are the node's own; the rest are the words they share. Files are read and written in [`keys`],
//! [`identity::registry`], [`identity::replay`] and [`audit`] alone. Formats and promises: docs/attestation.md,
//! docs/identity.md, docs/audit.md.
#![forbid(unsafe_code)]

pub mod attestation;
pub mod audit;
pub mod identity;
pub mod keys;
pub mod refusal;
#[cfg(feature = "sandbox-api")]
pub mod sandbox_api;

pub mod chain;
pub mod clock;
pub mod custody;
pub mod digest;
#[cfg(feature = "http")]
pub mod https;
pub mod id;
pub mod json;
pub mod rate;
#[cfg(feature = "schema")]
mod schema;
#[cfg(feature = "ledger")]
pub mod sqlite;
