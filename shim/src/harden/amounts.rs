//! Numbers and paths of a spec that are out of any range: a negative limit, a control group that climbs, mounts without end.
//! Whoever would get them says less, or says it late, with something half made.

use serde_json::Value;

use super::shape::{objects, refuse, text};
use super::{BackendKind, Policy, files};
use crate::error::TaskError;

/// Of `process.rlimits`.
const LIMITS: [&str; 16] = [
    "AS",
    "CORE",
    "CPU",
    "DATA",
    "FSIZE",
    "LOCKS",
    "MEMLOCK",
    "MSGQUEUE",
    "NICE",
    "NOFILE",
    "NPROC",
    "RSS",
    "RTPRIO",
    "RTTIME",
    "SIGPENDING",
    "STACK",
];

/// Below `linux.resources`, and what the kernel takes. -1 is no limit.
const RESOURCES: [(&str, i64, i64); 10] = [
    ("memory.limit", -1, i64::MAX),
    ("memory.reservation", -1, i64::MAX),
    ("memory.swap", -1, i64::MAX),
    ("memory.swappiness", 0, 200),
    ("cpu.shares", 0, 1 << 18),
    ("cpu.quota", -1, i64::MAX),
    ("cpu.period", 0, 1_000_000),
    ("cpu.burst", 0, i64::MAX),
    ("pids.limit", -1, i64::MAX),
    ("network.classID", 0, u32::MAX as i64),
];

/// Each bind in gVisor is an open file of the sandbox, which has room for some 240 (measured) before others are in the way.
pub const MOST_BINDS: usize = 200;
const MOST_MOUNTS: usize = 1000;

/// A number in config.json; `None` for null.
fn within(field: &str, value: &Value, least: i64, most: i64) -> Result<(), TaskError> {
    match value.as_i64() {
        _ if value.is_null() => Ok(()),
        Some(number) if (least..=most).contains(&number) => Ok(()),
        _ => Err(refuse(field, format!("{value} is no whole number from {least} to {most}"))),
    }
}

/// Each limit of a process is one that Linux has, and its soft end is not above its hard one.
pub fn known_limits(spec: &mut Value, _: Policy) -> Result<(), TaskError> {
    const FIELD: &str = "process.rlimits";
    for limit in objects(spec, FIELD)? {
        let kind = text(limit, "type");
        if !kind.strip_prefix("RLIMIT_").is_some_and(|kind| LIMITS.contains(&kind)) {
            return Err(refuse(FIELD, format!("{kind:?} is no limit; there are RLIMIT_{}", LIMITS.join(", RLIMIT_"))));
        }
        let end = |key: &str| match limit.get(key) {
            None | Some(Value::Null) => Ok(0),
            Some(end) => {
                let why = || refuse(FIELD, format!("{kind}: {key} {end} is no whole number from 0 to {}", u64::MAX));
                end.as_u64().ok_or_else(why)
            }
        };
        let (soft, hard) = (end("soft")?, end("hard")?);
        if soft > hard {
            return Err(refuse(FIELD, format!("{kind}: soft {soft} is more than hard {hard}")));
        }
    }
    Ok(())
}

/// Limits of the control group, and a process's likelihood to be killed, are numbers that the kernel takes.
pub fn resources(spec: &mut Value, _: Policy) -> Result<(), TaskError> {
    if let Some(resources) = spec.pointer("/linux/resources") {
        resources_in_range(resources)?;
    }
    match spec.pointer("/process/oomScoreAdj") {
        Some(value) => within("process.oomScoreAdj", value, -1000, 1000),
        None => Ok(()),
    }
}

/// The same of `linux.resources` alone, which is what an update brings.
pub fn resources_in_range(resources: &Value) -> Result<(), TaskError> {
    for (name, least, most) in RESOURCES {
        if let Some(value) = resources.pointer(&format!("/{}", name.replace('.', "/"))) {
            within(&format!("linux.resources.{name}"), value, least, most)?;
        }
    }
    Ok(())
}

/// A control group is named from the root down: nobody's leads out of the tree or into another's.
pub fn cgroup_path(spec: &mut Value, _: Policy) -> Result<(), TaskError> {
    let Some(path) = spec.pointer("/linux/cgroupsPath").filter(|path| !path.is_null()) else { return Ok(()) };
    let why = match path.as_str() {
        None => "must be a text",
        Some(path) if path.contains('\0') => "has a NUL",
        Some(path) if path.split(['/', ':']).any(|part| part == "..") => "climbs; write it without ..",
        Some(_) => return Ok(()),
    };
    Err(refuse("linux.cgroupsPath", format!("{path} {why}")))
}

