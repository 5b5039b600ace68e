//! The promises of creto-runtime to its users, each a module, each tested with the real parts: containerd, runsc.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod harness;

mod attestation;
mod audit;
mod authz;
mod checkpoint_restore;
mod claim;
mod cli;
mod cni;
mod configs;
mod confined;
mod containerd_restart;
mod containerd_versions;
mod control_fallback;
mod cri_annotations;
mod cri_churn;
mod cri_forward;
mod cri_pods;
mod cri_stats;
mod cri_streams;
mod daemon_killed;
mod delegate;
mod delegate_kata;
mod events;
mod exit_codes;
mod failed_create;
mod fenced_start;
mod hardening;
mod host_network;
mod identity;
mod kata_habits;
mod killed_shim;
mod leak_table;
mod many_at_once;
mod metrics;
mod nerdctl_calls;
mod nhi;
mod oom;
mod options;
mod pause_resume;
mod pod;
mod pull;
mod quickstart;
mod revocation;
mod rootfs;
mod run_exec_attach;
mod secrets;
mod spawn;
mod spawn_interrupted;
mod stdio;
mod stock_verifiers;
mod warm_pool;
