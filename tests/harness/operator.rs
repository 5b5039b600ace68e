//! Somebody who runs a node by docs/operations.md: a shell in which `systemctl`, `journalctl`, `sudo`, `watch` and `ctr` are made to
//! work on a node of a test's own, where there is no systemd (tests/operator; each says how). All else in it is the machine's and ours.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::network::Network;
use super::pool_agent::PoolAgent;
use super::process::Finished;
use super::{markdown, parts};

/// The image that is pulled, whatever is pulled.
const PYTHON: &str = "creto.dev/debian/python:3";

/// No scenario takes so long, in seconds.
const SCENARIO: &str = "300";

/// An operator of a node.
pub struct Operator<'a> {
    /// The node and its network.
    pub network: &'a Network,
    dir: PathBuf,
}

impl<'a> Operator<'a> {
    /// Takes a node over: containerd, creto-egress and the agent are stopped, and units from now on.
    pub fn of(network: &'a Network) -> Self {
        let node = &network.node;
        node.ctr(&["images", "import", "--snapshotter", node.snapshotter(), parts::python().to_str().unwrap()]).ok();
        for name in ["docker.io/library/python:3.11", "docker.io/library/alpine:latest"] {
            node.ctr(&["images", "tag", PYTHON, name]).ok();
        }
        network.stop_egress(Signal::SIGTERM);
        node.stop_containerd();
        let (_settings, dir) = (PoolAgent::installed(network, ""), node.path("operator"));
        for sub in ["units", "bin", "log", "state", "home"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let ours = [parts::pool_agent(), parts::egress(), parts::cli()];
        for program in ours {
            symlink(program, dir.join("bin").join(program.file_name().unwrap())).unwrap();
        }
        for unit in ["creto-runtime", "creto-egress"] {
            let file = format!("{}/../configs/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
            fs::copy(file, dir.join("units").join(format!("{unit}.service"))).unwrap();
        }
        let operator = Self { network, dir };
        // As Debian has them, as far as that matters here.
        operator.unit(
            "containerd",
            "Type=notify\nKillMode=process",
            &format!(
                "{} --config {}",
                node.containerd_bin().join("containerd").display(),
                node.containerd_config().display()
            ),
        );
        operator.unit("etcd", "Type=notify", &format!("/usr/bin/etcd --data-dir {}", node.path("etcd").display()));
        operator
    }

    fn unit(&self, name: &str, how: &str, program: &str) {
        let text = format!("[Unit]\nDescription={name}\n[Service]\n{how}\nExecStart={program}\n");
        fs::write(self.dir.join("units").join(format!("{name}.service")), text).unwrap();
    }

    /// Runs commands in bash, to their end; it stops at the first that fails.
    #[track_caller]
    pub fn run(&self, commands: &str) -> Finished {
        self.finish(&["-euo", "pipefail", "-c", commands])
    }

    /// The same, where all must succeed: what they print on stdout.
    #[track_caller]
    pub fn ok(&self, commands: &str) -> String {
        let done = self.run(commands);
        assert_eq!(done.status, 0, "{commands}:\n{}{}\n{}", done.text(), done.stderr, self.logs());
        done.text()
    }

    /// bash to its end. It may take longer than a program of a test's: a scenario waits for pools again and again.
    #[track_caller]
    fn finish(&self, args: &[&str]) -> Finished {
        let mut bash = self.bash();
        let output = bash.args(args).stdin(Stdio::null()).output().unwrap();
        let status = output.status.code().unwrap_or(128);
        Finished { status, stdout: output.stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    fn bash(&self) -> Command {
        let node = &self.network.node;
        let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).join("operator");
        let path: Vec<PathBuf> = [stand_ins, self.dir.join("bin")]
            .into_iter()
            .chain(std::env::split_paths(&node.containerd_path()).collect::<Vec<_>>())
            .collect();
        let mut bash = self.network.host.command("timeout");
        bash.args([SCENARIO, "bash"]);
        bash.current_dir(self.dir.join("home")).env("PATH", std::env::join_paths(path).unwrap());
        bash.env("CRETO_ROOT", node.path("creto")).env("OPERATOR", &self.dir);
        bash.env("OPERATOR_NETNS", self.network.host.path()).env("OPERATOR_NAMESPACE", node.namespace());
        bash.env("OPERATOR_CTR", node.containerd_bin().join("ctr")).env("OPERATOR_CONTAINERD", node.address());
        bash.env("OPERATOR_IMAGE", PYTHON)
            .env("EXPECTED", self.dir.join("expected"))
            .env("HOME", self.dir.join("home"));
        bash.env("ETCDCTL_API", "3");
        bash
    }

    /// Runs the blocks of a scenario in one shell, one after the other, as somebody types them. Each must print what it says.
    #[track_caller]
    pub fn type_in(&self, blocks: &[&markdown::Block]) {
        let mut script = String::from("set -euo pipefail\n");
        for block in blocks {
            let at = |what: &str| self.dir.join(format!("{}.{what}", block.line)).display().to_string();
            fs::write(at("sh"), &block.commands).unwrap();
            let patterns: Vec<String> = block.awaited.iter().map(|line| markdown::pattern(line) + "\n").collect();
            fs::write(at("expected"), patterns.concat()).unwrap();
            script += &format!("export EXPECTED={}\nexec > {} 2>&1\n. {}\n", at("expected"), at("out"), at("sh"));
        }
        let file = self.dir.join("scenario.sh");
        fs::write(&file, script).unwrap();
        let done = self.finish(&[file.to_str().unwrap()]);
        for block in blocks {
            let shown = fs::read_to_string(self.dir.join(format!("{}.out", block.line)));
            let shown = shown.unwrap_or_else(|_| format!("(never begun: the one before failed with {})", done.status));
            let what = format!(
                "docs/operations.md, line {}, scenario {}:\n{}\n--- shown:\n{shown}\n--- {}\n{}",
                block.line,
                block.scenario,
                block.commands,
                done.stderr,
                self.logs()
            );
            for line in block.awaited.iter().chain(&block.shown) {
                assert!(self.shows(&shown, line), "not shown: {line}\n{what}");
            }
            let last = block.line == blocks[blocks.len() - 1].line;
            assert!(!last || done.status == 0, "ended with {}\n{what}", done.status);
        }
    }

    /// Whether something is among what was shown.
    fn shows(&self, shown: &str, expected: &str) -> bool {
        fs::write(self.dir.join("shown"), shown).unwrap();
        let mut grep = Command::new("grep");
        grep.args(["-qE", "--", &markdown::pattern(expected)]).arg(self.dir.join("shown"));
        grep.status().unwrap().success()
    }

    /// What the units have logged, for somebody who looks for the cause.
    pub fn logs(&self) -> String {
        let of = |unit: &str| {
            let text = fs::read_to_string(self.dir.join("log").join(unit)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains("level=info")).collect();
            format!("--- {unit}:\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        ["containerd", "creto-egress", "creto-runtime"].map(of).concat()
    }

    /// Ends all that is left and gives the node back to the harness.
    #[track_caller]
    pub fn leave(self) {
        self.ok("systemctl start containerd creto-egress creto-runtime
            for pool in $(creto-runtime-cli pool list --json | jq -r '.[].pool'); do creto-runtime-cli pool delete $pool; done
            creto-runtime-cli terminate --all --force
            while [ -n \"$(creto-runtime-cli list)\" ]; do sleep 0.1; done
            systemctl stop creto-runtime creto-egress etcd containerd");
        self.network.node.start_containerd();
        self.network.node.assert_nothing_left();
    }
}
