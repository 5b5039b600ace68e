//! What each rule makes of what, as tables.

use serde_json::{Value, json};

use super::BackendKind::{Gvisor, HostKernel, Machine};
use super::*;

pub const PROFILES: [Profile; 2] = [Profile::Default, Profile::Strict];
pub const KINDS: [BackendKind; 3] = [Gvisor, Machine, HostKernel];

pub fn private() -> Value {
    json!(["mount", "network", "ipc", "pid", "uts"].map(|kind| json!({"type": kind})))
}

/// A spec that is as `ctr run` makes it in what matters here, with `value` put at a JSON pointer.
pub fn spec_with(pointer: &str, value: Value) -> Value {
    let mut spec = json!({
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "rlimits": []},
        "root": {"path": "/rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "linux": {"namespaces": private()},
    });
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    spec
}

/// What comes out at the pointer, or the refusal.
fn hardened(pointer: &str, value: &Value, profile: Profile, kind: BackendKind) -> Result<Value, String> {
    let spec = harden(spec_with(pointer, value.clone()), policy(profile, kind)).map_err(|e| e.to_string())?;
    Ok(spec.pointer(pointer).cloned().unwrap_or_default())
}

/// Rows: pointer, what is there, what default makes of it in gVisor, a machine and on the host's kernel, and strict in
/// each; a refusal is a text that it contains.
type Row<'a> = (&'a str, Value, [Result<Value, &'a str>; 6]);

#[track_caller]
fn check(rows: &[Row]) {
    for (pointer, given, expected) in rows {
        let policies = PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind)));
        for ((profile, kind), expected) in policies.zip(expected) {
            let got = hardened(pointer, given, profile, kind);
            match (&got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{pointer} {given} {profile:?} {kind:?}"),
                (Err(got), Err(expected)) => {
                    assert!(got.contains(expected), "{pointer} {given} {profile:?} {kind:?}: {got}");
                    let field = pointer.trim_start_matches('/').replace('/', ".");
                    assert!(got.starts_with(&field), "the refusal does not name {field}: {got}");
                }
                _ => panic!("{pointer} {given} {profile:?} {kind:?}: {got:?}, not {expected:?}"),
            }
        }
    }
}

/// The same whatever the backend.
fn anywhere<'a>(default: Result<Value, &'a str>, strict: Result<Value, &'a str>) -> [Result<Value, &'a str>; 6] {
    [default.clone(), default.clone(), default, strict.clone(), strict.clone(), strict]
}

fn same(value: &Value) -> [Result<Value, &'static str>; 6] {
    anywhere(Ok(value.clone()), Ok(value.clone()))
}

/// As an operator has it who has set nothing.
pub(super) fn policy(profile: Profile, kind: BackendKind) -> Policy {
    let (build, isolation, sysctls) = Default::default();
    Policy { profile, kind, build, isolation, sysctls }
}

#[test]
fn the_hosts_network_is_for_those_whom_the_operator_lets_have_it_and_never_strict() {
    let all = |network: &str| {
        let kinds = ["mount", network, "ipc", "pid", "uts"].map(|kind| json!({"type": kind}));
        json!({"linux": {"namespaces": kinds}})
    };
    assert!(has_host_network(&all("cgroup")) && has_host_network(&json!({})) && !has_host_network(&all("network")));
    for (profile, host_network, allowed) in [
        (Profile::Default, false, false),
        (Profile::Default, true, true),
        (Profile::Strict, false, false),
        (Profile::Strict, true, false),
    ] {
        for kind in KINDS {
            let isolation = IsolationSettings { allow_host_network: host_network, ..Default::default() };
            let harden = |spec| harden(spec, Policy { isolation, ..policy(profile, kind) }).map_err(|e| e.to_string());
            match harden(all("cgroup")) {
                Ok(hardened) => assert!(allowed && has_host_network(&hardened)),
                Err(error) => assert!(!allowed && error.contains("isolation.allow_host_network"), "{error}"),
            }
            // Not by a path, which may be another's.
            let mut joined = all("network");
            joined["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net");
            assert!(harden(joined).is_err());
        }
    }
}

#[test]
fn a_profile_is_one_that_there_is_or_the_error_says_which_there_are() {
    assert_eq!("default".parse::<Profile>().unwrap(), Profile::Default);
    assert_eq!("strict".parse::<Profile>().unwrap(), Profile::Strict);
    for name in ["", "Strict", "none"] {
        assert!(name.parse::<Profile>().unwrap_err().to_string().contains("allowed: default, strict"), "{name}");
    }
}

