//! A create that fails says what is wrong, does not hang, and leaves nothing: wherever it fails.

use std::fs::{self, File};
use std::io::Write;

use crate::harness::{Node, Setup};

#[track_caller]
fn fails_naming(node: &Node, options: &[&str], command: &[&str], named: &[&str]) {
    let failed = node.run("c", options, command);
    assert_ne!(failed.status, 0, "{failed:?}");
    // ctr's own last line; what comes before it is the container's stderr.
    let error = failed.stderr.lines().find(|line| line.starts_with("ctr: ")).unwrap_or_default();
    for name in named {
        assert!(error.contains(name), "the error does not say {name:?}: {}", failed.stderr);
    }
    node.assert_nothing_left();
}

#[test]
fn an_unknown_annotation_of_ours_is_named() {
    fails_naming(&Node::start(), &["--annotation", "creto.dev/bogus=1"], &["true"], &["creto.dev/bogus"]);
}

#[test]
fn an_annotation_of_others_is_none_of_our_business() {
    let node = Node::start();
    assert_eq!(node.run("c", &["--annotation", "example.com/creto.dev=1"], &["true"]).status, 0);
}

#[test]
fn a_missing_runsc_is_named_with_what_to_do() {
    let node = Node::with(Setup { instead_of_runsc: Some(""), ..Setup::default() });
    fails_naming(&node, &[], &["true"], &["runsc", "install"]);
}

#[test]
fn a_runsc_that_fails_is_a_create_that_fails() {
    let node = Node::with(Setup { instead_of_runsc: Some("#!/bin/sh\nexit 1\n"), ..Setup::default() });
    fails_naming(&node, &[], &["true"], &["runsc"]);
}

#[test]
fn what_a_failing_runsc_says_reaches_the_user() {
    // As the real one: its last words are in its log.
    let script = "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --log ] && log=$2; shift; done\n\
                  echo '{\"level\":\"error\",\"msg\":\"no way: the moon is full\"}' >> \"$log\"\nexit 1\n";
    let node = Node::with(Setup { instead_of_runsc: Some(script), ..Setup::default() });
    fails_naming(&node, &[], &["true"], &["the moon is full"]);
}

#[test]
fn a_missing_program_is_named() {
    fails_naming(&Node::start(), &[], &["no-such-program"], &["no-such-program"]);
}

#[test]
fn a_missing_mount_source_is_named() {
    let mount = "type=bind,src=/no/such/source,dst=/mnt,options=rbind:ro";
    fails_naming(&Node::start(), &["--mount", mount], &["true"], &["/no/such/source"]);
}

/// The file system of the bundles is filled up to so many free pages: each time another write is the one that fails.
#[test]
fn a_full_file_system_leaves_nothing_whichever_write_it_fails() {
    let node = Node::with(Setup { bundles_kib: Some(256), ..Setup::default() });
    let mut failures = 0;
    for free_pages in 0..8 {
        let ballast = node.path("state/ballast");
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full.saturating_sub(free_pages * 4096)).unwrap();
        let ended = node.run("c", &[], &["true"]);
        if ended.status != 0 {
            failures += 1;
            assert!(ended.stderr.contains("no space") || ended.stderr.contains("No space"), "{free_pages}: {ended:?}");
        }
        fs::remove_file(&ballast).unwrap();
        node.assert_nothing_left();
    }
    assert!(failures > 0, "the file system was never full");
    assert_eq!(node.run("c", &[], &["true"]).status, 0, "with space again it works again");
}

#[test]
fn a_second_create_of_the_same_name_is_refused_and_the_first_runs_on() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let second = node.ctr(&node.run_args("c", &[], &["true"]));
    assert!(second.status != 0 && second.stderr.contains("exists"), "{second:?}");
    assert_eq!(node.task("c").unwrap().1, "RUNNING");
    node.remove("c");
}
