//! Files into a sandbox and out of it, and a terminal in one: by the client, through the node agent and the sandbox's shim.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::images::BUSYBOX;
use crate::harness::network::Network;
use crate::harness::pool_agent::PoolAgent;
use crate::harness::process::Running;
use crate::harness::terminal::Terminal;
use crate::harness::{parts, wait_until};
use crate::leak_table::backend;

/// A sandbox that sleeps.
fn spawned(agent: &PoolAgent) -> String {
    agent.cli(&["spawn", "--image", BUSYBOX, "--", "sleep", "1000"]).ok().trim().to_owned()
}

#[test]
fn files_and_directories_are_copied_both_ways_and_what_is_not_there_is_said() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    let id = spawned(&agent);
    let here = |name: &str| network.node.path(name).display().to_string();
    let there = |path: &str| format!("{id}:{path}");
    // More than any pipe or frame holds, and no text.
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n ^ (n >> 7)).to_le_bytes()).take(5_000_000).collect();
    fs::create_dir_all(network.node.path("tree/below")).unwrap();
    fs::write(network.node.path("tree/below/big"), &bytes).unwrap();
    fs::write(network.node.path("tree/run.sh"), "echo run").unwrap();
    fs::set_permissions(network.node.path("tree/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("below/big", network.node.path("tree/link")).unwrap();

    agent.cli(&["cp", &here("tree"), &there("/tmp/copy")]).ok();
    let said =
        agent.cli(&["exec", &id, "--", "sh", "-c", "cd /tmp/copy; ./run.sh; readlink link; stat -c %s below/big"]);
    assert_eq!(said.ok(), "run\nbelow/big\n5000000\n");
    agent.cli(&["cp", &there("/tmp/copy"), &here("back")]).ok();
    assert!(fs::read(network.node.path("back/below/big")).unwrap() == bytes, "other bytes came back");
    assert_eq!(fs::read_link(network.node.path("back/link")).unwrap().to_str(), Some("below/big"));
    let mode = fs::metadata(network.node.path("back/run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    // One file, under another name and into a directory; and as a tar, to stdout and from stdin.
    agent.cli(&["cp", &here("tree/run.sh"), &there("/tmp/other")]).ok();
    agent.cli(&["cp", &here("tree/run.sh"), &there("/root/")]).ok();
    assert_eq!(agent.cli(&["exec", &id, "--", "ls", "/tmp/other", "/root/run.sh"]).ok(), "/root/run.sh\n/tmp/other\n");
    let tar = agent.cli(&["cp", &there("/tmp/other"), "-"]);
    assert_eq!(tar.status, 0, "{}", tar.stderr);
    let mut command = Command::new(parts::cli());
    command.args(["cp", "-", &there("/root")]).env("CRETO_ROOT", network.node.path("creto"));
    let mut cp = Running::start(command);
    cp.write(&tar.stdout);
    cp.finish_without_input().ok();
    assert_eq!(agent.cli(&["exec", &id, "--", "cat", "/root/other"]).ok(), "echo run");

    for (from, to, why) in [
        (there("/no/such"), here("x"), "there is no /no/such"),
        (here("tree/run.sh"), there("/no/such/dir/"), "directory must be there"),
        ("no-such:/etc/passwd".to_owned(), here("x"), "no-such"),
        (here("none"), there("/tmp/x"), "reading"),
        (there("/tmp/copy"), here("back"), "back/copy"),
    ] {
        let done = agent.cli(&["cp", &from, &to]);
        // The last one goes into the directory that is there.
        match why {
            "back/copy" => assert!(done.status == 0 && network.node.path(why).is_dir(), "{}", done.stderr),
            why => assert!(done.status == 1 && done.stderr.contains(why), "{from} {to}: {}", done.stderr),
        }
    }
    assert!(!network.node.path("x").exists(), "nothing half-made");
    agent.clear();
}

#[test]
fn a_terminal_has_every_key_its_size_and_the_commands_exit_code() {
    let network = Network::with(backend("gvisor"), &[], "");
    let agent = PoolAgent::start(&network, "");
    let id = spawned(&agent);
    let mut command = Command::new(parts::cli());
    command.arg("--root").arg(network.node.path("creto")).args(["exec", "-t", "-i", &id, "--", "sh"]);
    let mut terminal = Terminal::run(&command);
    terminal.type_in("stty size; test -t 0 && echo a $((6 * 7))th terminal\n");
    terminal.wait_for("24 80");
    terminal.wait_for("a 42th terminal");
    terminal.resize(50, 132);
    wait_until("the new size in the sandbox", || {
        terminal.type_in("stty size\n"); // the news of a resize takes its way, so it is asked for again
        terminal.shown().contains("50 132")
    });
    terminal.type_in("echo asleep for $((999 + 1)); sleep 1000\n");
    terminal.wait_for("asleep for 1000");
    terminal.type_in("\x03"); // what runs in front is interrupted, and the shell goes on
    terminal.type_in("echo still $((40 + 2)); exit 7\n");
    let (finished, shown) = terminal.finish();
    assert!(shown.contains("still 42"), "{shown}");
    assert_eq!(finished.status, 7, "{shown}");
    agent.clear();
}
