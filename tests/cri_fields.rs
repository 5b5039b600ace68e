//! What a pod spec asks for is so inside its containers, or the pod does not start and is told which field and why. The same questions are put to
//! runc first. `tests/security_context.rs` asks for more, of a spec; here it is what a kubelet makes of the pod's fields.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, DnsConfig, IdMapping, Int64Value, LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig,
    SecurityProfile, UserNamespace,
};
use nix::mount::{MntFlags, MsFlags, umount2};
use serde_json::json;

use crate::harness::cri::{Cri, Pod, of_all};
use crate::harness::{Containerd, Setup};

fn security(container: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    container.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn sandbox_security(pod: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    pod.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn namespaces(pod: &mut PodSandboxConfig) -> &mut NamespaceOption {
    sandbox_security(pod).namespace_options.as_mut().unwrap()
}

fn volume(path: &str, at: &str) -> Mount {
    Mount { host_path: path.into(), container_path: at.into(), ..Default::default() }
}

/// Why a container of this description does not start.
#[track_caller]
fn refusal(cri: &Cri, pod: &Pod, container: ContainerConfig) -> String {
    let failed = cri.create(pod, container).and_then(|id| cri.start(&id));
    failed.expect_err("it was to be refused").message().to_owned()
}

#[test]
fn a_container_is_whom_its_security_context_says_and_may_what_it_says() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let mut config = cri.container("c", "sleep 1000");
        *security(&mut config) = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 1001 }),
            supplemental_groups: vec![2000],
            readonly_rootfs: true,
            no_new_privs: true,
            capabilities: Some(Capability {
                drop_capabilities: vec!["ALL".into()],
                add_capabilities: vec!["NET_BIND_SERVICE".into()],
                ..Default::default()
            }),
            ..security(&mut config).clone()
        };
        let id = cri.run(&pod, config);
        assert_eq!(cri.shell(&id, "id -u; id -g; id -G"), "1000\n1001\n1001 2000\n", "{handler}");
        assert_ne!(cri.exec(&id, &["touch", "/new"], 0).unwrap().code, 0, "{handler}");
        assert_eq!(cri.shell(&id, "grep CapBnd /proc/self/status"), "CapBnd:\t0000000000000400\n", "{handler}");
        // And what was not asked for is as Kubernetes leaves it.
        let id = cri.run_script(&pod, "free", "sleep 1000");
        assert_eq!(cri.shell(&id, "id -u; touch /new && echo written"), "0\nwritten\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_seccomp_profile_of_the_pod_spec_holds() {
    of_all(|cri, handler| {
        let path = cri.network.node.path(&format!("profile-{handler}.json"));
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
        fs::write(&path, profile.to_string()).unwrap();
        let pod = cri.run_pod(handler, "p");
        let localhost =
            SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: path.display().to_string() };
        let of =
            |profile_type: ProfileType| SecurityProfile { profile_type: profile_type.into(), ..Default::default() };
        for (name, profile, mkdir, unshare) in [
            ("localhost", localhost, false, true),
            ("default", of(ProfileType::RuntimeDefault), true, false),
            ("none", of(ProfileType::Unconfined), true, true),
        ] {
            let mut config = cri.container(name, "sleep 1000");
            security(&mut config).seccomp = Some(profile);
            let id = cri.run(&pod, config);
            let works = |words: &[&str]| cri.exec(&id, words, 0).unwrap().code == 0;
            assert_eq!(works(&["mkdir", "/tmp/new"]), mkdir, "{handler}, {name}");
            assert_eq!(works(&["unshare", "-U", "true"]), unshare, "{handler}, {name}");
        }
        cri.remove_pod(&pod);
    });
}

#[test]
fn what_is_the_nodes_own_is_no_pods_and_the_refusal_says_so() {
    of_all(|cri, handler| {
        type Change = fn(&mut NamespaceOption);
        let changes: [(&str, Change); 3] = [
            ("network", |n| n.network = NamespaceMode::Node.into()),
            ("ipc", |n| n.ipc = NamespaceMode::Node.into()),
            ("pid", |n| n.pid = NamespaceMode::Node.into()),
        ];
        for (name, change) in changes {
            let mut config = cri.pod("p");
            change(namespaces(&mut config));
            config.hostname.clear(); // is the node's then
            match (handler, cri.try_run_pod(handler, config)) {
                ("runc", Ok(pod)) => cri.remove_pod(&pod),
                ("creto", Err(failed)) => {
                    let why = format!("linux.namespaces: {name} is missing, which is the host's");
                    assert!(failed.message().contains(&why), "{name}: {failed}");
                }
                (_, other) => panic!("{handler}, {name}: {other:?}"),
            }
        }
        cri.network.node.assert_nothing_left();
    });
}

