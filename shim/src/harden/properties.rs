//! What holds for any spec: it is hardened for good or refused, and never gets more than it asks for.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::given::given;
use super::tests::policy;
use super::tests::{KINDS, PROFILES, private};
use super::*;

/// Words that specs are made of, so that arbitrary JSON reaches the rules.
const KEYS: [&str; 36] = [
    "process",
    "root",
    "mounts",
    "linux",
    "annotations",
    "capabilities",
    "bounding",
    "ambient",
    "rlimits",
    "type",
    "soft",
    "hard",
    "noNewPrivileges",
    "apparmorProfile",
    "readonly",
    "path",
    "destination",
    "source",
    "options",
    "namespaces",
    "devices",
    "major",
    "minor",
    "resources",
    "allow",
    "access",
    "maskedPaths",
    "readonlyPaths",
    "seccomp",
    "defaultAction",
    "rootfsPropagation",
    "sysctl",
    "umask",
    "uidMappings",
    "cgroupsPath",
    "io.kubernetes.cri.container-type",
];
const TEXTS: [&str; 28] = [
    "CAP_CHOWN",
    "net_raw",
    "CAP_FLY",
    "bind",
    "rbind",
    "ro",
    "rw",
    "shared",
    "proc",
    "tmpfs",
    "/proc",
    "/proc/sys",
    "/sys",
    "/srv",
    "/..",
    "/var/lib/nerdctl/x",
    "network",
    "mount",
    "pid",
    "/proc/1/ns/net",
    "c",
    "b",
    "rwm",
    "RLIMIT_CORE",
    "container",
    "SCMP_ACT_ALLOW",
    "fs.nr_open",
    "",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..300).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::sample::select(&TEXTS[..]).prop_map(Value::from),
        ".{0,4}".prop_map(Value::from),
    ]
}

fn any_object() -> impl Strategy<Value = Value> {
    let value = scalar().prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(&KEYS[..]), inner), 0..6)
                .prop_map(|entries| entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    });
    prop::collection::vec((prop::sample::select(&KEYS[..]), value), 0..8)
        .prop_map(|entries| entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A spec of the right shape with the contents of chance: most of these are not refused.
fn any_spec() -> impl Strategy<Value = Value> {
    let words = |from: &'static [&'static str]| prop::collection::vec(prop::sample::select(from), 0..4);
    let mount = (
        prop::sample::select(&["/x", "/proc", "/proc/", "/dev/shm"][..]),
        prop::sample::select(&["bind", "proc", "tmpfs", "mqueue"][..]),
        prop::sample::select(&["/srv", "/srv/../srv", "/var/lib/nerdctl/x", "/var/lib/nerdctl/../x", "shm"][..]),
        words(&["bind", "rbind", "ro", "rw", "rro", "rslave"]),
    );
    let mount = mount.prop_map(|(destination, kind, source, options)| {
        json!({"destination": destination, "type": kind, "source": source, "options": options})
    });
    let masked = words(&["/proc/kcore", "/sys/firmware", "/proc/irq", "/proc/acpi/../scsi"]);
    let read_only = words(&["/proc/sys", "/proc/self/x", "/proc/irq", "/sys/firmware", "/proc/acpi/../scsi"]);
    let capabilities = || words(&["CAP_CHOWN", "net_raw", "CAP_NET_BIND_SERVICE", "CAP_FLY"]);
    let device = prop::sample::select(&[(1, 3), (5, 2), (1, 5)][..])
        .prop_map(|(major, minor)| json!({"path": "/dev/x", "type": "c", "major": major, "minor": minor}));
    let limit = (prop::sample::select(&["RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_AS"][..]), any::<u64>())
        .prop_map(|(kind, most)| json!({"type": kind, "soft": most / 2, "hard": most}));
    let lists =
        (prop::collection::vec(mount, 0..4), prop::collection::vec(device, 0..3), prop::collection::vec(limit, 0..4));
    (lists, masked, read_only, capabilities(), capabilities(), any::<bool>()).prop_map(
        |((mounts, devices, limits), masked, read_only, bounding, ambient, user)| {
            let mut namespaces = private();
            let mut mappings = json!([]);
            if user {
                mappings = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
                namespaces.as_array_mut().unwrap().push(json!({"type": "user"}));
            }
            json!({
                "process": {"rlimits": limits, "capabilities": {"bounding": bounding, "ambient": ambient}},
                "mounts": mounts,
                "linux": {
                    "namespaces": namespaces, "devices": devices, "maskedPaths": masked, "readonlyPaths": read_only,
                    "uidMappings": mappings, "gidMappings": mappings,
                },
            })
        },
    )
}

fn is_never_more_and_stays(spec: &Value, profile: Profile, kind: BackendKind) -> Result<bool, TestCaseError> {
    let _ = summary(spec);
    let Ok(once) = harden(spec.clone(), policy(profile, kind)) else { return Ok(false) };
    prop_assert!(given(&once).is_subset(&given(spec)), "{profile:?} {kind:?}: {once}");
    let twice = harden(once.clone(), policy(profile, kind));
    prop_assert!(twice.as_ref().is_ok_and(|twice| *twice == once), "{profile:?} {kind:?}: {once} becomes {twice:?}");
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_object_is_hardened_for_good_or_refused_and_never_gets_more(spec in any_object()) {
        for (profile, kind) in PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind))) {
            is_never_more_and_stays(&spec, profile, kind)?;
        }
    }

    #[test]
    fn a_well_formed_spec_never_gets_more(spec in any_spec()) {
        for (profile, kind) in PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind))) {
            prop_assert!(is_never_more_and_stays(&spec, profile, kind)?, "{profile:?} {kind:?}: refused");
        }
    }
}
