//! containerd may be restarted under running tasks: they run on, nothing of their output and no exit is lost.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};

use crate::harness::events::Events;
use crate::harness::{Node, wait_until};

const NUMBERS: &str = "until [ -e /host/begin ]; do usleep 1000; done; i=0; until [ -e /host/stop ]; do i=$((i + 1)); echo $i; usleep 1000; done; echo end; exit 5";

/// Options that show the node's directory `fifos` in the container, at /host.
fn host(node: &Node) -> String {
    format!("type=bind,src={},dst=/host,options=rbind:rw", node.path("fifos").display())
}

fn whole(lines: &[String]) -> bool {
    let (last, numbers) = lines.split_last().unwrap();
    last == "end" && numbers.iter().enumerate().all(|(n, line)| *line == (n + 1).to_string())
}

#[test]
fn output_to_a_fifo_flows_on_and_the_exit_is_kept() {
    let node = Node::start();
    let (mount, fifos) = (host(&node), node.path("fifos"));
    let options = ["--detach", "--fifo-dir", fifos.to_str().unwrap(), "--mount", &mount];
    node.ctr(&node.run_args("c", &options, &["sh", "-c", NUMBERS])).ok();
    let stdout = find(&fifos, "stdout");
    let reader = std::thread::spawn(move || {
        BufReader::new(File::open(stdout).unwrap()).lines().map(Result::unwrap).collect::<Vec<_>>()
    });
    fs::write(fifos.join("begin"), "").unwrap(); // not before: `ctr run -d` itself reads the FIFO until it leaves
    let pid = node.task("c").unwrap().0;
    node.stop_containerd();
    node.start_containerd();
    assert_eq!(node.task("c").unwrap(), (pid, "RUNNING".to_owned()));
    let events = Events::of(&node);
    assert_eq!(node.exec("c", "e", &["echo", "still here"]).ok(), "still here\n");
    fs::write(fifos.join("stop"), "").unwrap();
    node.wait_for_task("c", "STOPPED");
    assert_eq!(events.until("c", "exit"), ["exec-added e", "exec-started e", "exit e", "exit"]);
    let exit = events.of_tasks().into_iter().find(|e| e.topic == "/tasks/exit" && e.fields["id"] == "c").unwrap();
    assert_eq!(exit.fields["exit_status"], 5);
    wait_until("the end of the output", || reader.is_finished());
    let lines = reader.join().unwrap();
    assert!(whole(&lines), "lines are missing or twice, of {}; the last: {:?}", lines.len(), lines.last());
    node.remove("c");
}

#[test]
fn a_task_that_ends_while_containerd_is_away_has_its_exit_and_its_events_delivered() {
    let node = Node::start();
    let mount = host(&node);
    let output = node.run_detached("c", &["--mount", &mount], &["sh", "-c", NUMBERS]);
    fs::write(node.path("fifos/begin"), "").unwrap();
    wait_until("the first line", || fs::read_to_string(&output).is_ok_and(|text| !text.is_empty()));
    node.stop_containerd();
    fs::write(node.path("fifos/stop"), "").unwrap();
    wait_until("the workload's end", || fs::read_to_string(&output).is_ok_and(|text| text.ends_with("end\n")));
    wait_until("the sandbox's end", || node.sandboxes().is_empty());
    node.start_containerd();
    node.wait_for_task("c", "STOPPED");
    let lines: Vec<String> = fs::read_to_string(&output).unwrap().lines().map(str::to_owned).collect();
    assert!(whole(&lines), "{} lines", lines.len());
    let removed = node.ctr(&["task", "rm", "c"]);
    assert!(removed.stderr.contains("code 5"), "{removed:?}");
    node.remove("c");
}

#[test]
fn a_shim_that_dies_while_containerd_is_away_is_cleaned_up_when_it_is_back() {
    let node = Node::start();
    node.run_detached("c", &[], &["sleep", "1000"]);
    node.stop_containerd();
    for pid in node.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    node.start_containerd();
    wait_until("containerd to forget the task", || node.task("c").is_none());
    node.remove("c");
    node.assert_nothing_left();
}

/// The FIFO whose name ends so, in ctr's directory of them.
fn find(dir: &std::path::Path, end: &str) -> std::path::PathBuf {
    let below = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let all = below.flat_map(|path| match fs::read_dir(&path) {
        Ok(inner) => inner.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => vec![path],
    });
    let mut all = all;
    all.find(|path| path.to_string_lossy().ends_with(end)).expect("ctr makes a FIFO for it")
}
