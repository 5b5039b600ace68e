//! What a workload may be and may have: an OCI spec in, the hardened one out. `RULES` is the whole policy, top to bottom;
//! docs/hardening.md is the same as a table, with what was measured. Pure but for [`real_sources`].
//! Not here: the network beyond its namespace (the fence), limits (cgroups), what identity is attested.

mod amounts;
mod exec;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod given;
mod kernel;
mod mounts;
mod process;
pub mod seccomp;
mod shape;
mod summary;
mod sysctls;

use std::path::Path;

use serde_json::{Value, json};

use crate::error::TaskError;
use crate::request::Maker;
use crate::settings::{IsolationSettings, UnsupportedSysctls};

pub use amounts::{MOST_BINDS, resources_in_range};
pub use exec::ForExecs;
pub use files::{clean, hideable, is_bind, is_gvisors, is_writable};
pub use summary::{Names, summary};

/// How much is taken away. `Default` gives what a spec asks for and refuses what nobody's workload may have; `Strict`
/// takes away all that a program can do without, and refuses what cannot be taken away quietly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For any image.
    #[default]
    Default,
    /// For code that nobody has read, in an image made for it.
    Strict,
}

impl std::str::FromStr for Profile {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self, TaskError> {
        match name {
            "default" => Ok(Self::Default),
            "strict" => Ok(Self::Strict),
            _ => Err(TaskError::Invalid(format!("{name:?} is no hardening profile; allowed: default, strict"))),
        }
    }
}

/// Whose kernel a workload talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// gVisor's own, which has its own `/proc`, `/sys` and devices.
    Gvisor,
    /// That of a virtual machine.
    Machine,
    /// The host's. Also assumed of a shim that we do not know.
    HostKernel,
}

impl BackendKind {
    /// Of what a pod's sandbox is made by.
    pub fn of(maker: &Maker) -> Self {
        match maker {
            Maker::Gvisor(_) => Self::Gvisor,
            Maker::Delegate(_, shim) => {
                let name = shim.shim.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with("containerd-shim-kata") { Self::Machine } else { Self::HostKernel }
            }
        }
    }
}

/// What the build of runsc that makes a gVisor sandbox can do. Of other backends nothing is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// It enforces a spec's seccomp profile.
    pub seccomp: bool,
    /// It knows set-uid bits, umasks, other ids of a mount's files, and devices that it has not; and an exec is under its
    /// container's seccomp profile. Measured: the build of 2024 does none of these, that of 2026 all.
    pub recent: bool,
}

impl Default for Build {
    fn default() -> Self {
        Self { seccomp: true, recent: true }
    }
}

/// What a rule decides by.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How much is taken away.
    pub profile: Profile,
    /// From a workload of what.
    pub kind: BackendKind,
    /// Made by what.
    pub build: Build,
    /// What of the host's own the operator lets workloads ask for.
    pub isolation: IsolationSettings,
    /// What becomes of sysctls that gVisor cannot set.
    pub sysctls: UnsupportedSysctls,
}

impl Policy {
    fn is_strict(self) -> bool {
        self.profile == Profile::Strict
    }
}

type Rule = fn(&mut Value, Policy) -> Result<(), TaskError>;

/// What holds for every process, of which the spec has the first and each exec brings its own.
const PROCESS_RULES: [Rule; 8] = [
    process::only_known_capabilities,
    process::few_capabilities,
    process::no_new_privileges,
    amounts::known_limits,
    process::limits,
    process::umask,
    process::set_uid,
    process::labels_that_mean_something,
];

/// In order: a later rule sees what the earlier ones have left.
const RULES: [Rule; 20] = [
    amounts::resources,
    amounts::cgroup_path,
    amounts::few_mounts,
    files::read_only_root,
    files::known_file_systems,
    files::nothing_of_the_host_itself,
    files::read_only_binds,
    files::private_propagation,
    mounts::propagation,
    mounts::kinds,
    mounts::id_mappings,
    files::read_only_proc,
    kernel::private_namespaces,
    kernel::user_namespace,
    kernel::no_memory_devices,
    kernel::no_device_wildcard,
    files::paths,
    sysctls::sysctls,
    kernel::few_system_calls,
    seccomp::expressible,
];

/// The spec that a backend gets: never more than `spec` asks for, or an error that names a field and the fix. Idempotent.
pub fn harden(mut spec: Value, policy: Policy) -> Result<Value, TaskError> {
    for rule in PROCESS_RULES.into_iter().chain(RULES) {
        rule(&mut spec, policy)?;
    }
    Ok(spec)
}

/// Whether a spec asks for the host's own network: it lists none to make or to join.
pub fn has_host_network(spec: &Value) -> bool {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    !namespaces.into_iter().flatten().any(|namespace| namespace["type"] == "network")
}

/// Replaces the sources of bind mounts by what they really are, that no symbolic link on the host leads a rule astray.
/// What is not there stays: that is said where mounts are looked for.
pub fn real_sources(mut spec: Value) -> Value {
    for mount in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if files::is_bind(mount)
            && let Some(source) = mount.get_mut("source")
            && let Some(path) = source.as_str().map(Path::new).filter(|path| path.is_absolute())
            && let Ok(real) = path.canonicalize()
            && let Some(real) = real.to_str()
        {
            *source = json!(real);
        }
    }
    spec
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
