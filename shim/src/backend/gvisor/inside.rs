//! The control groups that gVisor's kernel has inside a sandbox, one for each container: which files are asked, what they say, and what
//! is written into them. Of limits it enforces that of processes alone, and only in version 2; those of memory and CPU are there
//! to be read by programs that fit themselves to them. Pure. Source: gVisor `pkg/sentry/fsimpl/cgroupfs` and `cgroup2fs`, measured.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::urpc::CallError;
use super::wall;
use crate::cgroup::Resources;

/// Clock ticks of `cpuacct.stat`: gVisor's USER_HZ is 100.
const TICK: u64 = 10_000_000;
/// Where programs look for them.
const MOUNTED: &str = "/sys/fs/cgroup";

/// Which of its two kinds a sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller, of which nothing is enforced that is written from outside.
    V1,
    /// One tree.
    V2,
}

/// One file of a container's control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct File {
    controller: &'static str,
    path: String,
    name: &'static str,
}

/// What is written into one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    file: File,
    value: String,
}

impl Setting {
    /// Whether programs are held to it; of others it is only read.
    pub fn is_enforced(&self) -> bool {
        self.file.controller == "pids"
    }

    /// The file's name.
    pub fn name(&self) -> &'static str {
        self.file.name
    }
}

/// What became of each file that was read or written, as gVisor answers.
#[derive(Deserialize)]
pub struct Results {
    results: Vec<OfFile>,
}

#[derive(Deserialize)]
struct OfFile {
    value: String,
    #[serde(default)]
    is_error: bool,
}

impl Results {
    /// In the order of the question; of each its text, or why not.
    pub fn of(self, method: &'static str, asked: usize) -> Result<Vec<Result<String, String>>, CallError> {
        if self.results.len() != asked {
            return Err(CallError::Nonsense {
                method,
                why: format!("{} answers to {asked} questions", self.results.len()),
            });
        }
        Ok(self.results.into_iter().map(|one| if one.is_error { Err(one.value) } else { Ok(one.value) }).collect())
    }
}

/// What gVisor says of the whole sandbox's memory: the part of it that we use.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Usage {
    /// Bytes of files that programs have mapped.
    pub mapped: u64,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes, files that it maps included.
    pub memory: u64,
    /// Nanoseconds in programs.
    pub user: u64,
    /// Nanoseconds in gVisor's kernel.
    pub system: u64,
    /// Threads.
    pub pids: u64,
}

/// The files that [`counted`] reads.
pub fn questions(version: Version, cid: &str) -> Vec<File> {
    let cpu = match version {
        Version::V1 => ("cpuacct", "cpuacct.stat"),
        Version::V2 => ("cpu", "cpu.stat"),
    };
    let rest = [cpu, ("pids", "pids.current")].map(|(controller, name)| file(cid, controller, name));
    [vec![memory(version, cid)], rest.to_vec()].concat()
}

/// The file that says how much memory a container has.
pub fn memory(version: Version, cid: &str) -> File {
    match version {
        Version::V1 => file(cid, "memory", "memory.usage_in_bytes"),
        Version::V2 => file(cid, "memory", "memory.current"),
    }
}

fn file(cid: &str, controller: &'static str, name: &'static str) -> File {
    File { controller, path: format!("/{cid}"), name }
}

/// What the files say, in the order of [`questions`]; nothing of a container that has no control group yet, or no more.
pub fn counted(version: Version, answers: &[Option<String>]) -> Option<Counted> {
    let [Some(memory), Some(cpu), Some(pids)] = answers else { return None };
    let cpu_of = |key: &str| -> Option<u64> {
        cpu.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)?.1.trim().parse().ok())
    };
    let (user, system) = match version {
        Version::V1 => (cpu_of("user")?.checked_mul(TICK)?, cpu_of("system")?.checked_mul(TICK)?),
        Version::V2 => (cpu_of("user_usec")?.checked_mul(1000)?, cpu_of("system_usec")?.checked_mul(1000)?),
    };
    Some(Counted { memory: memory.trim().parse().ok()?, user, system, pids: pids.trim().parse().ok()? })
}

/// A container's limits, those that are not there included: an update may have taken one away.
pub fn settings(version: Version, cid: &str, limits: &Resources) -> Vec<Setting> {
    let set = |controller, name, value| Setting { file: file(cid, controller, name), value };
    let number = |limit: Option<u64>, none: &str| limit.map_or_else(|| none.to_owned(), |limit| limit.to_string());
    let (memory, cpu) = (limits.memory_limit(), limits.cpu_limit());
    match version {
        Version::V1 => vec![
            set("memory", "memory.limit_in_bytes", number(memory, &i64::MAX.to_string())),
            set("cpu", "cpu.cfs_quota_us", number(cpu.map(|(quota, _)| quota), "-1")),
            set("cpu", "cpu.cfs_period_us", number(cpu.map(|(_, period)| period), "100000")),
        ],
        Version::V2 => vec![
            set("memory", "memory.max", number(memory, "max")),
            set("cpu", "cpu.max", cpu.map_or_else(|| "max".to_owned(), |(quota, period)| format!("{quota} {period}"))),
            set("pids", "pids.max", number(limits.pids_limit(), "max")),
        ],
    }
}

