//! Rules for what a workload sees of files: its root, the host's files that are bound into it, `/proc` and `/sys`.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::shape::{list, object, objects, refuse, strings, text};
use super::{BackendKind, Policy};
use crate::error::TaskError;

/// Below these a bind mount may be written to under `strict`: volumes of Kubernetes and nerdctl, a CRI pod's /dev/shm.
const VOLUMES: [&str; 3] =
    ["/var/lib/kubelet/pods/", "/var/lib/nerdctl/", "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/"];

/// Paths that tell of the host's kernel or hardware, and those that steer it. From what the kernel documents of each;
/// where a kernel has none, nothing is there to hide.
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
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A path as text without `.`, `..` and repeated slashes.
pub fn clean(path: &str) -> String {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean.display().to_string()
}

fn within(path: &str, dir: &str) -> bool {
    Path::new(path).starts_with(dir)
}

fn options(mount: &Map<String, Value>) -> impl Iterator<Item = &str> {
    mount.get("options").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a mount shows files of the host.
pub fn is_bind(mount: &Value) -> bool {
    mount.as_object().is_some_and(binds)
}

pub fn binds(mount: &Map<String, Value>) -> bool {
    matches!(text(mount, "type"), "bind" | "rbind") || options(mount).any(|option| matches!(option, "bind" | "rbind"))
}

/// Whether a mount can be written to. The last word counts.
pub fn is_writable(mount: &Map<String, Value>) -> bool {
    options(mount).fold(true, |writable, option| match option {
        "ro" | "rro" => false,
        "rw" | "rrw" => true,
        _ => writable,
    })
}

fn make_read_only(mount: &mut Map<String, Value>, word: &str) {
    let kept = options(mount).filter(|option| !matches!(*option, "ro" | "rro" | "rw" | "rrw"));
    let all: Vec<Value> = kept.chain([word]).map(Value::from).collect();
    mount.insert("options".into(), Value::Array(all));
}

/// `strict`: the image is not written to. Whoever needs to write asks for a tmpfs or a volume.
pub fn read_only_root(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.is_strict() {
        object(spec, "root")?.insert("readonly".into(), json!(true));
    }
    Ok(())
}

/// `strict`: no file system but those of containers: the kernel would mount a disk of the host as readily, or its tree
/// below an overlay.
pub fn known_file_systems(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const KNOWN: [&str; 8] = ["proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
    for mount in objects(spec, "mounts")?.into_iter().filter(|_| policy.is_strict()) {
        let kind = text(mount, "type");
        if !binds(mount) && !KNOWN.contains(&kind) {
            let why = format!("{} is of type {kind:?}", text(mount, "destination"));
            return Err(refuse("mounts", format!("{why}; the profile strict mounts bind, {}", KNOWN.join(", "))));
        }
    }
    Ok(())
}

/// The host's whole file tree and its `/proc`, with all its processes and switches, go into no sandbox; its `/sys` and
/// `/dev` to look at only.
pub fn nothing_of_the_host_itself(spec: &mut Value, _: Policy) -> Result<(), TaskError> {
    for mount in objects(spec, "mounts")?.into_iter().filter(|mount| binds(mount)) {
        let source = clean(text(mount, "source"));
        let whole = source == "/" || within(&source, "/proc");
        if whole || (is_writable(mount) && (within(&source, "/sys") || source == "/dev")) {
            let fix = if whole { "omit it, or bind what is needed of it" } else { "add the option ro" };
            return Err(refuse("mounts", format!("{} is the host's {source}; {fix}", text(mount, "destination"))));
        }
    }
    Ok(())
}

/// `strict`: files of the host are to read, but for volumes.
pub fn read_only_binds(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if !policy.is_strict() {
        return Ok(());
    }
    for mount in objects(spec, "mounts")?.into_iter().filter(|mount| binds(mount) && is_writable(mount)) {
        let source = clean(text(mount, "source"));
        if !VOLUMES.iter().any(|volumes| within(&source, volumes)) {
            // `ro` leaves what is mounted below writable in runc; in gVisor it does not, and there is no other word.
            let deep = policy.kind == BackendKind::HostKernel && options(mount).any(|option| option == "rbind");
            make_read_only(mount, if deep { "rro" } else { "ro" });
        }
    }
    Ok(())
}

/// `strict`: what is mounted inside does not appear on the host.
pub fn private_propagation(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    let shared = |word: &str| matches!(word, "shared" | "rshared");
    if !policy.is_strict() {
        return Ok(());
    }
    if let Some(Value::Object(linux)) = spec.get_mut("linux")
        && shared(text(linux, "rootfsPropagation"))
    {
        linux.remove("rootfsPropagation");
    }
    for mount in objects(spec, "mounts")? {
        if let Some(Value::Array(options)) = mount.get_mut("options") {
            options.retain(|option| !option.as_str().is_some_and(shared));
        }
    }
    Ok(())
}

/// `strict` in gVisor: all of `/proc` is read-only, for runsc ignores `readonlyPaths` and no mount makes `/proc/sys` alone
/// so. The price: nobody writes `/proc/self/oom_score_adj` and the like.
pub fn read_only_proc(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if !policy.is_strict() || policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    let mut mounts = objects(spec, "mounts")?;
    let mut procs: Vec<_> = mounts.iter_mut().filter(|mount| text(mount, "type") == "proc").collect();
    procs.iter_mut().filter(|proc| is_writable(proc)).for_each(|proc| make_read_only(proc, "ro"));
    if procs.iter().any(|proc| clean(text(proc, "destination")) == "/proc") {
        return Ok(());
    }
    // runsc would mount one that is writable.
    let proc = json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev", "ro"]});
    match list(spec, "mounts")? {
        Some(mounts) => mounts.insert(0, proc),
        None => spec["mounts"] = json!([proc]),
    }
    Ok(())
}

/// Masked and read-only paths. `strict`: those above are among them. On the host's kernel they are there also by default
/// where a spec has none, unless it has a user namespace (where Kubernetes, too, allows `procMount: Unmasked`). In gVisor
/// the lists say only what is so, for runsc ignores them.
pub fn paths(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    let in_user_namespace = objects(spec, "linux.namespaces")?.iter().any(|n| text(n, "type") == "user");
    let missing = policy.kind == BackendKind::HostKernel && !in_user_namespace;
    let proc_is_writable = proc_is_writable(spec)?;
    for (field, ours) in [("maskedPaths", MASKED.as_slice()), ("readonlyPaths", READ_ONLY.as_slice())] {
        let path = format!("linux.{field}");
        let mut paths = strings(spec, &path)?;
        if policy.is_strict() || (missing && paths.is_empty()) {
            let all: Vec<_> = ours.iter().map(|path| (*path).to_owned()).filter(|path| !paths.contains(path)).collect();
            paths.extend(all);
        }
        if policy.kind == BackendKind::Gvisor {
            for path in &paths {
                inside_gvisor(field, path)?;
            }
            paths.retain(|path| field == "maskedPaths" || !proc_is_writable || !is_written_to(&clean(path)));
        }
        if !paths.is_empty() || list(spec, &path)?.is_some() {
            object(spec, "linux")?.insert(field.into(), json!(paths));
        }
    }
    Ok(())
}

/// Of `/proc`, which runsc mounts writable where the spec does not.
fn proc_is_writable(spec: &mut Value) -> Result<bool, TaskError> {
    let mut mounts = objects(spec, "mounts")?.into_iter();
    Ok(mounts.rfind(|mount| clean(text(mount, "destination")) == "/proc").is_none_or(|proc| is_writable(proc)))
}

/// Files of gVisor's `/proc`, in all builds, that a mount can hide, and directories (2024-07 and 2026-09).
const HIDEABLE: [&str; 9] = [
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/version",
    "/proc/sys",
];

/// Whether a clean path of gVisor's `/proc` can be hidden by a mount: `Some(true)` is a directory.
pub fn hideable(path: &str) -> Option<bool> {
    HIDEABLE.contains(&path).then_some(path == "/proc/sys")
}

/// Whether a clean path is in a file system where gVisor makes the files.
pub fn is_gvisors(path: &str) -> bool {
    within(path, "/proc") || within(path, "/sys")
}

/// A path that is as asked for in gVisor without anybody's doing, or else can be made so; by the backend, where it is a file's
/// that is not gVisor's own.
fn inside_gvisor(field: &str, path: &str) -> Result<(), TaskError> {
    /// What gVisor's `/proc` and `/sys` have that is worth hiding, and processes.
    const TELLING: [&str; 18] = [
        "cgroups",
        "cmdline",
        "cpuinfo",
        "devices",
        "filesystems",
        "gvisor",
        "loadavg",
        "meminfo",
        "modules",
        "mounts",
        "net",
        "self",
        "sentry-meminfo",
        "stat",
        "sys",
        "thread-self",
        "uptime",
        "version",
    ];
    const HARDWARE: [&str; 3] = ["/sys/block", "/sys/class", "/sys/devices/system/cpu"];
    let field = format!("linux.{field}");
    if !path.starts_with('/') {
        return Err(refuse(&field, format!("{path:?} is no absolute path")));
    }
    let path = clean(path);
    let telling = match first_in_proc(&path) {
        Some(first) => first.is_empty() || TELLING.contains(&first) || first.parse::<u32>().is_ok(),
        // Docker's and containerd's lists have this of each processor; gVisor's processors have none.
        None => HARDWARE.iter().any(|hardware| {
            (within(&path, "/sys") && within(hardware, &path))
                || (within(&path, hardware) && !path.ends_with("/thermal_throttle"))
        }),
    };
    if field == "linux.maskedPaths" && telling && hideable(&path).is_none() {
        return Err(refuse(&field, format!("{path}: gVisor's own is not the host's and cannot be hidden; omit it")));
    }
    Ok(())
}

/// Whether gVisor has something to write to there. (Writing its `/proc/sysrq-trigger` is an error.)
fn is_written_to(path: &str) -> bool {
    first_in_proc(path).is_some_and(|first| {
        matches!(first, "" | "sys" | "self" | "thread-self" | "gvisor") || first.parse::<u32>().is_ok()
    })
}

/// What of `/proc` a clean path leads through; empty for `/proc` itself.
fn first_in_proc(path: &str) -> Option<&str> {
    let mut parts = path.split('/').skip(1);
    (parts.next() == Some("proc")).then(|| parts.next().unwrap_or_default())
}
