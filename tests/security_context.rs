//! What a spec says of its process, its files and its limits is so inside, as under runc; what cannot be is refused in Create
//! with the field's name and the reason. docs/hardening.md is the table. (seccomp: `seccomp`; ids: `user_namespaces`.)

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::containerd::RUNTIME;
use crate::harness::specs::{RUNC, Specs};
use crate::harness::{Containerd, Node, Runsc, Setup, wait_until};
use crate::pod::{MEMBER, POD};

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// The host's `id` with a set-uid bit: it says whom it is run as, and who it has become.
fn put_set_uid_id(root: &Path) {
    let at = root.join("bin/set-uid-id");
    fs::copy("/usr/bin/id", &at).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o4755)).unwrap();
}

#[test]
fn a_set_uid_program_changes_whom_it_is_run_as_exactly_where_the_spec_allows_it() {
    let node = Node::start();
    let specs = Specs::of(&node);
    put_set_uid_id(specs.root());
    for (denied, expected) in [(false, "euid=0"), (true, "uid=1000")] {
        let mut spec = specs.spec("set-uid-id; grep NoNewPrivs /proc/self/status");
        spec["process"]["noNewPrivileges"] = json!(denied);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let said = specs.same(&spec);
        assert!(said.contains(expected) && said.contains("euid=0") != denied, "{denied}: {said}");
    }
}

#[test]
fn in_a_pod_of_both_kinds_each_container_and_each_exec_has_what_its_own_spec_says() {
    let node = Node::start();
    let ask = ["grep", "NoNewPrivs", "/proc/self/status"];
    node.run_detached("pod", &POD, &["sleep", "1000"]); // ctr denies it where nobody asks
    node.run_detached("free", &[&MEMBER[..], &["--allow-new-privs"]].concat(), &["sleep", "1000"]);
    node.run_detached("bound", &MEMBER, &["sleep", "1000"]);
    for (id, expected) in [("pod", "1"), ("free", "0"), ("bound", "1")] {
        let init = node.exec(id, "init", &["grep", "NoNewPrivs", "/proc/1/status"]).ok();
        assert_eq!(node.exec(id, "own", &ask).ok(), format!("NoNewPrivs:\t{expected}\n"), "{id}, init {init}");
    }
    for id in ["free", "bound", "pod"] {
        node.remove(id);
    }
    node.assert_nothing_left();
}