#[test]
fn a_shim_that_is_not_katas_is_taken_to_share_the_hosts_kernel() {
    let delegate = |shim: &str| {
        Maker::Delegate("x".into(), crate::settings::DelegateSettings { shim: shim.into(), config_path: None })
    };
    assert_eq!(BackendKind::of(&Maker::Gvisor(None)), Gvisor);
    assert_eq!(BackendKind::of(&delegate("/opt/kata/bin/containerd-shim-kata-v2")), Machine);
    assert_eq!(BackendKind::of(&delegate("containerd-shim-runc-v2")), HostKernel);
    assert_eq!(BackendKind::of(&delegate("/opt/containerd-shim-kata-v2/shim")), HostKernel);
}

#[test]
fn capabilities_are_known_ones_that_the_backend_gives_and_strict_leaves_one() {
    let at = "/process/capabilities";
    let given = json!({"bounding": ["CAP_CHOWN", "net_raw", "CAP_FLY", "cap_net_bind_service"], "ambient": null});
    let gvisor = Ok(json!({"bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"], "ambient": null}));
    let others = Ok(json!({"bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"], "ambient": null}));
    let strict = Ok(json!({"bounding": ["CAP_NET_BIND_SERVICE"], "ambient": null}));
    check(&[
        (at, given, [gvisor, others.clone(), others, strict.clone(), strict.clone(), strict]),
        (at, Value::Null, same(&Value::Null)),
        ("/process/capabilities", json!("all"), anywhere(Err("process.capabilities"), Err("must be in an object"))),
    ]);
}

#[test]
fn no_new_privileges_is_as_asked_and_always_under_strict() {
    let at = "/process/noNewPrivileges";
    let yes = || Ok(json!(true));
    check(&[
        (at, json!(false), anywhere(Ok(json!(false)), yes())),
        (at, json!(true), anywhere(yes(), yes())),
        (at, Value::Null, anywhere(Ok(Value::Null), yes())),
    ]);
}

#[test]
fn limits_are_as_asked_and_under_strict_capped() {
    let at = "/process/rlimits";
    let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    let core = limit("RLIMIT_CORE", 0, 0);
    let few = limit("RLIMIT_NOFILE", 1024, 4096);
    let asked = json!([limit("RLIMIT_NOFILE", 1024, 1 << 20), limit("RLIMIT_NPROC", 5, 5), limit("RLIMIT_CORE", 9, 9)]);
    let capped = json!([limit("RLIMIT_NOFILE", 1024, 65_536), limit("RLIMIT_NPROC", 5, 5), core]);
    check(&[
        (at, Value::Null, anywhere(Ok(Value::Null), Ok(json!([core])))),
        (at, json!([few]), anywhere(Ok(json!([few])), Ok(json!([few, core])))),
        (at, asked.clone(), anywhere(Ok(asked), Ok(capped))),
    ]);
}

#[test]
fn labels_stay_where_they_mean_something() {
    for at in ["/process/apparmorProfile", "/process/selinuxLabel", "/linux/mountLabel"] {
        let (none, kept) = (Ok(Value::Null), Ok(json!("x")));
        check(&[(at, json!("x"), [none.clone(), kept.clone(), kept.clone(), none, kept.clone(), kept])]);
    }
}

#[test]
fn the_image_is_read_only_under_strict() {
    let read_only = || Ok(json!({"path": "/r", "readonly": true}));
    let writable = json!({"path": "/r"});
    check(&[
        ("/root", writable.clone(), anywhere(Ok(writable), read_only())),
        ("/root", json!({"path": "/r", "readonly": true}), anywhere(read_only(), read_only())),
    ]);
}

fn bind(source: &str, options: &[&str]) -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro"]},
        {"destination": "/x", "type": "bind", "source": source, "options": options},
    ])
}

#[test]
fn the_hosts_tree_and_proc_are_bound_nowhere_and_its_sys_and_dev_to_read() {
    let at = "/mounts";
    let refused = |why| anywhere(Err(why), Err(why));
    for source in ["/", "//", "/..", "/proc", "/proc/1/root", "/tmp/../proc/sys"] {
        check(&[(at, bind(source, &["rbind", "ro"]), refused("omit it"))]);
    }
    for source in ["/sys", "/sys/fs/cgroup/", "/dev", "/dev/."] {
        check(&[(at, bind(source, &["rbind", "rw"]), refused("add the option ro"))]);
        check(&[(at, bind(source, &["ro", "rw", "rbind"]), refused("add the option ro"))]);
        check(&[(at, bind(source, &["rbind", "ro"]), same(&bind(source, &["rbind", "ro"])))]);
    }
    let devpts = json!([{"destination": "/proc", "type": "proc", "source": "/proc", "options": ["ro"]}]);
    check(&[(at, devpts.clone(), same(&devpts))]); // not a bind mount
}

