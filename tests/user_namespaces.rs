//! A container with a user namespace runs, and its files and volumes show the ids that were asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use serde_json::{Value, json};

use crate::harness::containerd::RUNTIME;
use crate::harness::specs::{RUNC, Specs};
use crate::harness::{Node, Runsc, Setup};

const FIRST: u32 = 100_000;

fn mappings() -> Value {
    json!([{"containerID": 0, "hostID": FIRST, "size": 65_536}])
}

/// In a user namespace, on a root that is its own.
fn in_user_namespace(specs: &Specs, script: &str) -> Value {
    let mut spec = specs.spec(script);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = mappings();
    spec["linux"]["gidMappings"] = mappings();
    spec
}

fn give_all(dir: &std::path::Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            give_all(&entry.path());
        }
        std::os::unix::fs::lchown(entry.path(), Some(FIRST), Some(FIRST)).unwrap();
    }
    chown(dir, Some(FIRST), Some(FIRST)).unwrap();
}

#[test]
fn a_volume_shows_the_ids_of_the_namespace_or_those_that_it_is_mapped_to() {
    let node = Node::start();
    let specs = Specs::of(&node);
    give_all(specs.root());
    let volume = node.path("volume");
    fs::create_dir_all(&volume).unwrap();
    for (name, owner) in [("hosts", 0), ("first", FIRST), ("user", FIRST + 1000)] {
        fs::write(volume.join(name), "").unwrap();
        chown(volume.join(name), Some(owner), Some(owner)).unwrap();
    }
    chown(&volume, Some(FIRST), Some(FIRST)).unwrap();
    let script = "rm -f /vol/new; stat -c '%n %u %g' /vol/* /etc/passwd; echo > /vol/new; stat -c '%n %u' /vol/new";
    let mut plain = in_user_namespace(&specs, script);
    let bind = json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
    plain["mounts"].as_array_mut().unwrap().push(bind);
    let said = specs.same(&plain);
    assert_eq!(said, "/vol/first 0 0\n/vol/hosts 65534 65534\n/vol/user 1000 1000\n/etc/passwd 0 0\n/vol/new 0\n");
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), FIRST, "who is root inside is not on the host");
    fs::remove_file(volume.join("new")).unwrap();
    // As Kubernetes asks for a volume; Debian's runc 1.1.5 knows nothing of it.
    let mut mapped = plain;
    let last = mapped["mounts"].as_array().unwrap().len() - 1;
    mapped["mounts"][last]["uidMappings"] = mappings();
    mapped["mounts"][last]["gidMappings"] = mappings();
    chown(&volume, Some(0), Some(0)).unwrap();
    let said = specs.run(RUNTIME, &mapped).ok();
    assert_eq!(said, "/vol/first 65534 65534\n/vol/hosts 0 0\n/vol/user 65534 65534\n/etc/passwd 0 0\n/vol/new 0\n");
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0);
}

#[test]
fn a_workload_in_a_user_namespace_reads_who_it_is_and_execs_and_its_map_is_gvisors_own() {
    let node = Node::start();
    let specs = Specs::of(&node);
    give_all(specs.root());
    for user in [0, 1000] {
        let mut spec = in_user_namespace(
            &specs,
            "id -u; wc -c < /run/creto/identity.jwt | grep -vc '^0$'; cat /proc/self/uid_map",
        );
        spec["process"]["user"] = json!({"uid": user, "gid": user});
        let said = specs.run(RUNTIME, &spec).ok();
        assert_eq!(said, format!("{user}\n1\n         0          0 4294967295\n"));
        assert_eq!(
            specs
                .run(RUNC, &{
                    let mut spec = in_user_namespace(&specs, "id -u");
                    spec["process"]["user"] = json!({"uid": user, "gid": user});
                    spec
                })
                .ok(),
            format!("{user}\n")
        );
    }
    node.run_detached("c", &["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"], &["sleep", "1000"]);
    assert_eq!(node.exec("c", "e", &["sh", "-c", "id -u; touch /new; stat -c %u /new"]).ok(), "0\n0\n");
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn what_a_user_namespace_lacks_and_what_an_old_build_would_not_show_is_refused() {
    let node = Node::start();
    let specs = Specs::of(&node);
    let mut unmapped = in_user_namespace(&specs, "true");
    unmapped["linux"]["gidMappings"] = Value::Null;
    assert!(specs.refusal(&unmapped).contains("linux.gidMappings: is missing"));
    let mut alone = in_user_namespace(&specs, "true");
    alone["linux"]["namespaces"].as_array_mut().unwrap().pop();
    assert!(specs.refusal(&alone).contains("linux.uidMappings: without a user namespace"));
    drop(node);
    let node = Node::with(Setup { runsc: Runsc::Y2024, ..Setup::default() });
    let specs = Specs::of(&node);
    let mut mapped = in_user_namespace(&specs, "true");
    let bind = json!({"destination": "/vol", "type": "bind", "source": node.path("rootfs"), "options": ["rbind"], "uidMappings": mappings()});
    mapped["mounts"].as_array_mut().unwrap().push(bind);
    assert!(specs.refusal(&mapped).contains("mounts: /vol asks for other ids of files"));
    let mut umask = specs.spec("true");
    umask["process"]["user"]["umask"] = json!(0o77);
    assert!(specs.refusal(&umask).contains("process.user.umask: "));
}
