//! What is said of a sandbox is what was read back of it, is signed, and follows what was said before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};
use trust::attestation::statement::Subject;
use trust::attestation::verify::{Expectations, Previous};
use trust::digest::Digest;

use crate::harness::containerd::RUNTIME;
use crate::harness::{Containerd, Node, Runsc, Setup, images, wait_until};

#[test]
fn the_statement_names_what_really_ran() {
    let node = Node::start();
    let limit = (200 << 20).to_string();
    node.run_detached("c", &["--memory-limit", &limit, "--cap-drop", "CAP_CHOWN"], &["sleep", "1000"]);
    let inside = node.exec("c", "e", &["cat", "/run/creto/attestation.dsse.json"]).ok();
    let outside = node.statements("c");
    assert_eq!(outside.len(), 1);
    assert_eq!(inside, fs::read_to_string(&outside[0]).unwrap());
    assert!(inside.len() <= 4096, "{} bytes", inside.len());
    let config = fs::read(bundle(&node, "c").join("config.json")).unwrap();
    let expected = Expectations {
        sandbox: Some("c".parse().unwrap()),
        namespace: Some(node.namespace().parse().unwrap()),
        subjects: vec![(Subject::Config, Digest::of(&config))],
        previous: Previous::First,
        key_version: None,
    };
    let verified = node.verify(inside.as_bytes(), &expected, Duration::ZERO).unwrap();
    let said = serde_json::to_value(verified.statement.predicate()).unwrap();
    let runsc = Digest::of(&fs::read(Runsc::default().bin().join("runsc")).unwrap()).to_string();
    assert_eq!(said["backend"], json!({"name": "gvisor", "binary": runsc, "platform": "systrap"}), "{said}");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(said["node"]["bootId"], boot.trim());
    assert_eq!(said["hardening"]["limits"]["memoryBytes"], 200 << 20);
    let capabilities = said["hardening"]["capabilities"].as_array().unwrap();
    assert!(capabilities.contains(&json!("CAP_KILL")) && !capabilities.contains(&json!("CAP_CHOWN")), "{said}");
    assert_eq!((&said["fence"]["mechanism"], &said["launch"]["kind"]), (&json!("sealed"), &json!("cold")));
    assert_eq!(said["agent"], json!({"proof": "none"}));
    node.remove("c");
    node.assert_nothing_left();
}

#[test]
fn the_image_is_what_containerd_has_under_the_containers_name_for_it() {
    let nowhere = Digest::of(b"another image").to_string();
    for containerd in [Containerd::V1_6, Containerd::V2_4] {
        let node = Node::with(Setup { containerd, ..Setup::default() });
        let listed = node.ctr(&["image", "ls"]).ok();
        let row = listed.lines().find(|line| line.starts_with(images::BUSYBOX)).unwrap();
        let [name, media_type, digest, ..] = row.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{row}") };
        node.run_detached("c", &[], &["sleep", "1000"]);
        let shown = node.cli_json(&["attestation", "get", "c"]);
        let image = json!({"source": "containerd", "name": name, "digest": digest, "mediaType": media_type});
        assert_eq!(shown["image"], image, "{containerd:?}");
        let verify = |digest: &str| node.cli(&["attestation", "verify", "c", "--image-digest", digest]);
        let said = verify(digest).ok();
        assert!(said.contains(&format!("about image {digest}")), "{said}");
        let wrong = verify(&nowhere);
        assert!(wrong.status == 1 && wrong.stderr.contains("is not a subject"), "{wrong:?}");
        let created = node.cli_json(&["audit", "search", "--event", "SandboxCreated"]);
        let event = &created[0]["event"];
        assert_eq!((&event["image"], &event["image_digest"]), (&json!(name), &json!(digest)), "{created}");
        node.remove("c");
        node.assert_nothing_left();
    }
}