/// Gives a container the control group that is needed to count, or to hold, what it has. `is_root`: the sandbox lives and dies
/// with it, and the host's control group is its own.
pub fn prepare(spec: &mut Value, version: Version, is_root: bool) {
    let pids = spec.pointer("/linux/resources/pids/limit").and_then(Value::as_u64).filter(|limit| *limit > 0);
    if version == Version::V2 {
        // In a control group namespace, or with this option, what is written from outside ends the sandbox of 2026 (measured).
        if let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces") {
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
        }
        for mount in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten().filter(|m| is_cgroup(m))
        {
            if let Some(Value::Array(options)) = mount.get_mut("options") {
                options.retain(|option| option != "nsdelegate");
            }
        }
        if let Some(pids) = pids.filter(|_| is_root)
            && let Some(limit) = spec.pointer_mut("/linux/resources/pids/limit")
        {
            *limit = json!(wall::tasks(pids));
        }
    }
    // gVisor makes the group with the mount, and none without. That of version 1 stays when its container goes, and a second one of that name fails
    // on it: only for what cannot be without.
    let memory = spec.pointer("/linux/resources/memory/limit").and_then(Value::as_u64).is_some_and(|limit| limit > 0);
    let needed = match version {
        Version::V1 => !is_root && memory,
        Version::V2 => !is_root || pids.is_some(),
    };
    if needed {
        let Some(Value::Array(mounts)) = spec.as_object_mut().map(|spec| spec.entry("mounts").or_insert(json!([])))
        else {
            return; // runsc refuses it with its own words
        };
        if !mounts.iter().any(is_cgroup) {
            let options = json!(["nosuid", "noexec", "nodev", "ro"]);
            mounts.push(json!({"destination": MOUNTED, "type": "cgroup", "source": "cgroup", "options": options}));
        }
    }
}

fn is_cgroup(mount: &Value) -> bool {
    mount["type"] == "cgroup" || mount["type"] == "cgroup2"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_both_kinds_say_is_the_same_to_us() {
        let v1 = ["1024\n", "user 2\nsystem 1\n", "3\n"];
        let v2 = ["1024", "usage_usec 30000\nuser_usec 20000\nsystem_usec 10000\nnice_usec 0", "3"];
        let expected = Counted { memory: 1024, user: 20_000_000, system: 10_000_000, pids: 3 };
        for (version, said) in [(Version::V1, v1), (Version::V2, v2)] {
            let answers = said.map(|text| Some(text.to_owned()));
            assert_eq!(counted(version, &answers), Some(expected), "{version:?}");
            assert_eq!(counted(version, &[answers[0].clone(), None, answers[2].clone()]), None);
            assert_eq!(questions(version, "c").len(), said.len());
        }
    }

    #[test]
    fn limits_are_written_as_each_kind_has_them() {
        let limits = |json| Resources::parse(&json).unwrap();
        let some = limits(json!({"memory": {"limit": 5}, "cpu": {"quota": 7, "period": 9}, "pids": {"limit": 3}}));
        for (version, limits, expected) in [
            (Version::V1, &some, "memory.limit_in_bytes=5 cpu.cfs_quota_us=7 cpu.cfs_period_us=9"),
            (Version::V2, &some, "memory.max=5 cpu.max=7 9 pids.max=3"),
            (Version::V2, &Resources::default(), "memory.max=max cpu.max=max pids.max=max"),
        ] {
            let said = settings(version, "c", limits);
            let said: Vec<_> = said.iter().map(|set| format!("{}={}", set.name(), set.value)).collect();
            assert_eq!(said.join(" "), expected);
        }
    }

    #[test]
    fn a_container_gets_a_group_where_it_is_counted_or_held_by_one() {
        let (cgroup, host) =
            (json!({"type": "cgroup", "destination": "/x", "options": ["ro", "nsdelegate"]}), json!(10));
        for (version, is_root, mounts, pids, (count, host_pids)) in [
            (Version::V2, true, json!([]), json!(null), (0, json!(null))),
            (Version::V2, true, json!([]), json!(0), (0, json!(0))),
            (Version::V2, true, json!([]), host.clone(), (1, json!(wall::tasks(10)))),
            (Version::V1, true, json!([]), host.clone(), (0, host.clone())),
            (Version::V1, false, json!([]), json!(null), (0, json!(null))),
            (Version::V2, false, json!([]), host.clone(), (1, host.clone())),
            (Version::V2, false, json!([cgroup]), json!(null), (1, json!(null))),
            (Version::V1, false, json!([cgroup]), json!(null), (1, json!(null))),
        ] {
            let namespaces = json!([{"type": "pid"}, {"type": "cgroup"}]);
            let mut spec =
                json!({"mounts": mounts, "linux": {"namespaces": namespaces, "resources": {"pids": {"limit": pids}}}});
            prepare(&mut spec, version, is_root);
            assert_eq!(spec["mounts"].as_array().unwrap().len(), count, "{version:?} {is_root} {spec}");
            assert_eq!(spec["linux"]["resources"]["pids"]["limit"], host_pids, "{version:?} {is_root}");
            let (namespaces, text) = (spec["linux"]["namespaces"].as_array().unwrap().len(), spec.to_string());
            assert_eq!(
                (namespaces == 1, !text.contains("nsdelegate") || version == Version::V1),
                (version == Version::V2, true)
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_a_sandbox_says_of_itself_is_a_number_or_nothing(
            answers in prop::collection::vec(prop::option::of(crate::arbitrary::text()), 0..4),
        ) {
            for version in [Version::V1, Version::V2] {
                let _ = counted(version, &answers);
            }
        }

        #[test]
        fn whatever_a_spec_holds_it_is_prepared_or_left_alone(spec in crate::arbitrary::altered(json!({
            "mounts": [{"type": "cgroup", "destination": "/sys/fs/cgroup", "options": ["ro"]}],
            "linux": {"resources": {"pids": {"limit": 5}}, "namespaces": [{"type": "cgroup"}]},
        })), is_root: bool) {
            for version in [Version::V1, Version::V2] {
                prepare(&mut spec.clone(), version, is_root);
            }
        }
    }
}
