//! What a spec gives a workload, in few words: computed from the spec that a backend got, whoever made it. It is attested,
//! so it is small (a typical one is less than 1 KiB of JSON) and has nothing that a workload chose freely but paths.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::files::{is_bind, is_writable};
use super::process::SETS;
use super::shape::text;

/// A list of at most this many names is written out.
const FEW: usize = 16;
/// And of at most this many bytes.
const SHORT: usize = 256;

/// Names, sorted: written out where there are few.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Names {
    /// Each.
    Listed(Vec<String>),
    /// How many, and the sha256 (hex) of them all, joined by line feeds.
    Counted {
        /// Of names.
        count: usize,
        /// In hex.
        sha256: String,
    },
}

/// The system call filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Seccomp {
    /// The word "none".
    None(&'static str),
    /// There is one.
    Profile {
        /// What happens to a call that no rule names.
        default_action: String,
        /// Of the profile as JSON with sorted keys, in hex.
        sha256: String,
    },
}

/// Namespaces by kind; one that is in neither list is not the sandbox's own by the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    /// Made for it.
    pub new: Vec<String>,
    /// Joined by a path.
    pub joined: Vec<String>,
}

/// Mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mounts {
    /// Of all kinds.
    pub count: usize,
    /// Where files of the host can be written to, by their places inside.
    pub writable_binds: Names,
    /// Where they can only be read.
    pub read_only_binds: Names,
}

/// Computed from a spec alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// By set, without `CAP_`; an empty set is left out.
    pub capabilities: BTreeMap<&'static str, Names>,
    /// Set-uid bits have no effect.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// How many paths are hidden.
    pub masked_paths: usize,
    /// How many paths are protected from writing.
    pub readonly_paths: usize,
    /// Devices beside those that every container has, by path.
    pub devices: Names,
    /// Its own and others'.
    pub namespaces: Namespaces,
    /// The image cannot be written to.
    pub readonly_rootfs: bool,
    /// What is mounted.
    pub mounts: Mounts,
    /// Soft and hard limit by name, without `RLIMIT_`.
    pub rlimits: BTreeMap<String, (u64, u64)>,
    /// Of the first process.
    pub uid: u64,
    /// Of the first process.
    pub gid: u64,
    /// There is an AppArmor profile.
    pub apparmor: bool,
    /// There is an SELinux label.
    pub selinux: bool,
}

/// The summary of any spec; what is absent or of the wrong type counts as not there.
pub fn summary(spec: &Value) -> Summary {
    let items = |pointer: &str| spec.pointer(pointer).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let maps = |pointer: &str| items(pointer).iter().filter_map(Value::as_object);
    let flag = |pointer: &str| spec.pointer(pointer).and_then(Value::as_bool).unwrap_or_default();
    let number = |pointer: &str| spec.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    let given = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let set = |set| {
        let given = items(&format!("/process/capabilities/{set}")).iter().filter_map(Value::as_str);
        let short: Vec<_> = given.map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned()).collect();
        (!short.is_empty()).then(|| (set, names(short)))
    };
    let spaces = |joined: bool| {
        let these = maps("/linux/namespaces").filter(|space| text(space, "path").is_empty() != joined);
        let mut kinds: Vec<_> = these.map(|space| text(space, "type").to_owned()).collect();
        kinds.sort();
        kinds
    };
    let bound = |writable: bool| {
        let all = items("/mounts").iter().filter(|mount| is_bind(mount)).filter_map(Value::as_object);
        let these = all.filter(|mount| is_writable(mount) == writable);
        names(these.map(|mount| text(mount, "destination").to_owned()).collect())
    };
    let limit = |limit: &Map<String, Value>| {
        let end = |end| limit.get(end).and_then(Value::as_u64).unwrap_or_default();
        let kind = text(limit, "type");
        (kind.strip_prefix("RLIMIT_").unwrap_or(kind).to_owned(), (end("soft"), end("hard")))
    };
    Summary {
        capabilities: SETS.into_iter().filter_map(set).collect(),
        no_new_privileges: flag("/process/noNewPrivileges"),
        seccomp: seccomp(spec.pointer("/linux/seccomp")),
        masked_paths: items("/linux/maskedPaths").len(),
        readonly_paths: items("/linux/readonlyPaths").len(),
        devices: names(maps("/linux/devices").map(|device| text(device, "path").to_owned()).collect()),
        namespaces: Namespaces { new: spaces(false), joined: spaces(true) },
        readonly_rootfs: flag("/root/readonly"),
        mounts: Mounts { count: items("/mounts").len(), writable_binds: bound(true), read_only_binds: bound(false) },
        rlimits: maps("/process/rlimits").map(limit).collect(),
        uid: number("/process/user/uid"),
        gid: number("/process/user/gid"),
        apparmor: given("/process/apparmorProfile"),
        selinux: given("/process/selinuxLabel"),
    }
}

fn names(mut names: Vec<String>) -> Names {
    names.sort();
    names.dedup();
    let bytes: usize = names.iter().map(String::len).sum();
    match names.len() <= FEW && bytes <= SHORT {
        true => Names::Listed(names),
        false => Names::Counted { count: names.len(), sha256: hex(names.join("\n").as_bytes()) },
    }
}

fn seccomp(profile: Option<&Value>) -> Seccomp {
    match profile.and_then(Value::as_object).filter(|profile| !profile.is_empty()) {
        None => Seccomp::None("none"),
        Some(profile) => Seccomp::Profile {
            default_action: text(profile, "defaultAction").chars().take(FEW).collect(),
            sha256: hex(Value::Object(profile.clone()).to_string().as_bytes()),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec_with;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_summary_is_small_and_says_what_there_is() {
        let capabilities =
            ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"];
        let capabilities: Vec<_> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
        let mut spec = spec_with(
            "/process/capabilities",
            json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}),
        );
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]});
        spec["linux"]["devices"] = json!([{"path": "/dev/kvm", "type": "c"}]);
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]);
        spec["mounts"] = json!([
            {"destination": "/w", "type": "bind", "source": "/a", "options": ["rbind"]},
            {"destination": "/r", "source": "/a", "options": ["bind", "ro"]},
            {"destination": "/t", "type": "tmpfs", "source": "tmpfs"},
        ]);
        spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]);
        let json = serde_json::to_value(summary(&spec)).unwrap();
        assert!(json.to_string().len() <= 1024, "{json}");
        let names = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "NET_RAW", "SETFCAP", "SETGID", "SETUID"];
        assert_eq!(json["capabilities"], json!({"bounding": names, "effective": names, "permitted": names}));
        assert_eq!(json["mounts"], json!({"count": 3, "writableBinds": ["/w"], "readOnlyBinds": ["/r"]}));
        assert_eq!(json["namespaces"], json!({"new": ["pid"], "joined": ["network"]}));
        assert_eq!(json["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!((&json["rlimits"], &json["devices"]), (&json!({"NOFILE": [1, 2]}), &json!(["/dev/kvm"])));
        let bare = serde_json::to_value(summary(&json!({}))).unwrap();
        assert_eq!((&bare["seccomp"], &bare["noNewPrivileges"]), (&json!("none"), &json!(false)));
        let many: Vec<_> = (0..100).map(|n| json!({"path": format!("/dev/x{n}")})).collect();
        let long = serde_json::to_value(summary(&json!({"linux": {"devices": many}}))).unwrap();
        assert_eq!(long["devices"]["count"], 100);
    }
}
