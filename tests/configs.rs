//! The configurations that we hand out are taken by the containerd that they are for.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::Containerd;

/// What containerd makes of a configuration: `config dump` says nothing of keys that no plugin takes, so the class is
/// looked for where the CRI plugin keeps it.
#[track_caller]
fn load(containerd: Containerd, file: &str) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(file);
    let mut dump = Command::new(containerd.bin().join("containerd"));
    let dump = dump.arg("--config").arg(&config).args(["config", "dump"]).output().unwrap();
    let (text, errors) = (String::from_utf8(dump.stdout).unwrap(), String::from_utf8(dump.stderr).unwrap());
    assert!(dump.status.success(), "{errors}");
    let table = text.split_once("containerd.runtimes.creto]").unwrap_or_else(|| panic!("no such class in:\n{text}")).1;
    let table = table.split("\n\n").next().unwrap();
    assert!(table.contains(r#"io.containerd.creto.v2"#), "{table}");
    assert_eq!(table.matches("creto.dev/*").count(), 2, "{table}");
}

#[test]
fn containerd_1_6_takes_its_own() {
    load(Containerd::V1_6, "containerd-1.6.toml");
}

#[test]
fn containerd_1_7_takes_its_own() {
    load(Containerd::V1_7, "containerd-1.7.toml");
}

#[test]
fn containerd_2_takes_its_own() {
    load(Containerd::V2_4, "containerd-2.toml");
}

#[test]
fn the_documented_settings_are_taken_by_the_shim() {
    let node = crate::harness::Node::start();
    fs::create_dir_all(node.path("creto/etc")).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/runtime.toml");
    // Every key that stands there commented out is one too.
    let text =
        fs::read_to_string(file).unwrap().replace("# runsc_path = \"/usr/local/bin/runsc\"", "runsc_path = RUNSC");
    let runsc = format!("{:?}", node.path("bin/runsc"));
    fs::write(node.path("creto/etc/runtime.toml"), text.replace("RUNSC", &runsc)).unwrap();
    assert_eq!(node.run("c", &[], &["echo", "hello"]).ok(), "hello\n");
}