#[test]
fn an_image_that_containerd_does_not_know_is_said_to_be_unknown_or_whose_word_it_is() {
    let node = Node::start();
    let root = node.path("rootfs");
    fs::create_dir(&root).unwrap();
    images::unpack(&root);
    let digest = Digest::of(b"pinned");
    let (pinned, tagged) = (format!("busybox@{digest}"), "busybox:1".to_owned());
    let annotated = json!({"source": "annotation", "name": pinned, "digest": digest.to_string()});
    for (id, name, expected) in [("pinned", &pinned, annotated), ("tagged", &tagged, json!({"source": "unknown"}))] {
        node.note(id);
        let option = format!("io.kubernetes.cri.image-name={name}");
        let run = ["run", "--detach", "--rootfs", "--runtime", RUNTIME, "--annotation", &option];
        node.ctr(&[&run[..], &[root.to_str().unwrap(), id, "/bin/sleep", "1000"]].concat()).ok();
        assert_eq!(node.cli_json(&["attestation", "get", id])["image"], expected, "{id}");
        node.remove(id);
    }
    node.assert_nothing_left();
}

#[test]
fn a_flipped_byte_another_sandbox_another_node_and_a_late_reader_are_told_apart() {
    let (node, other) = (Node::start(), Node::start());
    node.run_detached("c", &[], &["sleep", "1000"]);
    let envelope = fs::read(&node.statements("c")[0]).unwrap();
    let whose = |id: &str| Expectations { sandbox: Some(id.parse().unwrap()), ..Expectations::default() };
    node.verify(&envelope, &whose("c"), Duration::ZERO).unwrap();
    let mut flipped = envelope.clone();
    let at = flipped.len() / 2;
    flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
    assert_eq!(other.run("x", &[], &["true"]).status, 0); // its node has keys now
    for (name, answer, expected) in [
        ("a byte", node.verify(&flipped, &whose("c"), Duration::ZERO), "Ed25519 signature invalid"),
        ("a sandbox", node.verify(&envelope, &whose("d"), Duration::ZERO), "sandbox"),
        ("a node", other.verify(&envelope, &whose("c"), Duration::ZERO), "key"),
        ("a day", node.verify(&envelope, &whose("c"), Duration::from_secs(25 * 3600)), "expired"),
    ] {
        let said = answer.map(drop).unwrap_err().to_string();
        assert!(
            said.starts_with("VerificationResult::Invalid { reason: ") && said.contains(expected),
            "{name}: {said}"
        );
    }
    node.remove("c");
}

