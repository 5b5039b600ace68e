//! What is attested of a sandbox, read back: from the files its backend got, the program that runs, the kernel.

use std::fs;
use std::path::Path;

use serde_json::Value;
use trust::attestation::predicate::{Backend, Fence, Hardening, Image, Limits, Mounts};
use trust::digest::Digest;

use crate::backend::Ran;
use crate::cgroup::Cgroup;
use crate::error::TaskError;
use crate::harden::{self, Names};
use crate::{interfaces, paths, program_digest};

/// What does not change in a sandbox's life.
#[derive(Clone)]
pub struct Facts {
    /// Of the config.json that the backend ran.
    pub config: Digest,
    /// What made it.
    pub backend: Backend,
    /// How little it may do.
    pub hardening: Hardening,
    /// What it was made from.
    pub image: Image,
}

/// Reads the facts of a sandbox whose first container has this bundle and pid, and was made by this program from this image.
pub async fn facts(name: &str, ran: &Ran, bundle: &Path, pid: i32, image: Image) -> Result<Facts, TaskError> {
    let path = bundle.join("config.json");
    let doing = |e: &dyn std::fmt::Display| TaskError::host(format!("reading {} back", path.display()), e);
    let config = fs::read(&path).map_err(|e| doing(&e))?;
    let spec: Value = serde_json::from_slice(&config).map_err(|e| doing(&e))?;
    let binary = program_digest::of(&ran.program, &paths::state_root()).await?;
    let name = name.parse().map_err(|e| TaskError::host("naming the backend", e))?;
    let backend = Backend { name, binary, platform: ran.platform.clone() };
    Ok(Facts { config: Digest::of(&config), backend, hardening: hardening(&spec, limits(pid)), image })
}

/// How a sandbox can reach a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// It cannot: it has no interface but `lo`.
    Sealed(Fence),
    /// It has an interface, which needs a fence.
    Wired,
    /// It uses the host's own, which no fence can stand around.
    Host,
    /// Its process is gone.
    Gone,
}

/// How the sandbox of a process can reach a network, as the kernel lists its interfaces.
pub fn network(pid: i32) -> Network {
    let interfaces = interfaces::of(pid);
    match interfaces.is_empty() {
        true => Network::Gone,
        false if interfaces::are_ours(pid) => Network::Host,
        false if interfaces::is_sealed(&interfaces) => Network::Sealed(sealed(pid)),
        false => Network::Wired,
    }
}

/// What is said of a sandbox that no packet can leave: which interfaces it has.
pub fn sealed(pid: i32) -> Fence {
    Fence { mechanism: "sealed".into(), digest: Digest::of(interfaces::of(pid).join("\n").as_bytes()) }
}

/// What of the host a sandbox may use; nothing is said of one whose process is gone.
pub fn limits(pid: i32) -> Limits {
    Cgroup::of(pid).map(|cgroup| cgroup.limits()).unwrap_or_default()
}

fn hardening(spec: &Value, limits: Limits) -> Hardening {
    let said = harden::summary(spec);
    let count = |names: &Names| match names {
        Names::Listed(names) => names.len() as u32,
        Names::Counted { count, .. } => *count as u32,
    };
    let bounding = spec.pointer("/process/capabilities/bounding").and_then(Value::as_array);
    let capabilities = bounding.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    let (writable, read_only) = (count(&said.mounts.writable_binds), count(&said.mounts.read_only_binds));
    Hardening {
        capabilities,
        no_new_privileges: said.no_new_privileges,
        host_network: harden::has_host_network(spec),
        seccomp: spec.pointer("/linux/seccomp").is_some_and(Value::is_object),
        masked_paths: said.masked_paths as u32,
        readonly_paths: said.readonly_paths as u32,
        mounts: Mounts {
            readonly_root: said.readonly_rootfs,
            total: said.mounts.count as u32,
            host: writable + read_only,
            host_writable: writable,
        },
        limits,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_spec_that_was_run_allows_is_what_is_attested() {
        let spec = json!({
            "root": {"readonly": true},
            "process": {"noNewPrivileges": true, "capabilities": {"bounding": ["CAP_KILL"]}},
            "linux": {"maskedPaths": ["/proc/kcore"], "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
            "mounts": [
                {"destination": "/proc", "type": "proc"},
                {"destination": "/data", "type": "bind", "source": "/data", "options": ["rbind", "rw"]},
                {"destination": "/run/creto", "type": "bind", "source": "/x", "options": ["rbind", "ro"]},
            ],
        });
        let limits = Limits { pids: Some(7), ..Limits::default() };
        let got = hardening(&spec, limits.clone());
        assert_eq!((got.capabilities, got.no_new_privileges, got.seccomp), (vec!["CAP_KILL".to_owned()], true, true));
        assert!(got.host_network, "no namespace is listed");
        assert_eq!((got.masked_paths, got.readonly_paths, got.limits), (1, 0, limits));
        assert_eq!(got.mounts, Mounts { readonly_root: true, total: 3, host: 2, host_writable: 1 });
    }
}