/// gVisor's sandbox has so many mounts.
pub fn few_mounts(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    let mounts = spec.get("mounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    let binds = mounts.iter().filter(|mount| files::is_bind(mount)).count();
    for (what, count, most) in [("mounts", mounts.len(), MOST_MOUNTS), ("bind mounts", binds, MOST_BINDS)] {
        if count > most {
            return Err(refuse("mounts", format!("{count} {what}; gVisor's sandbox has room for {most}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{KINDS, policy, spec_with};
    use super::super::{Profile, harden};
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused_by_its_name() {
        let limit = |kind: &str, soft: Value, hard: Value| json!([{"type": kind, "soft": soft, "hard": hard}]);
        for (at, given, why) in [
            ("/process/rlimits", limit("RLIMIT_FLY", json!(1), json!(1)), "RLIMIT_FLY"),
            ("/process/rlimits", limit("NOFILE", json!(1), json!(1)), "NOFILE"),
            ("/process/rlimits", limit("RLIMIT_NOFILE", json!(2), json!(1)), "soft 2 is more than hard 1"),
            ("/process/rlimits", limit("RLIMIT_NOFILE", json!(-1), json!(1)), "soft -1"),
            ("/process/rlimits", limit("RLIMIT_NOFILE", json!(1), json!(1e30)), "hard 1e"),
            ("/process/oomScoreAdj", json!(1001), "1001"),
            ("/linux/resources/memory/limit", json!(-2), "-2 is no whole number from -1"),
            ("/linux/resources/memory/limit", json!(u64::MAX), "18446744073709551615"),
            ("/linux/resources/memory/swap", json!("1g"), "1g"),
            ("/linux/resources/cpu/quota", json!(-7), "-7"),
            ("/linux/resources/cpu/period", json!(1_000_001), "1000001"),
            ("/linux/resources/pids/limit", json!(1.5), "1.5"),
            ("/linux/cgroupsPath", json!("/a/../../b"), "climbs"),
            ("/linux/cgroupsPath", json!("a.slice:..:c"), "climbs"),
            ("/linux/cgroupsPath", json!(5), "must be a text"),
        ] {
            for kind in KINDS {
                let mut spec = spec_with("/linux/resources", json!({"memory": {}, "cpu": {}, "pids": {}}));
                let (parent, key) = at.rsplit_once('/').unwrap();
                spec.pointer_mut(parent).unwrap()[key] = given.clone();
                let said = harden(spec, policy(Profile::Default, kind)).unwrap_err().to_string();
                let field = at.trim_start_matches('/').replace('/', ".");
                assert!(said.starts_with(&format!("{field}: ")) && said.contains(why), "{at} {given}: {said}");
            }
        }
    }

    #[test]
    fn what_means_no_limit_and_what_the_kernel_takes_is_kept() {
        for resources in [
            json!({"memory": {"limit": -1, "swap": 0}, "cpu": {"shares": 2, "quota": -1, "period": 100_000}}),
            json!({"memory": null, "pids": {"limit": 0}, "cpu": {"cpus": "0-1"}}),
        ] {
            for kind in KINDS {
                let spec = spec_with("/linux/resources", resources.clone());
                assert_eq!(harden(spec, policy(Profile::Default, kind)).unwrap()["linux"]["resources"], resources);
            }
        }
    }

    #[test]
    fn there_is_an_end_to_mounts_in_gvisor() {
        let many = |count: usize, kind: &str| {
            let one =
                |n: usize| json!({"destination": format!("/m/{n}"), "type": kind, "source": "/srv", "options": ["ro"]});
            spec_with("/mounts", (0..count).map(one).collect())
        };
        for (count, kind, why) in
            [(201, "bind", "201 bind mounts"), (10_000, "bind", "10000 mounts"), (1001, "tmpfs", "1001 mounts")]
        {
            let said = harden(many(count, kind), policy(Profile::Default, BackendKind::Gvisor)).unwrap_err();
            assert!(said.to_string().starts_with("mounts: ") && said.to_string().contains(why), "{said}");
            assert!(harden(many(count, kind), policy(Profile::Default, BackendKind::HostKernel)).is_ok());
        }
    }
}