#[test]
fn a_sandbox_with_an_interface_is_not_said_to_be_sealed_nor_started_and_one_of_the_same_name_begins_anew() {
    let node = Node::start();
    let (root, program) = (node.path("rootfs"), node.path("wire.sh"));
    fs::create_dir(&root).unwrap();
    images::unpack(&root);
    let wire = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' | tr -d '\\n')\nexec nsenter -t $pid -n ip link add d0 type veth peer name d1\n";
    fs::write(&program, format!("#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n{wire}")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec: Value = serde_json::from_str(&node.ctr(&["oci", "spec"]).ok()).unwrap();
    spec["root"] = json!({"path": root});
    spec["process"]["args"] = json!(["/bin/cat", "/run/creto/attestation.dsse.json"]);
    spec["process"]["terminal"] = json!(false);
    let config = node.path("config.json");
    node.note("c");
    let run =
        ["run", "--rm", "--runtime", crate::harness::containerd::RUNTIME, "--config", config.to_str().unwrap(), "c"];
    let said = |spec: &Value| {
        fs::write(&config, spec.to_string()).unwrap();
        let envelope = node.ctr(&run).ok();
        node.verify(envelope.as_bytes(), &Expectations::default(), Duration::ZERO).unwrap()
    };
    let sealed = said(&spec);
    spec["hooks"] = json!({"createRuntime": [{"path": program}]});
    fs::write(&config, spec.to_string()).unwrap();
    let unfenced = node.ctr(&run);
    assert!(unfenced.status != 0 && unfenced.stderr.contains("no fence around it"), "{unfenced:?}");
    node.ctr(&["container", "rm", "c"]);
    let statements = node.statements("c");
    assert_eq!(statements.len(), 2);
    let wired = fs::read(&statements[1]).unwrap(); // of its Create
    let wired = node.verify(&wired, &Expectations::default(), Duration::ZERO).unwrap();
    assert!(sealed.statement.predicate().fence.is_some() && wired.statement.predicate().fence.is_none());
    assert_eq!((sealed.statement.predicate().previous, wired.statement.predicate().previous), (None, None));
}

#[test]
fn a_restored_sandbox_says_from_what_and_has_a_key_of_its_own() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let reference = "test.creto.dev/saved:2";
    node.ctr(&["container", "checkpoint", "--rw", "--image", "--task", "c", reference]).ok();
    let token = |id: &str| node.exec(id, "t", &["cat", "/run/creto/identity.jwt"]).ok();
    let before = crate::harness::trust::claims(token("c").trim());
    node.remove("c");
    node.note("again");
    node.ctr(&["container", "restore", "--rw", "--live", "again", reference]).ok();
    wait_until("the restored task", || node.task("again").is_some_and(|(_, status)| status == "RUNNING"));
    let after = crate::harness::trust::claims(token("again").trim());
    assert_ne!(before["cnf"], after["cnf"]);
    assert_ne!(before["sub"], after["sub"]);
    let envelope = fs::read(node.statements("again").last().unwrap()).unwrap();
    let verified = node.verify(&envelope, &Expectations::default(), Duration::ZERO).unwrap();
    let launch = serde_json::to_value(&verified.statement.predicate().launch).unwrap();
    assert_eq!(launch["kind"], "restored", "{launch}");
    assert_eq!(
        verified.statement.subject(Subject::Checkpoint).map(|d| json!(d.to_string())).as_ref(),
        launch.get("restoredFrom")
    );
    let heard = node.recorded("again");
    assert!(heard.contains(&"SandboxRestored".to_owned()), "{heard:?}");
    assert!(node.recorded("c").contains(&"CheckpointCreated".to_owned()));
    node.remove("again");
    node.assert_nothing_left();
}

#[test]
fn a_delegated_sandbox_is_attested_too() {
    let shim = crate::harness::Containerd::default().bin().join("containerd-shim-runc-v2");
    let settings = format!("backend = \"runc\"\n[delegates.runc]\nshim = {shim:?}\n");
    let node = Node::with(Setup { settings, ..Setup::default() });
    let envelope = node.run("c", &[], &["cat", "/run/creto/attestation.dsse.json"]).ok();
    let said = node.verify(envelope.as_bytes(), &Expectations::default(), Duration::ZERO).unwrap();
    let backend = serde_json::to_value(&said.statement.predicate().backend).unwrap();
    assert_eq!(
        (&backend["name"], &backend["binary"]),
        (&json!("runc"), &json!(Digest::of(&fs::read(&shim).unwrap()).to_string()))
    );
}

#[test]
fn without_a_place_for_keys_or_statements_there_is_no_sandbox() {
    let node = Node::start();
    fs::write(node.path("creto/lib"), "in the way").unwrap();
    let said = node.run("a", &[], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("keys"), "{said:?}");
    fs::remove_file(node.path("creto/lib")).unwrap();
    fs::create_dir(node.path("creto/lib")).unwrap();
    fs::write(node.path("creto/lib/attestations"), "in the way").unwrap();
    let said = node.run("b", &[], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("attesting the sandbox"), "{said:?}");
    assert_eq!(node.recorded("b"), ["SandboxCreateFailed"]);
    fs::set_permissions(node.path("creto/lib/keys"), fs::Permissions::from_mode(0o755)).unwrap();
    let said = node.run("c", &[], &["true"]);
    assert!(said.status != 0 && said.stderr.contains("chmod"), "{said:?}");
    for id in ["a", "b", "c"] {
        node.ctr(&["container", "rm", id]);
    }
    node.assert_nothing_left();
}

/// What a backend saw of a container.
fn bundle(node: &Node, id: &str) -> std::path::PathBuf {
    let pods = fs::read_dir(node.path("creto/run/sandboxes")).unwrap().map(|pod| pod.unwrap().path().join("bundles"));
    pods.map(|bundles| bundles.join(id)).find(|bundle| bundle.exists()).unwrap()
}
