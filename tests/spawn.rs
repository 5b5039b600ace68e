//! The agent's cold path: image, network, container, task by one call, and by another all of it is gone.

use std::collections::BTreeMap;
use std::fs;

use creto_runtime::containerd::spec::{Bind, Limits};
use creto_runtime::containerd::{Containers, ContainersError, Refusal, Status, TaskEvent};
use creto_runtime::network::Networks;
use creto_runtime::spawn::{Cause, NETWORK_POLICY, Step, Wanted};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::network::{Network, probe_files};
use crate::harness::{Node, Setup, poll, wait_until};
use crate::leak_table::{POLICY, backend};

/// A sandbox with a network that has Python and the probe, under the policy of the leak table.
fn probing(agent: &Agent, id: &str) -> Wanted {
    let bind = |(source, to): (_, &str)| Bind { source, destination: to.to_owned(), writable: false };
    Wanted {
        network: true,
        annotations: BTreeMap::from([(NETWORK_POLICY.to_owned(), "web".to_owned())]),
        labels: BTreeMap::from([("creto.dev/pool".to_owned(), "p1".to_owned())]),
        mounts: probe_files().into_iter().map(bind).collect(),
        limits: Limits { memory_bytes: Some(256 << 20), cpu_millis: Some(1000), pids: Some(500) },
        ..agent.wanted(id, &["sleep", "1000"])
    }
}

#[test]
fn a_sandbox_is_wired_fenced_seen_and_gone() {
    for (backend_name, conflist) in
        [("gvisor", "10-creto.conflist"), ("gvisor", "10-creto-ptp.conflist"), ("runc", "10-creto.conflist")]
    {
        let network = Network::with(backend(backend_name), &[("web", POLICY)], "");
        let agent = Agent::of(&network.node, conflist);
        let what = format!("{backend_name}, {conflist}");
        network.host.inside(|| {
            agent.block_on(async {
                let mut events = agent.containerd.events();
                assert_eq!(events.recv().await, Some(TaskEvent::Listening), "{what}");
                let spawned = agent.spawn(probing(&agent, "s1")).await.unwrap();
                let wired = spawned.network.unwrap();
                assert!(wired.addresses[0].to_string().starts_with("10.88."), "{what}: {wired:?}");
                agent.spawn(agent.wanted("s2", &["sh", "-c", "exit 7"])).await.unwrap();

                let listed = agent.containerd.list(Some(("creto.dev/pool", "p1"))).await.unwrap();
                let task = listed[0].task.clone().unwrap();
                assert_eq!((listed.len(), &*listed[0].id, task.status), (1, "s1", Status::Running), "{what}");
                assert_eq!(task.pid, spawned.pid, "{what}");
                assert_eq!(agent.containerd.list(None).await.unwrap().len(), 2, "{what}");

                assert_eq!(agent.containerd.wait("s2").await.unwrap().status, 7, "{what}");
                let heard = events.recv().await.unwrap();
                assert_eq!(heard, TaskEvent::Exited { id: "s2".into(), status: 7 }, "{what}");

                let usage = agent.containerd.usage(&["s1", "s2"]).await.unwrap();
                let of = usage["s1"];
                assert!(of.memory_bytes > 0 && of.cpu_nanos > 0, "{what}: {usage:?}");
                assert_eq!(of.memory_limit_bytes, 256 << 20, "{what}: {usage:?}");
            });
        });
        let tries = [
            json!(["by_name", "open.creto.net", 443]),
            json!(["tcp", "93.184.215.18", 9000, "hello"]),
            json!(["tcp", "93.184.215.15", 443, "hello"]),
        ];
        let answers = network.probe("s1", &tries);
        let ok = |n: usize| answers[n]["ok"].as_str().unwrap_or_default().to_owned();
        assert!(ok(0).contains("tls open.creto.net") && ok(1).contains("hello"), "{what}: {answers:?}");
        assert!(answers[2].get("failed").is_some(), "{what}: {answers:?}");
        // Its own resolv.conf names the router, and the policy's DNS answers for it.
        let resolved = network.node.exec("s1", "r", &["cat", "/etc/resolv.conf", "/etc/hosts"]).ok();
        assert!(resolved.starts_with("nameserver 10.88.") && resolved.contains(" s1\n"), "{what}: {resolved}");

        network.host.inside(|| {
            agent.block_on(async {
                agent.containerd.kill("s1", Signal::SIGKILL as i32).await.unwrap();
                assert_eq!(agent.containerd.wait("s1").await.unwrap().status, 137, "{what}");
                for id in ["s1", "s2", "s1", "never-was"] {
                    agent.remove(id).await;
                }
            });
        });
        agent.assert_nothing_left();
        assert_eq!(network.node.ctr(&["leases", "ls", "-q"]).ok(), "", "{what}");
    }
}