#[test]
fn containers_see_each_others_processes_exactly_where_the_pod_shares_them() {
    of_all(|cri, handler| {
        for shares in [true, false] {
            let mode = if shares { NamespaceMode::Pod } else { NamespaceMode::Container };
            let mut config = cri.pod("p");
            namespaces(&mut config).pid = mode.into();
            let pod = cri.try_run_pod(handler, config).unwrap();
            let with = |name: &str, script: &str| {
                let mut container = cri.container(name, script);
                security(&mut container).namespace_options.as_mut().unwrap().pid = mode.into();
                cri.run(&pod, container)
            };
            with("one", "exec sleep 1111");
            let two = with("two", "exec sleep 2222");
            let seen = cri.shell(&two, "ps");
            assert!(seen.contains("sleep 2222"), "{handler}: {seen}");
            assert_eq!(seen.contains("sleep 1111"), shares, "{handler}, shared: {shares}: {seen}");
            cri.remove_pod(&pod);
        }
    });
}

/// As `kubectl debug --target` makes one.
#[test]
fn an_ephemeral_container_sees_the_processes_of_its_target() {
    of_all(|cri, handler| {
        let pod = cri.run_pod(handler, "p");
        let target = cri.run_script(&pod, "target", "exec sleep 1111");
        let mut debugger = cri.container("debugger", "exec sleep 2222");
        let namespaces = security(&mut debugger).namespace_options.as_mut().unwrap();
        (namespaces.pid, namespaces.target_id) = (NamespaceMode::Target.into(), target);
        let debugger = cri.run(&pod, debugger);
        let seen = cri.shell(&debugger, "ps");
        assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{handler}: {seen}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn volumes_are_what_they_are_in_any_pod_and_the_nodes_own_directories_are_none() {
    of_all(|cri, handler| {
        let node = &cri.network.node;
        let dir = node.path(&format!("volumes-{handler}"));
        fs::create_dir_all(dir.join("below")).unwrap();
        fs::write(dir.join("file"), "as a subPath\n").unwrap();
        let none = None::<&str>;
        nix::mount::mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none).unwrap();
        nix::mount::mount(none, &dir, none, MsFlags::MS_SHARED, none).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let pod = cri.run_pod(handler, "p");
        let mut config = cri.container("c", "sleep 1000");
        config.mounts = vec![
            volume(&at(""), "/rw"),
            Mount { readonly: true, ..volume(&at(""), "/ro") },
            volume(&at("file"), "/etc/one.conf"),
            Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..volume(&at(""), "/slave") },
        ];
        let id = cri.run(&pod, config);
        assert_eq!(
            cri.shell(&id, "echo new > /rw/below/x; cat /ro/below/x /slave/below/x /etc/one.conf"),
            "new\nnew\nas a subPath\n"
        );
        assert_ne!(cri.exec(&id, &["touch", "/ro/x"], 0).unwrap().code, 0, "{handler}");
        assert_eq!(fs::read_to_string(dir.join("below/x")).unwrap(), "new\n", "{handler}");
        if handler == "creto" {
            let asking = |name: &str, mount: Mount| {
                let mut config = cri.container(name, "sleep 1000");
                config.mounts = vec![mount];
                refusal(cri, &pod, config)
            };
            let shared = MountPropagation::PropagationBidirectional.into();
            let said = asking("shared", Mount { propagation: shared, ..volume(&at(""), "/vol") });
            assert!(said.contains("/vol is rshared"), "{said}");
            for path in ["/", "/proc", "/sys", "/dev"] {
                let said = asking(&format!("host{}", path.replace('/', "-")), volume(path, "/vol"));
                assert!(said.contains("mounts: ") && said.contains("the host's"), "{path}: {said}");
            }
            assert_eq!(cri.shell(&id, "echo alive"), "alive\n", "the neighbour is unharmed");
        }
        cri.remove_pod(&pod);
        umount2(&dir, MntFlags::MNT_DETACH).unwrap();
        node.assert_nothing_left();
    });
}

#[test]
fn sysctls_of_a_pod_are_so_or_refused_by_name() {
    of_all(|cri, handler| {
        let with = |sysctls: &[(&str, &str)]| {
            let mut config = cri.pod("p");
            config.linux.as_mut().unwrap().sysctls =
                sysctls.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>();
            cri.try_run_pod(handler, config)
        };
        let pod = with(&[("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")])
            .unwrap();
        let mut config = cri.container("c", "sleep 1000");
        *security(&mut config) = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            capabilities: Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() }),
            ..security(&mut config).clone()
        };
        let id = cri.run(&pod, config);
        let said = cri.shell(&id, "nc -l -p 80 -e echo served > /dev/null & until nc 127.0.0.1 80; do sleep 0.1; done");
        assert_eq!(said, "served\n", "{handler}: nobody in particular serves port 80");
        cri.remove_pod(&pod);
        match (handler, with(&[("net.ipv4.ip_local_port_range", "1024 2000")])) {
            ("runc", Ok(pod)) => cri.remove_pod(&pod),
            ("creto", Err(failed)) => assert!(failed.message().contains("net.ipv4.ip_local_port_range"), "{failed}"),
            (_, other) => panic!("{handler}: {other:?}"),
        }
    });
}

