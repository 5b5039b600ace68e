//! `linux.resources` of the OCI runtime-spec, as far as a sandbox's control group knows it.

use serde::Deserialize;

/// Limits to set; what is absent stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory: Memory,
    /// Shares and time.
    pub cpu: Cpu,
    /// Number of host tasks.
    pub pids: Pids,
}

/// `memory`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Bytes; -1 is none.
    pub limit: Option<i64>,
    /// Memory and swap together, bytes; -1 is none.
    pub swap: Option<i64>,
    /// Soft limit, bytes.
    pub reservation: Option<i64>,
}

/// `cpu`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Relative weight, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 is no limit.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// CPUs, as `0-1,3`.
    pub cpus: Option<String>,
    /// Memory nodes, the same way.
    pub mems: Option<String>,
}

/// `pids`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// 0 or less is no limit.
    pub limit: Option<i64>,
}