#[test]
fn a_running_sandbox_and_one_that_was_never_started_can_be_removed() {
    let node = Node::start();
    let agent = Agent::of(&node, "10-creto.conflist");
    agent.block_on(async {
        agent.spawn(agent.wanted("runs", &["sleep", "1000"])).await.unwrap();
        let image =
            agent.containerd.image("test.creto.dev/busybox:1", creto_runtime::containerd::quietly()).await.unwrap();
        let accounts = agent.containerd.accounts(&image).await.unwrap();
        let wishes = creto_runtime::containerd::spec::Wishes {
            id: "made".into(),
            namespace: node.namespace().into(),
            ..Default::default()
        };
        node.note("made");
        let new = creto_runtime::containerd::NewContainer {
            id: "made".into(),
            spec: creto_runtime::containerd::spec::build(&image.config, &accounts, &wishes).unwrap(),
            image,
            labels: BTreeMap::new(),
            runtime: creto_runtime::containerd::RUNTIME.into(),
            runtime_path: None,
            stdio: Default::default(),
        };
        agent.containerd.create(new.clone()).await.unwrap();
        let again = agent.containerd.create(new).await.unwrap_err();
        assert!(matches!(again, ContainersError::AlreadyExists(_)), "{again}");
        let listed = agent.containerd.list(None).await.unwrap();
        let status = |id: &str| listed.iter().find(|one| one.id == id).unwrap().task.as_ref().unwrap().status;
        assert_eq!((status("runs"), status("made")), (Status::Running, Status::Created));
        agent.remove("runs").await;
        agent.remove("made").await;
    });
    agent.assert_nothing_left();
}

#[test]
fn the_image_decides_and_wishes_go_before_it() {
    let node = Node::start();
    let agent = Agent::of(&node, "10-creto.conflist");
    let script = "id -u; id -g; id -G; pwd; hostname; echo $A; echo error >&2; ulimit -n";
    let wanted = Wanted {
        user: Some("nobody".into()),
        cwd: Some("/tmp".into()),
        env: BTreeMap::from([("A".into(), "b c".into())]),
        ..agent.wanted("s", &["sh", "-c", script])
    };
    agent.block_on(async {
        agent.spawn(wanted).await.unwrap();
        assert_eq!(agent.containerd.wait("s").await.unwrap().status, 0);
        let said = poll(|| fs::read_to_string(agent.log("s")).ok().filter(|said| said.lines().count() == 8)).unwrap();
        assert_eq!(said, "65534\n65534\n65534\n/tmp\ns\nb c\nerror\n1024\n");
        agent.remove("s").await;
    });
    agent.assert_nothing_left();
}