#[test]
fn disks_and_overlays_are_not_mounted_under_strict() {
    let mount = |kind: &str| {
        let proc = bind("/srv", &["ro"])[0].clone();
        json!([proc, {"destination": "/x", "type": kind, "source": "/dev/vda"}])
    };
    for kind in ["ext4", "overlay", "9p", ""] {
        let (kept, gvisor, strict) = (|| Ok(mount(kind)), Err("gVisor has not"), || Err("strict mounts bind, proc"));
        check(&[("/mounts", mount(kind), [gvisor, kept(), kept(), strict(), strict(), strict()])]);
    }
    for kind in ["tmpfs", "devpts", "mqueue", "cgroup", "sysfs"] {
        check(&[("/mounts", mount(kind), same(&mount(kind)))]);
    }
}

#[test]
fn files_of_the_host_are_to_read_under_strict_but_for_volumes() {
    let shallow = bind("/srv", &["bind", "ro"]);
    let (deep, asked) = (bind("/srv", &["rbind", "ro"]), bind("/srv", &["rbind", "rw"]));
    let as_asked = || Ok(asked.clone());
    let rows = [as_asked(), as_asked(), as_asked(), Ok(deep.clone()), Ok(deep), Ok(bind("/srv", &["rbind", "rro"]))];
    check(&[
        ("/mounts", asked.clone(), rows),
        ("/mounts", bind("/srv", &["bind"]), anywhere(Ok(bind("/srv", &["bind"])), Ok(shallow))),
    ]);
    for volume in ["/var/lib/kubelet/pods/1/volumes/x", "/var/lib/nerdctl/1/volumes/x"] {
        check(&[("/mounts", bind(volume, &["rbind", "rw"]), same(&bind(volume, &["rbind", "rw"])))]);
    }
    let climbing = "/var/lib/nerdctl/../../../srv";
    check(&[(
        "/mounts",
        bind(climbing, &["bind"]),
        anywhere(Ok(bind(climbing, &["bind"])), Ok(bind(climbing, &["bind", "ro"]))),
    )]);
}

#[test]
fn mounts_do_not_come_back_to_the_host_under_strict() {
    let with = |options: &[&str]| bind("/srv", options);
    let given = with(&["bind", "ro", "rshared"]);
    let (kept, strict) = (|| Ok(given.clone()), || Ok(with(&["bind", "ro"])));
    let root = |kept: Result<Value, &'static str>| {
        [Err("its own"), kept.clone(), kept, Ok(Value::Null), Ok(Value::Null), Ok(Value::Null)]
    };
    check(&[
        ("/mounts", given.clone(), [Err("its own"), kept(), kept(), strict(), strict(), strict()]),
        ("/linux/rootfsPropagation", json!("shared"), root(Ok(json!("shared")))),
        ("/linux/rootfsPropagation", json!("rslave"), same(&json!("rslave"))),
    ]);
}

#[test]
fn proc_is_read_only_under_strict_where_the_lists_are_ignored() {
    let proc =
        |options: &[&str]| json!([{"destination": "/proc", "type": "proc", "source": "proc", "options": options}]);
    let of = |strict: Value, given: &Value| {
        let given = || Ok(given.clone());
        [given(), given(), given(), Ok(strict), given(), given()]
    };
    let (asked, none) = (proc(&["nosuid", "rw"]), json!([]));
    check(&[
        ("/mounts", asked.clone(), of(proc(&["nosuid", "ro"]), &asked)),
        ("/mounts", none.clone(), of(proc(&["nosuid", "noexec", "nodev", "ro"]), &none)),
    ]);
}

#[test]
fn a_namespace_of_the_hosts_own_is_refused_and_named() {
    let without = |kind: &str| {
        let all = private();
        let kept = all.as_array().unwrap().iter().filter(|space| space["type"] != kind);
        Value::Array(kept.cloned().collect())
    };
    let at = "/linux/namespaces";
    for kind in ["mount", "network", "ipc"] {
        check(&[(at, without(kind), anywhere(Err(kind), Err(kind)))]);
    }
    let (pid, uts) = (without("pid"), without("uts"));
    let refused = || Err("add {\"type\":\"pid\"}");
    let isolation = IsolationSettings { allow_host_pid: true, ..Default::default() };
    for (profile, kind) in PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind))) {
        let made = harden(spec_with(at, without("pid")), Policy { isolation, ..policy(profile, kind) }).is_ok();
        assert_eq!(made, profile == Profile::Default && kind != HostKernel, "{profile:?} {kind:?}");
    }
    check(&[
        (at, private(), same(&private())),
        (at, pid.clone(), anywhere(refused(), refused())),
        (at, uts.clone(), anywhere(Ok(uts), Err("uts is missing"))),
        (at, Value::Null, anywhere(Err("mount is missing"), Err("mount is missing"))),
    ]);
}

