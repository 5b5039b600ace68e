//! The node agent's HTTP API: what is said to it and what it answers.

pub mod problem;
pub mod types;
