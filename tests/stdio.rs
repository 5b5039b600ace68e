//! Every byte that goes in or out of a workload arrives, in order, and every end is an end.

use std::fs;

use crate::harness::{Node, poll, wait_until};

const LOGGER: &str = env!("CARGO_BIN_EXE_creto-e2e-logger");

/// `seq 1 LAST`.
fn numbers(last: u32) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

#[test]
fn the_end_of_stdin_ends_a_workload_that_reads_it() {
    let node = Node::start();
    let mut ctr = node.run_piped("c", &[], &["cat"]);
    ctr.write(b"hello\n");
    ctr.wait_for("hello");
    ctr.write(b"there\n");
    assert_eq!(ctr.finish_without_input().ok(), "hello\nthere\n");
}

#[test]
fn megabytes_go_through_stdin_and_back_unchanged() {
    let node = Node::start();
    let text = numbers(300_000);
    let mut ctr = node.run_piped("c", &[], &["cat"]);
    ctr.write(text.as_bytes());
    let back = ctr.finish_without_input();
    assert!(back.stdout == text.as_bytes(), "{} bytes of {}", back.stdout.len(), text.len());
}

#[test]
fn the_end_of_an_exec_s_stdin_ends_it_and_not_the_workload() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let exec = ["task", "exec", "--exec-id", "e", "c", "cat"];
    let mut ctr = crate::harness::process::Running::start(node.ctr_command(&exec));
    ctr.write(b"to an exec\n");
    assert_eq!(ctr.finish_without_input().ok(), "to an exec\n");
    assert_eq!(node.task("c").unwrap().1, "RUNNING");
    node.remove("c");
}

#[test]
fn eight_megabytes_of_output_arrive_whole_on_both_streams() {
    let node = Node::start();
    let expected = numbers(1_200_000);
    let finished = node.run("c", &[], &["sh", "-c", "seq 1 1200000; seq 1 1200000 >&2"]);
    assert_eq!(finished.status, 0);
    assert!(finished.stdout == expected.as_bytes(), "stdout: {} of {}", finished.stdout.len(), expected.len());
    // ctr of 2.x warns of cgroup v1 on stderr, before it runs anything.
    let (got, wanted) = (finished.stderr.len(), expected.len());
    let tail = &finished.stderr[got.saturating_sub(40)..];
    assert!(finished.stderr.ends_with(&expected), "stderr: {got} of {wanted}, the last are {tail:?}");
}

#[test]
fn a_large_output_of_an_exec_arrives_whole() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let expected = numbers(400_000);
    let finished = node.exec("c", "e", &["seq", "1", "400000"]);
    assert!(finished.stdout == expected.as_bytes(), "{} of {}", finished.stdout.len(), expected.len());
    node.remove("c");
}

#[test]
fn without_io_a_workload_runs_all_the_same() {
    let node = Node::start();
    assert_eq!(node.run("c", &["--null-io"], &["sh", "-c", "cat; echo lost; exit 3"]).status, 3);
}

#[test]
fn a_file_is_appended_to_by_both_streams() {
    let node = Node::start();
    let file = node.path("c.log");
    fs::write(&file, "before\n").unwrap();
    let uri = format!("file://{}", file.display());
    let script = "echo out; echo err >&2; seq 1 100000; echo last >&2";
    assert_eq!(node.run("c", &["--log-uri", &uri], &["sh", "-c", script]).status, 0);
    let log = fs::read_to_string(&file).unwrap();
    assert!(log == format!("before\nout\nerr\n{}last\n", numbers(100_000)), "{} bytes: {:.60}", log.len(), log);
}

#[test]
fn a_logging_program_gets_its_descriptors_its_names_every_byte_and_the_end() {
    let node = Node::start();
    let dir = node.path("log");
    fs::create_dir(&dir).unwrap();
    let uri = format!("binary-v2://{LOGGER}?dir={}", dir.display());
    let finished = node.run("c", &["--log-uri", &uri], &["sh", "-c", "seq 1 300000; echo err >&2; exit 2"]);
    assert_eq!(finished.status, 2, "{finished:?}");
    wait_until("the logger's end", || dir.join("ended").exists());
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("identity"), format!("{} c", node.namespace()));
    assert_eq!(read("args"), format!("dir {}", dir.display()));
    assert!(read("stdout") == numbers(300_000), "{} bytes", read("stdout").len());
    assert_eq!(read("stderr"), "err\n");
}

#[test]
fn a_logging_program_reads_on_until_the_workload_ends() {
    let node = Node::start();
    let dir = node.path("log");
    fs::create_dir(&dir).unwrap();
    let uri = format!("binary://{LOGGER}?dir={}", dir.display());
    node.ctr(&node.run_args("c", &["--detach", "--log-uri", &uri], &["sh", "-c", "echo up; sleep 1000"])).ok();
    let up = poll(|| fs::read_to_string(dir.join("stdout")).is_ok_and(|text| text == "up\n").then_some(()));
    assert!(up.is_some(), "the logger did not get the first line");
    assert!(!dir.join("ended").exists(), "the logger saw an end while the workload runs");
    node.remove("c");
    wait_until("the logger's end", || dir.join("ended").exists());
}

#[test]
fn a_logging_program_that_cannot_start_fails_the_create_and_leaves_nothing() {
    let node = Node::start();
    for (scheme, program, runs) in [
        ("binary", "/no/such/logger", false),
        // Its end without the ready byte counts as ready by the old scheme, and not by the new one.
        ("binary", "/bin/false", true),
        ("binary-v2", "/bin/false", false),
    ] {
        let said = node.run("c", &["--log-uri", &format!("{scheme}://{program}")], &["true"]);
        assert_eq!(said.status == 0, runs, "{scheme}://{program}: {said:?}");
        assert!(runs || said.stderr.contains(program), "{said:?}");
        node.ctr(&["container", "rm", "c"]);
        node.assert_nothing_left();
    }
}