#[test]
fn a_joined_namespace_is_not_the_hosts_and_under_strict_the_pods() {
    let joined = |kind: &str, path: &str| {
        let mut all = private();
        all.as_array_mut().unwrap().push(json!({"type": kind, "path": path}));
        all
    };
    let at = "/linux/namespaces";
    for path in ["/proc/1/ns/net", "/proc/self/ns/net", "//proc/./1/ns/net", "/proc/thread-self/ns/net"] {
        check(&[(at, joined("network", path), anywhere(Err("omit the path"), Err("omit the path")))]);
    }
    let (net, pid) = (joined("network", "/run/netns/a"), joined("pid", "/proc/77/ns/pid"));
    check(&[
        (at, net.clone(), same(&net)),
        (at, pid.clone(), anywhere(Ok(pid.clone()), Err("joins none but its pod's"))),
    ]);
    let mut member = spec_with(at, pid.clone());
    member["annotations"] = json!({"io.kubernetes.cri.container-type": "container"});
    assert_eq!(harden(member, policy(Profile::Strict, HostKernel)).unwrap()["linux"]["namespaces"], pid);
}

#[test]
fn devices_are_names_in_gvisor_and_the_hosts_memory_is_nobodys() {
    let device = |path: &str, kind: &str, major: i64, minor: i64| json!([{"path": path, "type": kind, "major": major, "minor": minor}]);
    let at = "/linux/devices";
    let (null, fifo) = (device("/dev/null", "c", 1, 3), json!([{"path": "/dev/fifo", "type": "p"}]));
    let (disk, memory) = (device("/dev/vda", "b", 254, 0), device("/dev/renamed", "u", 1, 1));
    let ok = |value: &Value| Ok(value.clone());
    let (no_device, no_memory) = (|| Err("gives no device of the host"), || Err("memory"));
    check(&[
        (at, null.clone(), same(&null)),
        (at, fifo.clone(), same(&fifo)),
        (at, disk.clone(), anywhere(ok(&disk), no_device())),
        (at, memory.clone(), [ok(&memory), ok(&memory), no_memory(), no_device(), no_device(), no_memory()]),
    ]);
}

#[test]
fn leave_for_all_devices_is_refused_on_the_hosts_kernel() {
    let at = "/linux/resources/devices";
    let check = |rule: Value, expected: [bool; 6]| {
        let policies = PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind)));
        for ((profile, kind), refused) in policies.zip(expected) {
            let spec = spec_with("/linux/resources", json!({"devices": [rule]}));
            let got = harden(spec, policy(profile, kind)).map(|spec| spec.pointer(at).cloned());
            match got {
                Ok(kept) => assert!(!refused && kept == Some(json!([rule])), "{rule} {profile:?} {kind:?}: {kept:?}"),
                Err(e) => assert!(refused && e.to_string().starts_with("linux.resources.devices"), "{rule}: {e}"),
            }
        }
    };
    let all = [false, false, true, true, true, true];
    check(json!({"allow": true, "access": "rwm"}), all);
    check(json!({"allow": true, "type": "b", "major": -1, "access": "r"}), all);
    check(json!({"allow": true}), all);
    check(json!({"allow": true, "type": "c", "access": "m"}), [false; 6]); // to make one
    check(json!({"allow": true, "major": 1, "minor": 3, "access": "rwm"}), [false; 6]);
    check(json!({"allow": false, "access": "rwm"}), [false; 6]);
}

fn lists(field: &str, given: Value, profile: Profile, kind: BackendKind) -> Result<Vec<String>, String> {
    let got = hardened(&format!("/linux/{field}"), &given, profile, kind)?;
    Ok(serde_json::from_value(got).unwrap_or_default())
}

