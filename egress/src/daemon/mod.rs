//! The privileged half: kernel, files, sockets. Reading order: `fence`, which puts one around a sandbox; what it stands on
//! follows, the pure parts (`ruleset`, `nf_tables`) and those with effects (`netns`, `kernel`, `netlink`).

pub mod fence;
pub mod kernel;
pub mod netlink;
pub mod netns;
pub mod nf_tables;
pub mod ruleset;
