//! Rules for what a workload shares with the kernel below it: namespaces, devices, system calls.

use serde_json::{Map, Value, json};

use super::shape::{object, objects, refuse, text};
use super::{BackendKind, Policy};
use crate::error::TaskError;

/// No namespace of the host's own. A kind that the spec does not list is the host's.
pub fn private_namespaces(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const FIELD: &str = "linux.namespaces";
    /// The host's own, for whoever reads them: a shim, runsc or runc.
    const HOSTS: [&str; 3] = ["/proc/1/ns/", "/proc/self/ns/", "/proc/thread-self/ns/"];
    let member = spec.pointer("/annotations/io.kubernetes.cri.container-type") == Some(&json!("container"));
    let mut listed = Vec::new();
    for namespace in objects(spec, FIELD)? {
        let (kind, path) = (text(namespace, "type").to_owned(), text(namespace, "path"));
        if HOSTS.iter().any(|host| super::files::clean(path).starts_with(host)) {
            return Err(refuse(FIELD, format!("{kind} at {path} is the host's; omit the path")));
        }
        // The network is wired beforehand by whoever brings it; what a pod's containers share is their pod's.
        if policy.is_strict() && !path.is_empty() && kind != "network" && !member {
            let why = format!("{kind} at {path}: the profile strict joins none but its pod's; omit the path");
            return Err(refuse(FIELD, why));
        }
        listed.push(kind);
    }
    // gVisor and a machine have a process table of their own, whatever the spec says: who asks for the host's would look for
    // its processes in vain, unless the operator knows better. The host's name is harmless anywhere.
    let network = policy.is_strict() || !policy.isolation.allow_host_network;
    let pid = policy.is_strict() || policy.kind == BackendKind::HostKernel || !policy.isolation.allow_host_pid;
    for (kind, needed) in
        [("mount", true), ("network", network), ("ipc", true), ("pid", pid), ("uts", policy.is_strict())]
    {
        if needed && !listed.iter().any(|listed| listed == kind) {
            let allowed = match kind {
                "network" => " (or isolation.allow_host_network of runtime.toml, without the profile strict)",
                "pid" if policy.kind != BackendKind::HostKernel => {
                    " (or isolation.allow_host_pid of runtime.toml, without the profile strict: processes of its own)"
                }
                _ => "",
            };
            let why = format!(
                "{kind} is missing, which is the host's: no sandbox has that; add {{\"type\":\"{kind}\"}}{allowed}"
            );
            return Err(refuse(FIELD, why));
        }
    }
    Ok(())
}

/// In gVisor: ids are mapped in a user namespace, and a new one maps some.
pub fn user_namespace(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    let users: Vec<bool> = objects(spec, "linux.namespaces")?
        .into_iter()
        .filter(|namespace| text(namespace, "type") == "user")
        .map(|namespace| text(namespace, "path").is_empty())
        .collect();
    for field in ["linux.uidMappings", "linux.gidMappings"] {
        let mapped = !objects(spec, field)?.is_empty();
        match users.as_slice() {
            [] if mapped => {
                return Err(refuse(field, "without a user namespace; add {\"type\":\"user\"} to linux.namespaces"));
            }
            [true, ..] if !mapped => {
                return Err(refuse(field, "is missing for the user namespace: give one of an id at least"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn number(map: &Map<String, Value>, key: &str) -> Option<i64> {
    map.get(key).and_then(Value::as_i64)
}

/// The host's memory and ports are nobody's; `strict`: no device but those that every container has. gVisor makes
/// names only, behind which there is no device of the host.
pub fn no_memory_devices(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const FIELD: &str = "linux.devices";
    /// mem, kmem, port.
    const MEMORY: [i64; 3] = [1, 2, 4];
    /// null, zero, full, random, urandom; tty, console, ptmx.
    const COMMON: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    /// The same and fuse.
    const GVISORS: [(i64, i64); 9] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229)];
    for device in objects(spec, FIELD)? {
        let (path, kind) = (text(device, "path").to_owned(), text(device, "type"));
        let character = matches!(kind, "c" | "u");
        let at = (number(device, "major").unwrap_or_default(), number(device, "minor").unwrap_or_default());
        if policy.kind == BackendKind::HostKernel && character && at.0 == 1 && MEMORY.contains(&at.1) {
            return Err(refuse(FIELD, format!("{path} is the host's memory; omit it")));
        }
        if policy.kind == BackendKind::Gvisor && !policy.build.recent && !(character && GVISORS.contains(&at)) {
            let why =
                format!("{path}: this build of runsc has no such device and its sandbox would end of it; omit it");
            return Err(refuse(FIELD, why));
        }
        if policy.is_strict() && kind != "p" && !(character && COMMON.contains(&at)) {
            return Err(refuse(FIELD, format!("{path}: the profile strict gives no device of the host; omit it")));
        }
    }
    Ok(())
}

/// Leave to use or to make any device is leave to write the host's disks.
pub fn no_device_wildcard(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const FIELD: &str = "linux.resources.devices";
    if !policy.is_strict() && policy.kind != BackendKind::HostKernel {
        return Ok(());
    }
    for rule in objects(spec, FIELD)? {
        let allows = rule.get("allow") == Some(&json!(true));
        let access = text(rule, "access");
        let uses = access.is_empty() || access.contains(['r', 'w']); // to make one that cannot be opened is harmless
        let any = |key: &str| number(rule, key).is_none_or(|n| n < 0);
        if allows && uses && any("major") {
            return Err(refuse(FIELD, "a rule allows every device of the host; name each by its numbers"));
        }
    }
    Ok(())
}

/// System calls that a program in a container has no use for, by what they are for. Our own list, made by one question:
/// does the call reach state that is the kernel's and not the process's, or parts of the kernel that exploits begin with?
const DENIED: [&[&str]; 9] = [
    &["kexec_load", "kexec_file_load", "reboot", "init_module", "finit_module", "delete_module"],
    &["bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"],
    &["mount", "umount", "umount2", "pivot_root", "move_mount", "open_tree", "open_tree_attr", "mount_setattr"],
    &["fsopen", "fsconfig", "fsmount", "fspick", "swapon", "swapoff", "quotactl", "quotactl_fd", "acct"],
    &["setns", "unshare"],
    &["add_key", "request_key", "keyctl"],
    &["settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime"],
    &["name_to_handle_at", "open_by_handle_at", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"],
    &["iopl", "ioperm", "vm86", "vm86old", "modify_ldt", "syslog", "lookup_dcookie", "nfsservctl", "uselib", "ustat"],
];

/// `strict` on the host's kernel: where the spec has no profile of its own, the calls of `DENIED` fail. Elsewhere the
/// workload's system calls are not the host's.
pub fn few_system_calls(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const CLONE_NEWUSER: u64 = 0x1000_0000;
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;
    if !policy.is_strict() || policy.kind != BackendKind::HostKernel {
        return Ok(());
    }
    let profile = object(spec, "linux.seccomp")?;
    if !profile.is_empty() {
        return Ok(());
    }
    let new_user = json!({"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"});
    profile.insert("defaultAction".into(), json!("SCMP_ACT_ALLOW"));
    profile.insert(
        "syscalls".into(),
        json!([
            {"names": DENIED.concat(), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": [new_user]},
            // Its flags are in memory, where no filter sees them; told that there is none, libc takes clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ]),
    );
    Ok(())
}