/// Paths of all kinds in a root: files, directories, links in and out.
fn put_tree(root: &Path) {
    for dir in ["data/dir", "data/deep", "opt/real"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["data/dir/file", "data/deep/file", "data/file", "opt/real/file"] {
        fs::write(root.join(file), "x\n").unwrap();
    }
    for (target, link) in [
        ("../opt/real", "data/relative"),
        ("/opt/real", "data/absolute"),
        ("../../../../../../data/file", "data/climbs"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
}

#[test]
fn what_is_masked_shows_nothing_and_what_is_read_only_cannot_be_written_anywhere_in_the_tree() {
    for runsc in [Runsc::Y2026, Runsc::Y2024] {
        let node = Node::with(Setup { runsc, ..Setup::default() });
        let specs = Specs::of(&node);
        put_tree(specs.root());
        let look = "cd /data; wc -c < file; ls dir | wc -l; ls relative/ | wc -l; ls /usr/share | wc -l; \
                    wc -c < /proc/meminfo | grep -c '^0$'";
        let mut spec = specs.spec(look);
        spec["linux"]["maskedPaths"] =
            json!(["/data/climbs", "/data/dir", "/data/absolute", "/usr/share", "/data/none", "/data/../proc/meminfo"]);
        assert_eq!(specs.same(&spec), "0\n0\n0\n0\n1\n", "{runsc:?}");
        let write = "for f in /data/file /data/dir/file /data/dir/new /data/relative/file /opt/real/new /data/deep/file /etc/new; do \
                     echo y 2>/dev/null >> $f && echo $f; done; rm -r /data/dir 2>/dev/null; cat /data/dir/file; true";
        let mut spec = specs.spec(write);
        spec["linux"]["readonlyPaths"] =
            json!(["/data/file", "/data/dir", "/data/relative", "/data/none", "/data/deep/../../etc"]);
        assert_eq!(specs.same(&spec), "/data/deep/file\nx\n", "{runsc:?}");
        node.assert_nothing_left();
    }
}

#[test]
fn masks_and_read_only_paths_cover_volumes_too_and_what_cannot_be_is_refused_by_name() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let volume = node.path("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    fs::write(volume.join("sub/file"), "x\n").unwrap();
    let mut spec =
        specs.spec("wc -c < /vol/sub/file; touch /vol/new || echo read-only; touch /other/sub/file && echo written");
    mount(&mut spec, bind(&volume, "/vol", &["rbind", "rw"]));
    mount(&mut spec, bind(&volume, "/other", &["rbind", "rw"]));
    spec["linux"]["maskedPaths"] = json!(["/vol/sub/file"]);
    spec["linux"]["readonlyPaths"] = json!(["/vol"]);
    assert_eq!(specs.same(&spec), "0\nread-only\nwritten\n");
    for (field, path, why) in [
        ("maskedPaths", "/", "the whole root"),
        ("maskedPaths", "/proc/mounts", "cannot be hidden"),
        ("maskedPaths", "data", "absolute"),
        ("readonlyPaths", "/other/sub", "mount it there by itself"),
        ("readonlyPaths", "/dev/shm/../pts/0", "gVisor's own devpts"),
    ] {
        let mut spec = spec.clone();
        spec["linux"][field] = json!([path]);
        let said = specs.refusal(&spec);
        assert!(said.contains(&format!("linux.{field}: ")) && said.contains(why), "{path}: {said}");
    }
}

#[test]
fn a_read_only_mount_is_read_only_however_it_is_said_and_the_last_word_counts() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let volume = node.path("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::copy("/bin/true", volume.join("true")).unwrap();
    let script = "touch /vol/new && echo written; /vol/true && echo run; true";
    for (options, expected) in [
        (&["rbind", "ro"][..], "run\n"),
        (&["rbind", "rro"], "run\n"),
        (&["rbind", "ro", "rw"], "written\nrun\n"),
        (&["rbind", "rw", "rro", "rnoexec"], ""),
        (&["rbind", "rslave"], "written\nrun\n"),
        (&["rbind", "rprivate", "noexec"], "written\n"),
    ] {
        let mut spec = specs.spec(script);
        mount(&mut spec, bind(&volume, "/vol", options));
        assert_eq!(specs.same(&spec), expected, "{options:?}");
    }
}

#[test]
fn a_mount_of_the_host_appears_in_a_slave_and_not_in_a_private_volume() {
    use nix::mount::{MntFlags, MsFlags, umount2};
    let node = Node::start();
    let volume = node.path("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    let (none, flags) = (None::<&str>, MsFlags::MS_SHARED);
    nix::mount::mount(Some(&volume), &volume, none, MsFlags::MS_BIND, none).unwrap();
    nix::mount::mount(none, &volume, none, flags, none).unwrap();
    for (id, word) in [("slave", "rslave"), ("private", "rprivate")] {
        let option = format!("type=bind,src={},dst=/vol,options=rbind:{word}", volume.display());
        node.run_detached(id, &["--mount", &option], &["sleep", "1000"]);
    }
    nix::mount::mount(Some("tmpfs"), &volume.join("sub"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(volume.join("sub/file"), "new\n").unwrap();
    let look = |id: &str| node.exec(id, "look", &["cat", "/vol/sub/file"]);
    let seen = ["slave", "private"].map(|id| (look(id).text(), look(id).status != 0));
    for id in ["slave", "private"] {
        node.remove(id);
    }
    umount2(&volume.join("sub"), MntFlags::MNT_DETACH).unwrap();
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(seen, [("new\n".to_owned(), false), (String::new(), true)]);
}

#[test]
fn groups_umask_and_limits_are_those_of_the_spec() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let script = "id -u; id -G; umask; ulimit -n; ulimit -Hn; ulimit -s; ulimit -c; grep -E 'Cap(Prm|Bnd)' /proc/self/status; umask 0; \
                  python3 -c 'import os\nfor n in range(99):\n  try: os.dup(0)\n  except OSError as e: print(e.errno); break'";
    let mut spec = specs.spec(script);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27});
    spec["process"]["capabilities"] =
        json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
    let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    spec["process"]["rlimits"] =
        json!([limit("RLIMIT_NOFILE", 33, 44), limit("RLIMIT_STACK", 1 << 20, 1 << 21), limit("RLIMIT_CORE", 0, 0)]);
    let said = specs.same(&spec);
    assert!(said.starts_with("1000\n1001 7 8\n0027\n33\n44\n1024\n0\n") && said.ends_with("\n24\n"), "{said}");
}

#[test]
fn an_exec_gets_what_it_asks_for_or_nothing() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let shim = node.direct("c");
    for (change, why) in [
        (json!({"user": {"uid": 0, "gid": 0, "umask": 0o77}}), "process.user.umask"),
        (json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]}), "process.rlimits"),
        (json!({"user": {"uid": 0, "gid": 0, "umask": 0o22}}), ""),
    ] {
        let mut process = json!({"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]});
        process.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let said = shim.try_exec(&process);
        assert_eq!(said.is_err(), !why.is_empty(), "{change}: {said:?}");
        assert!(said.err().unwrap_or_default().contains(why), "{change}");
    }
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn a_sysctl_is_set_or_so_anyway_or_refused_by_name_and_the_operator_may_let_it_pass() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let with = |script: &str, sysctls: Value| {
        let mut spec = specs.spec(script);
        spec["linux"]["sysctl"] = sysctls;
        spec
    };
    // Linux has one for all containers, and runc sets none; in gVisor it is the sandbox's.
    let set = with("cat /proc/sys/fs/nr_open", json!({"fs.nr_open": "5000"}));
    assert!(specs.run(RUNC, &set).stderr.contains("not in a separate kernel namespace"));
    assert_eq!(specs.run(RUNTIME, &set).ok(), "5000\n");
    // Everybody serves any port and pings.
    let open = "python3 -c 'import socket as s; s.socket().bind((\"127.0.0.1\", 80)); s.socket(2, 2, 1); print(1)'";
    let mut spec =
        with(open, json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(specs.same(&spec), "1\n");
    let matters = with("echo up", json!({"net.ipv4.ip_local_port_range": "20000 20100"}));
    assert_eq!(specs.run(RUNC, &matters).ok(), "up\n");
    let said = specs.refusal(&matters);
    assert!(
        said.contains("linux.sysctl: net.ipv4.ip_local_port_range") && said.contains("unsupported_sysctls"),
        "{said}"
    );
    fs::write(node.path("creto/etc/runtime.toml"), "[gvisor]\nunsupported_sysctls = \"warn\"\n").unwrap();
    assert_eq!(specs.run(RUNTIME, &matters).ok(), "up\n");
    wait_until("the log to say so", || node.log().contains("gVisor cannot set it"));
}

#[test]
fn a_device_has_the_owner_and_mode_of_the_spec_and_nothing_of_the_host_behind_it() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let mut spec = specs.spec("stat -c '%F %u %g %a %t:%T' /dev/own; head -c 2 /dev/own | wc -c");
    spec["linux"]["devices"] =
        json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}]);
    assert_eq!(specs.same(&spec), "character special file 7 8 640 1:5\n2\n");
    let mut spec = specs.spec("head -c 1 /dev/disk 2>&1 | grep -c 'No such device'");
    spec["linux"]["devices"] = json!([{"path": "/dev/disk", "type": "b", "major": 254, "minor": 0}]);
    assert_eq!(specs.run(RUNTIME, &spec).ok(), "1\n");
}