#[test]
fn what_cannot_be_spawned_says_at_which_step_and_leaves_nothing() {
    let network = Network::with(Setup::default(), &[("web", POLICY)], "");
    let agent = Agent::of(&network.node, "10-creto.conflist");
    let annotated = |key: &str, value: &str| Wanted {
        annotations: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        network: true,
        ..agent.wanted("s", &["true"])
    };
    type Is = fn(&Cause) -> bool;
    let cases: Vec<(&str, Wanted, Step, Is)> = vec![
        ("no image", Wanted { image: "Busy box".into(), ..agent.wanted("s", &["true"]) }, Step::Image, |cause| {
            matches!(cause, Cause::Containers(ContainersError::Reference(_)))
        }),
        ("no user", Wanted { user: Some("eve".into()), ..agent.wanted("s", &["true"]) }, Step::Spec, |cause| {
            matches!(cause, Cause::Spec(_))
        }),
        (
            "no program",
            Wanted { network: true, ..agent.wanted("s", &["/no/program"]) },
            Step::Create,
            |cause| matches!(cause, Cause::Containers(ContainersError::Refused { refusal: Refusal::Invalid, message, .. }) if message.contains("/no/program")),
        ),
        (
            "no such key",
            annotated("creto.dev/nonsense", "x"),
            Step::Create,
            |cause| matches!(cause, Cause::Containers(ContainersError::Refused { refusal: Refusal::Invalid, message, .. }) if message.contains("creto.dev/nonsense")),
        ),
        ("no agent", annotated("creto.dev/agent", "spiffe://example.org/nobody"), Step::Create, |cause| {
            matches!(cause, Cause::Containers(ContainersError::Refused { refusal: Refusal::Forbidden, .. }))
        }),
        (
            "no shim",
            Wanted { runtime: "io.containerd.nothing.v2".into(), ..annotated(NETWORK_POLICY, "web") },
            Step::Create,
            |cause| {
                matches!(cause, Cause::Containers(ContainersError::Failed { .. } | ContainersError::Refused { .. }))
            },
        ),
    ];
    for (what, wanted, step, is) in cases {
        let failed = network.host.inside(|| agent.block_on(agent.spawn(wanted))).expect_err(what);
        assert!(failed.step == step && is(&failed.cause), "{what}: {failed:?}");
        agent.assert_nothing_left();
    }
    network.stop_egress(Signal::SIGTERM);
    let failed = network.host.inside(|| agent.block_on(agent.spawn(annotated(NETWORK_POLICY, "web")))).unwrap_err();
    assert!(failed.step == Step::Start && failed.to_string().contains("creto-egress"), "{failed}");
    agent.assert_nothing_left();
    network.start_egress();
}

#[test]
fn a_network_that_was_left_behind_is_swept_and_one_that_is_alive_is_not() {
    let network = Network::with(Setup::default(), &[], "");
    let agent = Agent::of(&network.node, "10-creto.conflist");
    network.host.inside(|| {
        agent.block_on(async {
            let (dead, alive) = ("dead".parse().unwrap(), "alive".parse().unwrap());
            agent.cni.attach(&dead).await.unwrap();
            let kept = agent.cni.attach(&alive).await.unwrap();
            assert!(agent.cni.attach(&alive).await.is_err(), "the id is taken");
            let attached = agent.cni.attached().unwrap();
            let left = agent.cni.sweep(&[alive].into()).await.unwrap();
            assert!(left.is_empty(), "{left:?}");
            assert_eq!((attached.len(), agent.cni.attached().unwrap().len()), (2, 1));
            assert!(kept.netns.exists() && !agent.cni.netns(&dead).exists());
            // A host that was restarted has no namespace any more.
            nix::mount::umount2(&kept.netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
            fs::remove_file(&kept.netns).unwrap();
            agent.cni.sweep(&[].into()).await.unwrap();
        });
    });
    agent.assert_nothing_left();
}

#[test]
fn a_spec_is_what_ctr_makes_of_the_image() {
    let node = Node::start();
    let agent = Agent::of(&node, "10-creto.conflist");
    node.run_detached("theirs", &[], &["sleep", "1000"]);
    agent.block_on(agent.spawn(agent.wanted("ours", &["sleep", "1000"]))).unwrap();
    let spec = |id: &str| -> Value {
        let mut spec: Value = serde_json::from_str(&node.ctr(&["container", "info", "--spec", id]).ok()).unwrap();
        for pointer in [
            "/process/capabilities/bounding",
            "/process/capabilities/effective",
            "/process/capabilities/permitted",
            "/linux/maskedPaths",
        ] {
            let list = spec.pointer_mut(pointer).unwrap().as_array_mut().unwrap();
            // Of each CPU of the host, its thermometer: a sandbox of ours sees another /sys.
            list.retain(|item| !item.as_str().unwrap().contains("thermal_throttle"));
            list.sort_by_key(Value::to_string);
        }
        spec
    };
    let (ours, theirs) = (spec("ours"), spec("theirs"));
    for pointer in [
        "/process/args",
        "/process/env",
        "/process/cwd",
        "/process/user",
        "/process/capabilities",
        "/process/noNewPrivileges",
        "/process/rlimits",
        "/root",
        "/mounts",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/linux/namespaces",
    ] {
        assert_eq!(ours.pointer(pointer), theirs.pointer(pointer), "{pointer}");
    }
    wait_until("both to run", || node.sandboxes().len() == 2);
    agent.block_on(agent.remove("ours"));
    node.remove("theirs");
}
