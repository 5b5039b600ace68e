//! Image and wishes → OCI runtime spec: what containerd's clients give a container by default, and of it what an agent's sandbox has
//! asked for. Pure. What the shim hardens, refuses or adds is its own business (docs/hardening.md).
//! Source: OCI runtime spec 1.1; the defaults of `ctr run`, compared with them by a test (tests/spawn.rs).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::accounts::{Accounts, BadUser};
use super::images::ImageConfig;

/// runc's default set: what containers have been used to.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// What of the kernel's files tells of, or reaches to, the host.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What is to be seen, and not to be changed.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where programs are, for images that do not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of a CPU quota, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// Open files, for each process.
const FILES: u64 = 1024;

/// What a sandbox is to be, beyond its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The container's id: names its cgroup.
    pub id: String,
    /// The containerd namespace: names its cgroup's parent.
    pub namespace: String,
    /// Instead of the image's entry point and command.
    pub command: Option<Vec<String>>,
    /// Beside the image's variables, or instead of those with the same name.
    pub env: BTreeMap<String, String>,
    /// Instead of the image's working directory.
    pub cwd: Option<String>,
    /// Instead of the image's user: `user[:group]`.
    pub user: Option<String>,
    /// What it calls itself; its id without.
    pub hostname: Option<String>,
    /// Its first process has a terminal.
    pub terminal: bool,
    /// What it may use.
    pub limits: Limits,
    /// Its network namespace; without, a new one with nothing in it.
    pub netns: Option<PathBuf>,
    /// Beside the default ones.
    pub mounts: Vec<Bind>,
    /// `creto.dev/*` and others.
    pub annotations: BTreeMap<String, String>,
}

/// What a sandbox may use; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A file or directory of the host's, seen inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// Inside, absolute.
    pub destination: String,
    /// Whether it can be written to.
    pub writable: bool,
}

/// Why there is no spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nobody says what to run.
    #[error("there is nothing to run: the image has no command, so give one")]
    NoCommand,
    /// The user is not one.
    #[error(transparent)]
    User(#[from] BadUser),
    /// No path from the root.
    #[error("{what} {path:?}: write an absolute path")]
    Relative {
        /// Which one.
        what: &'static str,
        /// As it was given.
        path: String,
    },
    /// A name that no variable can have.
    #[error("environment variable {0:?}: a name is not empty and has no '='")]
    Variable(String),
}

/// The spec of a sandbox of this image.
pub fn build(image: &ImageConfig, accounts: &Accounts, wishes: &Wishes) -> Result<Value, SpecError> {
    let user = accounts.resolve(wishes.user.as_deref().unwrap_or(&image.user))?;
    let args = args(image, wishes)?;
    let cwd = wishes.cwd.as_deref().unwrap_or(&image.working_dir);
    let cwd = absolute("working directory", if cwd.is_empty() { "/" } else { cwd })?;
    let mut network = json!({"type": "network"});
    if let Some(netns) = &wishes.netns {
        network["path"] = json!(absolute("network namespace", &netns.to_string_lossy())?);
    }
    let files = json!([{"type": "RLIMIT_NOFILE", "hard": FILES, "soft": FILES}]);
    Ok(json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "hostname": wishes.hostname.as_deref().unwrap_or(&wishes.id),
        "process": {
            "terminal": wishes.terminal,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": args,
            "env": env(image, wishes)?,
            "cwd": cwd,
            // Not ambient and not inheritable: a user other than root starts without.
            "capabilities": {"bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES},
            "rlimits": files,
            "noNewPrivileges": true,
        },
        "mounts": mounts(&wishes.mounts)?,
        "annotations": wishes.annotations,
        "linux": {
            "cgroupsPath": format!("/{}/{}", wishes.namespace, wishes.id),
            "resources": resources(wishes.limits),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, network],
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    }))
}

/// A command replaces both halves of the image's, as Kubernetes' `command` does: an entry point that expects other words would surprise.
fn args(image: &ImageConfig, wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    let args = match &wishes.command {
        Some(command) => command.clone(),
        None => [&image.entrypoint[..], &image.cmd].concat(),
    };
    if args.first().is_none_or(|program| program.is_empty()) { Err(SpecError::NoCommand) } else { Ok(args) }
}

/// The image's, in its order, then the new ones; the last word counts. A terminal has a TERM.
fn env(image: &ImageConfig, wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    if let Some(bad) = wishes.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(SpecError::Variable(bad.clone()));
    }
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let replaced = |variable: &&String| !wishes.env.contains_key(&name(variable));
    let mut env: Vec<String> = image.env.iter().filter(replaced).cloned().collect();
    env.extend(wishes.env.iter().map(|(name, value)| format!("{name}={value}")));
    let has = |env: &[String], wanted: &str| env.iter().any(|variable| name(variable) == wanted);
    if !has(&env, "PATH") {
        env.push(PATH.to_owned());
    }
    if wishes.terminal && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    Ok(env)
}

fn mounts(binds: &[Bind]) -> Result<Vec<Value>, SpecError> {
    let of = |destination: &str, kind: &str, source: &str, options: &str| {
        let options: Vec<&str> = options.split(',').collect();
        json!({"destination": destination, "type": kind, "source": source, "options": options})
    };
    let mut all = vec![
        of("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        of("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        of("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        of("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        of("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        of("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        of("/run", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ];
    for bind in binds {
        let destination = absolute("mount", &bind.destination)?;
        let source = bind.source.to_string_lossy();
        let source = absolute("mount's source", &source)?;
        all.push(of(destination, "bind", source, if bind.writable { "rbind,rw" } else { "rbind,ro,nosuid,nodev" }));
    }
    Ok(all)
}

fn resources(limits: Limits) -> Value {
    let mut resources = Map::new();
    // ctr lists the usual ones (null, tty, …) as allowed; runtimes allow those whatever is said here.
    resources.insert("devices".into(), json!([{"allow": false, "access": "rwm"}]));
    if let Some(bytes) = limits.memory_bytes {
        // Swap counts as memory: what may be swapped out is not limited.
        resources.insert("memory".into(), json!({"limit": bytes, "swap": bytes}));
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = millis.saturating_mul(PERIOD) / 1000;
        // cgroup v1's share of one CPU is 1024; at least 2, at most 2^18.
        let shares = (millis.saturating_mul(1024) / 1000).clamp(2, 1 << 18);
        resources.insert("cpu".into(), json!({"quota": quota.max(1000), "period": PERIOD, "shares": shares}));
    }
    if let Some(pids) = limits.pids {
        resources.insert("pids".into(), json!({"limit": pids}));
    }
    Value::Object(resources)
}

fn absolute<'a>(what: &'static str, path: &'a str) -> Result<&'a str, SpecError> {
    if path.starts_with('/') { Ok(path) } else { Err(SpecError::Relative { what, path: path.to_owned() }) }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