#[test]
fn labels_that_mean_nothing_inside_stop_no_container_and_are_logged() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let mut spec = specs.spec("echo up");
    spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
    spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    assert_eq!(specs.run(RUNTIME, &spec).ok(), "up\n");
    wait_until("the log to name them", || node.log().matches("no meaning inside gVisor").count() >= 3);
}

#[test]
fn what_is_the_hosts_own_is_refused_with_a_sentence_for_operators() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let without = |kind: &str| {
        let mut spec = specs.spec("ls /proc | grep -c '^[0-9]*$'");
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
        spec
    };
    for (kind, part) in [
        ("network", "isolation.allow_host_network"),
        ("pid", "isolation.allow_host_pid"),
        ("ipc", "no sandbox has that"),
    ] {
        let said = specs.refusal(&without(kind));
        assert!(said.contains("linux.namespaces: ") && said.contains(kind) && said.contains(part), "{said}");
    }
    fs::write(node.path("creto/etc/runtime.toml"), "[isolation]\nallow_host_pid = true\n").unwrap();
    let seen: u32 = specs.run(RUNTIME, &without("pid")).ok().trim().parse().unwrap();
    assert!(seen < 10, "it has processes of its own: {seen}");
}

#[test]
fn what_is_out_of_any_range_is_refused_and_leaves_nothing() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let volume = node.path("volume");
    fs::create_dir_all(&volume).unwrap();
    let many: Vec<Value> = (0..10_000).map(|n| bind(&volume, &format!("/m/{n}"), &["rbind", "ro"])).collect();
    let at = |pointer: &str, value: Value| {
        let mut spec = specs.spec("true");
        spec["linux"]["resources"] = json!({"memory": {}, "cpu": {}, "pids": {}});
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        spec
    };
    for (spec, field) in [
        (at("/mounts", json!(many)), "mounts: 10000 mounts"),
        (at("/linux/cgroupsPath", json!("/a/../../../x")), "linux.cgroupsPath: "),
        (at("/linux/resources/memory/limit", json!(-5)), "linux.resources.memory.limit: -5"),
        (at("/linux/resources/cpu/quota", json!(-2)), "linux.resources.cpu.quota: -2"),
        (at("/linux/resources/pids/limit", json!(-9)), "linux.resources.pids.limit: -9"),
        (at("/linux/rootfsPropagation", json!("rshared")), "linux.rootfsPropagation: "),
        (at("/mounts/0/type", json!("ext4")), "gVisor has not"),
        (
            at("/process/rlimits", json!([{"type": "RLIMIT_FLY", "soft": 1, "hard": 1}])),
            "process.rlimits: \"RLIMIT_FLY\"",
        ),
    ] {
        let said = specs.refusal(&spec);
        assert!(said.contains(field), "{field}: {said}");
    }
    let mut shared = specs.spec("true");
    mount(&mut shared, bind(&volume, "/vol", &["rbind", "rshared"]));
    assert!(specs.refusal(&shared).contains("mounts: /vol is rshared"));
}