#[test]
fn names_and_addresses_are_the_pods() {
    of_all(|cri, handler| {
        let mut config = cri.pod("p");
        config.hostname = "its-name".into();
        config.dns_config = Some(DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["ns.svc".into()],
            options: vec!["ndots:5".into()],
        });
        let pod = cri.try_run_pod(handler, config).unwrap();
        let id = cri.run_script(&pod, "c", "sleep 1000");
        let said = cri.shell(&id, "hostname; cat /etc/resolv.conf; echo in the pod > /dev/shm/x");
        for part in ["its-name\n", "nameserver 192.0.2.53", "search ns.svc", "options ndots:5"] {
            assert!(said.contains(part), "{handler}: {said}");
        }
        let next = cri.run_script(&pod, "next", "sleep 1000");
        assert_eq!(cri.shell(&next, "cat /dev/shm/x"), "in the pod\n", "{handler}");
        cri.remove_pod(&pod);
    });
}

#[test]
fn a_privileged_container_is_root_in_its_sandbox_and_has_nothing_of_the_host() {
    of_all(|cri, handler| {
        let mut config = cri.pod("p");
        sandbox_security(&mut config).privileged = true;
        let pod = cri.try_run_pod(handler, config).unwrap();
        let mut container = cri.container("c", "sleep 1000");
        security(&mut container).privileged = true;
        let id = cri.run(&pod, container);
        assert_eq!(cri.shell(&id, "mkdir /m && mount -t tmpfs none /m && touch /m/x && ls /m"), "x\n", "{handler}");
        if handler == "creto" {
            assert!(cri.shell(&id, "dmesg").contains("gVisor"));
            let disks = cri
                .exec(&id, &["sh", "-c", "cat /dev/vda /dev/sda /dev/mem 2>/dev/null | head -c 1 | wc -c"], 0)
                .unwrap();
            assert_eq!(disks.stdout.trim(), "0", "a disk of the host is read inside: {disks:?}");
        }
        cri.remove_pod(&pod);
    });
}

/// Debian's runc 1.1 knows no pods with user namespaces, and containerd 1.7 none without its own help.
#[test]
fn a_pod_without_the_hosts_users_is_root_inside_and_nobody_outside() {
    const FIRST: u32 = 700_000;
    let cri = Cri::with(Setup { containerd: Containerd::V2_4, ..Setup::default() }, &[]);
    let ids = || vec![IdMapping { host_id: FIRST, container_id: 0, length: 65536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() };
    let mut config = cri.pod("p");
    namespaces(&mut config).userns_options = Some(users.clone());
    let pod = cri.try_run_pod("creto", config).unwrap();
    let dir = cri.network.node.path("volume");
    fs::create_dir_all(&dir).unwrap();
    chown(&dir, Some(1000), Some(1000)).unwrap();
    let mut container = cri.container("c", "sleep 1000");
    security(&mut container).namespace_options.as_mut().unwrap().userns_options = Some(users);
    // A kubelet asks for its volumes so.
    container.mounts =
        vec![Mount { uid_mappings: ids(), gid_mappings: ids(), ..volume(dir.to_str().unwrap(), "/vol") }];
    let id = cri.run(&pod, container);
    let said = cri.shell(&id, "id -u; stat -c %u /bin/sh /vol; touch /vol/new /new; stat -c %u /vol/new /new");
    assert_eq!(said, "0\n0\n1000\n0\n0\n");
    assert_eq!(fs::metadata(dir.join("new")).unwrap().uid(), 0, "the volume shows the ids that the pod sees");
    let status = fs::read_to_string(format!("/proc/{}/status", cri.pid(&id))).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(!uid.split_whitespace().any(|uid| uid == "0"), "the sandbox runs as the host's root: {uid}");
    cri.remove_pod(&pod);
    cri.network.node.assert_nothing_left();
}
