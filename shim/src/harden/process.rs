//! Rules for a process, init's or an exec's: what it may do, how much, and under which labels.

use serde_json::{Value, json};

use super::shape::{list, object, objects, refuse, text};
use super::{BackendKind, Policy};
use crate::backend::gvisor::capabilities::{WITHHELD, known};
use crate::error::TaskError;

/// The sets of `process.capabilities`.
pub const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];

/// What `strict` leaves of what is asked for: to serve a port below 1024 harms nobody in a network of one's own.
/// Kubernetes' "restricted" pods may ask for the same one.
const FEW: [&str; 1] = ["CAP_NET_BIND_SERVICE"];

/// What gVisor gives a process that asks for none, and every exec.
pub const UMASK: u32 = 0o22;

/// Open files that `strict` allows.
const OPEN_FILES: u64 = 65_536;

fn keep_capabilities(spec: &mut Value, keep: impl Fn(&str) -> bool) -> Result<(), TaskError> {
    for set in SETS {
        if let Some(names) = list(spec, &format!("process.capabilities.{set}"))? {
            let full = |name: &Value| Some(format!("CAP_{}", known(name.as_str()?)?.1));
            *names = names.iter().filter_map(full).filter(|name| keep(name)).map(Value::from).collect();
        }
    }
    Ok(())
}

/// A name that no kernel knows gives nothing, as in runc (runsc's sandbox would die of it); nor does one that runsc gives
/// to nobody. Names are written as the kernel's headers do.
pub fn only_known_capabilities(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    let withheld = format!("CAP_{WITHHELD}");
    keep_capabilities(spec, |name| policy.kind != BackendKind::Gvisor || name != withheld)
}

/// `strict`: those of `FEW` that are asked for.
pub fn few_capabilities(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.is_strict() { keep_capabilities(spec, |name| FEW.contains(&name)) } else { Ok(()) }
}

/// `strict`: a set-uid program gives nobody more than he has.
pub fn no_new_privileges(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.is_strict() {
        object(spec, "process")?.insert("noNewPrivileges".into(), json!(true));
    }
    Ok(())
}

/// `strict`: no core files, and no more open files than `OPEN_FILES`. Other limits as asked.
pub fn limits(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const CAPPED: [(&str, u64); 2] = [("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", OPEN_FILES)];
    if !policy.is_strict() {
        return Ok(());
    }
    for (kind, most) in CAPPED {
        let mut found = false;
        for limit in objects(spec, "process.rlimits")?.into_iter().filter(|limit| text(limit, "type") == kind) {
            for end in ["soft", "hard"] {
                let asked = limit.get(end).and_then(Value::as_u64).unwrap_or(most);
                limit.insert(end.into(), json!(asked.min(most)));
            }
            found = true;
        }
        // A limit that is absent is inherited, and may be lower than ours: to name it could raise it.
        if !found && most == 0 {
            let capped = json!({"type": kind, "soft": most, "hard": most});
            match list(spec, "process.rlimits")? {
                Some(limits) => limits.push(capped),
                None => drop(object(spec, "process")?.insert("rlimits".into(), json!([capped]))),
            }
        }
    }
    Ok(())
}

/// In gVisor: one that a build gives. The older ones give everybody 022.
pub fn umask(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const FIELD: &str = "process.user.umask";
    let Some(umask) = spec.pointer("/process/user/umask").filter(|umask| !umask.is_null()) else { return Ok(()) };
    if umask.as_u64().is_none_or(|umask| umask > 0o777) {
        return Err(refuse(FIELD, format!("{umask} is no umask: give a number from 0 to 511 (0777)")));
    }
    if policy.kind == BackendKind::Gvisor && !policy.build.recent && *umask != json!(UMASK) {
        return Err(refuse(FIELD, format!("{umask}: this build of runsc gives every process {UMASK} (022)")));
    }
    Ok(())
}

/// Set-uid bits work where the spec allows it and the build of runsc knows them. Where it does not, that is less than was asked
/// for, and safe: it is said, and no container fails of it.
pub fn set_uid(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    let allowed = spec.pointer("/process/noNewPrivileges") == Some(&json!(false));
    if allowed && policy.kind == BackendKind::Gvisor && !policy.build.recent {
        tracing::info!(
            "this build of runsc has no --allow-suid: set-uid bits have no effect, though noNewPrivileges is false"
        );
    }
    Ok(())
}

/// gVisor has neither AppArmor nor SELinux inside: a label would say that something is enforced.
pub fn labels_that_mean_something(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const LABELS: [(&str, &str); 3] =
        [("process", "apparmorProfile"), ("process", "selinuxLabel"), ("linux", "mountLabel")];
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    for (section, label) in LABELS {
        if let Some(Value::Object(section)) = spec.get_mut(section)
            && section.remove(label).is_some_and(|label| label.as_str().is_some_and(|label| !label.is_empty()))
        {
            tracing::info!(label, "no meaning inside gVisor: dropped");
        }
    }
    Ok(())
}
