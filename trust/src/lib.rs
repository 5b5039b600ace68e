//! Who, proof, record: what a sandbox is bound to before its first instruction. A library; it has no daemon and no
//! runtime of its own.
#![forbid(unsafe_code)]

pub mod audit;