#[test]
fn a_mask_leads_no_mount_out_of_the_root() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let (inside, outside): (PathBuf, PathBuf) = (specs.root().join("out"), node.path("outside"));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "the host's\n").unwrap();
    symlink(&outside, &inside).unwrap(); // to the host's path, which in the container is none
    let mut spec = specs.spec("ls /out/ 2>&1 | grep -c 'No such'");
    let paths = json!(["/out", "/out/file", "/../../../../../../../tmp", "/out/../../../../etc"]);
    spec["linux"]["readonlyPaths"] = paths;
    assert_eq!(specs.same(&spec), "1\n");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "the host's\n");
    node.assert_nothing_left();
}

#[test]
fn what_was_made_so_is_in_the_attested_summary() {
    let node = Node::with(Setup { containerd: Containerd::V2_4, ..Setup::default() });
    let specs = Specs::of(&node);
    put_tree(specs.root());
    let mut spec = specs.spec("cat /run/creto/attestation.dsse.json");
    spec["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
    spec["linux"]["maskedPaths"] = json!(["/data/dir"]);
    spec["linux"]["readonlyPaths"] = json!(["/data/file"]);
    let envelope = specs.run(RUNTIME, &spec).ok();
    let verified = node.verify(envelope.as_bytes(), &Default::default(), Default::default()).unwrap();
    let stated = serde_json::to_value(verified.statement.predicate()).unwrap()["hardening"].take();
    assert_eq!((&stated["seccomp"], &stated["noNewPrivileges"]), (&json!(true), &json!(true)), "{stated}");
    assert_eq!((&stated["maskedPaths"], &stated["readonlyPaths"]), (&json!(1), &json!(1)), "{stated}");
}
