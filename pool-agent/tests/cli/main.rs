//! creto-runtime-cli as people run it: the program itself, on a node made by the library that the shim uses.

mod agents;
mod attestations;
mod audit;
mod keys;
mod node;
mod shell;
