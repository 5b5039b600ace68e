//! Who a sandbox works for, and the proof of what it runs in. A library: no daemon, no runtime of its own.
//!
//! Top-down: [`attestation`] signs what was observed of a sandbox; [`identity`] decides who it works for; [`keys`] are the
//! node's own; the rest are the words they share. Files are read and written in [`keys`], [`identity::registry`] and
//! [`identity::replay`] alone. Formats and promises: docs/attestation.md, docs/identity.md.
#![forbid(unsafe_code)]

pub mod attestation;
pub mod identity;
pub mod keys;

pub mod clock;
pub mod digest;
pub mod id;
mod json;
