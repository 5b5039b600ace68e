//! `ctr run`, `exec`, `attach`, with and without a terminal: what a user types and sees.

use crate::harness::terminal::Terminal;
use crate::harness::{Node, leaks};

#[test]
fn a_workload_runs_inside_gvisor_and_not_on_the_host() {
    let node = Node::start();
    let said = node.run("c", &[], &["sh", "-c", "dmesg; cat /proc/version; id -u; hostname"]).ok();
    assert!(said.contains("gVisor"), "{said}");
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(!said.contains(host.trim()), "the workload sees the host's kernel: {said}");
    node.assert_nothing_left();
}

#[test]
fn environment_directory_and_user_are_what_was_asked_for() {
    let node = Node::start();
    let options = ["--env", "GREETING=hello there", "--cwd", "/tmp", "--user", "65534:65534", "--hostname", "box"];
    let said = node.run("c", &options, &["sh", "-c", "echo $GREETING; pwd; id -u; id -g; hostname"]).ok();
    assert_eq!(said, "hello there\n/tmp\n65534\n65534\nbox\n");
}

#[test]
fn an_exec_sees_the_workload_s_files_and_processes() {
    let node = Node::start();
    node.run_detached("c", &[], &["sh", "-c", "echo inside > /tmp/note; sleep 1000"]);
    crate::harness::wait_until("the note", || node.exec("c", "look", &["cat", "/tmp/note"]).text() == "inside\n");
    assert!(node.exec("c", "ps", &["ps"]).ok().contains("sleep 1000"));
    node.remove("c");
}

#[test]
fn an_exec_gets_the_capabilities_of_its_spec() {
    let node = Node::start();
    let options = ["--cap-drop", "CAP_CHOWN", "--cap-drop", "CAP_NET_RAW"];
    node.run_detached("c", &options, &["sleep", "1000"]);
    let of = |pid: &str, exec: &str| {
        let status = node.exec("c", exec, &["grep", "Cap", &format!("/proc/{pid}/status")]).ok();
        let effective = status.lines().find(|line| line.starts_with("CapEff")).unwrap().to_owned();
        u64::from_str_radix(effective.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let (init, exec) = (of("1", "e1"), of("self", "e2"));
    assert_eq!(init & 1, 0, "CAP_CHOWN was dropped: {init:x}");
    assert_eq!(exec, init, "the exec has others than its spec, which is the workload's: {exec:x}, {init:x}");
    node.remove("c");
}

#[test]
fn the_shim_s_socket_is_root_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let said = std::fs::read_to_string(node.bundle("c").join("address")).unwrap();
    let socket = leaks::shim_socket(&node, "c");
    assert!(said.contains(socket.to_str().unwrap()), "the harness looks for leaks at {socket:?}, the shim says {said}");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    node.remove("c");
}

#[test]
fn a_terminal_shows_echoes_and_follows_the_window_s_size() {
    let node = Node::start();
    let mut terminal = Terminal::run(&node.ctr_command(&node.run_args("c", &["--rm", "--tty"], &["sh"])));
    terminal.type_in("stty size; tty\n");
    terminal.wait_for("24 80");
    terminal.resize(43, 99);
    let asked = crate::harness::poll(|| {
        terminal.type_in("stty size\n"); // the news of a resize takes its way, so it is asked for again
        terminal.shown().contains("43 99").then_some(())
    });
    assert!(asked.is_some(), "{}", terminal.shown());
    terminal.type_in("exit 5\n");
    let (finished, shown) = terminal.finish();
    assert_eq!(finished.status, 5, "{shown}");
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let mut terminal = Terminal::run(&node.ctr_command(&["task", "exec", "--tty", "--exec-id", "e", "c", "sh"]));
    terminal.resize(30, 100);
    terminal.type_in("test -t 0 && test -t 1 && echo it is a $((40 + 2)) terminal\n");
    terminal.wait_for("it is a 42 terminal");
    terminal.type_in("exit 6\n");
    assert_eq!(terminal.finish().0.status, 6);
    node.remove("c");
}

#[test]
fn a_resize_is_signalled_to_the_workload() {
    let node = Node::start();
    let script = "trap 'stty size' WINCH; echo listening; while :; do usleep 10000; done";
    let mut terminal = Terminal::run(&node.ctr_command(&node.run_args("c", &["--rm", "--tty"], &["sh", "-c", script])));
    terminal.wait_for("listening");
    terminal.resize(31, 97);
    terminal.wait_for("31 97");
    node.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]).ok();
    assert_eq!(terminal.finish().0.status, 137);
}

#[test]
fn interrupt_typed_on_an_exec_s_terminal_reaches_it() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    let script = "trap 'echo interrupted; exit 8' INT; echo listening; while :; do usleep 10000; done";
    let exec = ["task", "exec", "--tty", "--exec-id", "e", "c", "sh", "-c", script];
    let mut terminal = Terminal::run(&node.ctr_command(&exec));
    terminal.wait_for("listening");
    terminal.type_in("\x03");
    let (finished, shown) = terminal.finish();
    assert_eq!(finished.status, 8, "{shown}");
    node.remove("c");
}

#[test]
fn interrupt_typed_on_a_terminal_reaches_the_workload() {
    let node = Node::start();
    let script = "trap 'echo interrupted; exit 8' INT; echo listening; while :; do usleep 10000; done";
    let mut terminal = Terminal::run(&node.ctr_command(&node.run_args("c", &["--rm", "--tty"], &["sh", "-c", script])));
    terminal.wait_for("listening");
    terminal.type_in("\x03");
    let (finished, shown) = terminal.finish();
    assert!(shown.contains("interrupted"), "{shown}");
    assert_eq!(finished.status, 8, "{shown}");
}

#[test]
fn a_terminal_loses_nothing_of_a_large_output() {
    let node = Node::start();
    let terminal = Terminal::run(&node.ctr_command(&node.run_args("c", &["--rm", "--tty"], &["seq", "1", "200000"])));
    let (finished, shown) = terminal.finish();
    assert_eq!(finished.status, 0);
    // Each of the two terminals on the way may add its carriage return; ctr's own warnings come first.
    let (shown, expected) = (shown.replace('\r', ""), (1..=200_000).map(|n| format!("{n}\n")).collect::<String>());
    assert!(shown.ends_with(&expected), "{} bytes of {}", shown.len(), expected.len());
}

#[test]
fn attach_shows_what_a_detached_workload_says_and_ends_with_its_status() {
    let node = Node::start();
    let fifos = node.path("fifos");
    let host = format!("type=bind,src={},dst=/host,options=rbind:rw", node.path("bin").display());
    let options = ["--detach", "--fifo-dir", fifos.to_str().unwrap(), "--mount", &host];
    let script = "until [ -e /host/go ]; do echo tick; usleep 10000; done; echo attached; exit 4";
    node.ctr(&node.run_args("c", &options, &["sh", "-c", script])).ok();
    let attach = crate::harness::process::Running::start(node.ctr_command(&["task", "attach", "c"]));
    attach.wait_for("tick");
    std::fs::write(node.path("bin/go"), "").unwrap();
    attach.wait_for("attached");
    assert_eq!(attach.finish_without_input().status, 4);
    node.remove("c");
}