#[test]
fn masked_and_read_only_paths_are_there_where_the_kernel_is_the_hosts() {
    for (field, one) in [("maskedPaths", "/proc/kcore"), ("readonlyPaths", "/proc/sys")] {
        for nothing in [Value::Null, json!([])] {
            let default = |kind| lists(field, nothing.clone(), Profile::Default, kind).unwrap();
            assert!(default(Gvisor).is_empty() && default(Machine).is_empty());
            assert!(default(HostKernel).contains(&one.to_owned()));
        }
        assert_eq!(lists(field, json!(["/proc/irq"]), Profile::Default, HostKernel).unwrap(), ["/proc/irq"]);
        for kind in KINDS {
            let strict = lists(field, json!(["/proc/scsi/x"]), Profile::Strict, kind).unwrap();
            assert!(strict.contains(&one.to_owned()) && strict[0] == "/proc/scsi/x", "{kind:?}: {strict:?}");
        }
    }
    let mut unmasked = spec_with("/linux/maskedPaths", json!([]));
    unmasked["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let kept = harden(unmasked, policy(Profile::Default, HostKernel)).unwrap();
    assert_eq!((&kept["linux"]["maskedPaths"], kept["linux"].get("readonlyPaths")), (&json!([]), None));
}

#[test]
fn in_gvisor_the_lists_say_only_what_is_so() {
    let of = |field, path: &str, profile| lists(field, json!([path]), profile, Gvisor);
    for path in ["/etc/shadow", "/process", "/proc/../etc", "/proc/meminfo"] {
        assert_eq!(of("maskedPaths", path, Profile::Default).unwrap(), [path]); // made so by mounts
    }
    for (field, path) in [("maskedPaths", "etc"), ("readonlyPaths", "")] {
        assert!(of(field, path, Profile::Default).unwrap_err().contains("absolute"), "{path}");
    }
    for path in [
        "/proc",
        "/proc/mounts",
        "/proc/meminfo/x",
        "/proc/sys/net",
        "/proc/1",
        "/sys",
        "/sys/devices/system",
        "/sys/class",
        "/sys/devices/system/cpu/cpu0",
    ] {
        assert!(of("maskedPaths", path, Profile::Default).unwrap_err().contains("cannot be hidden"), "{path}");
    }
    for path in ["/proc/kcore", "/sys/firmware", "/sys/devices/system/cpu/cpu0/thermal_throttle"] {
        assert_eq!(of("maskedPaths", path, Profile::Default).unwrap(), [path]);
    }
    for path in ["/proc/sys", "/proc/sys/net", "/proc", "/proc/self/x", "/proc/7"] {
        assert_eq!(of("readonlyPaths", path, Profile::Default).unwrap(), Vec::<String>::new(), "{path}");
        assert!(of("readonlyPaths", path, Profile::Strict).unwrap().contains(&path.to_owned()), "{path}");
    }
    for path in ["/proc/bus", "/proc/sysrq-trigger", "/sys/firmware"] {
        assert_eq!(of("readonlyPaths", path, Profile::Default).unwrap(), [path]);
    }
}

#[test]
fn system_calls_are_few_under_strict_on_the_hosts_kernel_where_the_spec_says_nothing() {
    let of = |given: Value, profile, kind| hardened("/linux/seccomp", &given, profile, kind).unwrap();
    let theirs = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    for (profile, kind) in PROFILES.into_iter().flat_map(|profile| KINDS.map(|kind| (profile, kind))) {
        assert_eq!(of(theirs.clone(), profile, kind), theirs);
        let added = of(Value::Null, profile, kind);
        assert_eq!(added.is_null(), (profile, kind) != (Profile::Strict, HostKernel), "{profile:?} {kind:?}");
    }
    let ours = of(Value::Null, Profile::Strict, HostKernel);
    let names = ours["syscalls"][0]["names"].as_array().unwrap();
    for name in ["bpf", "mount", "unshare", "io_uring_setup", "keyctl"] {
        assert!(names.contains(&json!(name)), "{name}");
    }
    for name in ["read", "execve", "futex", "socket", "ptrace"] {
        assert!(!names.contains(&json!(name)), "{name}");
    }
}

#[test]
fn a_link_on_the_host_leads_no_rule_astray() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/proc", &link).unwrap();
    let spec = |source: &str, kind: &str| json!([{"destination": "/x", "type": kind, "source": source}]);
    let real = |mounts: Value| real_sources(json!({"mounts": mounts}))["mounts"].clone();
    let link = link.to_str().unwrap();
    assert_eq!(real(spec(link, "bind")), spec("/proc", "bind"));
    assert_eq!(real(spec(link, "tmpfs")), spec(link, "tmpfs"));
    assert_eq!(real(spec("/no/such", "bind")), spec("/no/such", "bind"));
    assert_eq!(real(spec(".", "bind")), spec(".", "bind")); // whose directory that is, the backend knows
    assert_eq!(real(json!([5, {"type": "bind"}])), json!([5, {"type": "bind"}]));
}
