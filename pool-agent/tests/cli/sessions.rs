//! A command in a sandbox has our streams, our terminal where it wants one, and its exit code is ours.

use std::io::Write;
use std::process::Stdio;

use axum::http::StatusCode;
use creto_runtime::api::problem::Problem;

use crate::node::Node;
use crate::pool_agent::PoolAgent;
use crate::pty::Pty;

#[test]
fn the_exit_code_is_the_commands() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    for code in [0, 1, 2, 125, 137, 255] {
        let ran = node.run(&["exec", "box-1", "--", "exit", &code.to_string()]);
        assert_eq!((ran.code, &*ran.err), (Some(code), ""));
    }
    agent.asked();
    let line = ["exec", "box-1", "--env", "A=b c", "--user", "1:2", "--cwd", "/a b", "--", "echo"];
    let ran = node.run(&line);
    assert_eq!(ran.err, "err\n");
    assert_eq!(ran.good(), "out\n");
    let query = "command=echo&stdin=false&tty=false&env=A%3Db+c&cwd=%2Fa+b&user=1%3A2";
    assert_eq!(agent.asked(), [format!("GET /v1/sandboxes/box-1/exec?{query}")]);
}

#[test]
fn what_is_no_end_of_the_command_is_told_apart() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    for (command, why) in [
        ("fail", "Error: fail: no such file in the image\n"),
        ("cut", "ended before the command did"),
        ("babble", "channel 9"),
    ] {
        let error = node.run(&["exec", "box-1", "--", command]).bad(125);
        assert!(error.contains(why), "{command}: {error}");
    }
    let problem = Problem::new(StatusCode::CONFLICT, "wrong-phase", "box-1 is Terminating").hint("choose another");
    agent.refuses("GET /v1/sandboxes/box-1/exec", &problem);
    assert_eq!(node.run(&["exec", "box-1", "--", "ls"]).bad(125), "Error: box-1 is Terminating\nchoose another\n");
    agent.answers("GET /v1/sandboxes/box-1/exec", &"not a stream");
    assert!(node.run(&["exec", "box-1", "--", "ls"]).bad(125).contains("v5.channel.k8s.io"));
    let error = node.run(&["exec", "-it", "box-1", "--", "sh"]).bad(125);
    assert!(error.contains("leave out -t"), "{error}");
}

#[test]
fn stdin_reaches_the_command_whole_and_its_end_too() {
    let node = Node::new();
    let _agent = PoolAgent::at(&node);
    let text: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let mut child = node.command(&["exec", "-i", "box-1", "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, written) = (child.stdin.take().unwrap(), text.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&written).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == text, "{} bytes", output.stdout.len());
}

#[test]
fn stdin_is_left_alone_where_it_is_not_asked_for() {
    let node = Node::new();
    let _agent = PoolAgent::at(&node);
    let mut child = node.command(&["exec", "box-1", "--", "echo"]);
    let child = child.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap(); // its stdin never ends
    assert!({ child }.wait().unwrap().success());
}

#[test]
fn a_terminal_is_the_commands_with_every_key_and_its_size_and_then_as_it_was() {
    let node = Node::new();
    let _agent = PoolAgent::at(&node);
    let mut pty = Pty::run(node.command(&["exec", "-it", "box-1", "--", "terminal"]));
    pty.until("<100x30>");
    let raw = pty.settings();
    pty.press("\u{3}");
    pty.until("<\\x03>");
    pty.press("\r");
    pty.until("<\\r>");
    pty.resize(120, 40);
    pty.until("<120x40>");
    pty.press("q");
    assert_eq!(pty.end().code(), Some(3));
    let after = pty.settings();
    let cooked = Pty::run(std::process::Command::new("true")).settings();
    assert_ne!(raw.local_modes, cooked.local_modes);
    assert_eq!(
        (after.input_modes, after.output_modes, after.local_modes, after.control_modes),
        (cooked.input_modes, cooked.output_modes, cooked.local_modes, cooked.control_modes)
    );
}

#[test]
fn a_terminal_is_as_it_was_whatever_ends_the_command() {
    let node = Node::new();
    let agent = PoolAgent::at(&node);
    let mut pty = Pty::run(node.command(&["exec", "-it", "box-1", "--", "terminal"]));
    pty.until("<100x30>");
    let raw = pty.settings();
    drop(agent); // the agent is gone
    assert_eq!(pty.end().code(), Some(125));
    pty.until("Error: ");
    assert_ne!(pty.settings().local_modes, raw.local_modes);
}
