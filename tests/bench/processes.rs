//! What a node's processes use, by part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::Node;
use crate::harness::leaks;

/// The parts, and by which program's name their processes are known.
const PARTS: [(&str, &str); 6] = [
    ("sentry", "runsc-sandbox"),
    ("gofer", "runsc-gofer"),
    ("shim", "containerd-shim-creto-v2"),
    ("agent", "creto-pool-agent"),
    ("egress", "creto-egress"),
    ("containerd", "containerd"),
];

/// Of one part.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub processes: usize,
    /// Proportional set size, in bytes: shared pages by as many as share them.
    pub pss: u64,
    /// In clock ticks, a hundred a second.
    pub ticks: u64,
}

impl Usage {
    fn add(&mut self, pid: i32) {
        self.processes += 1;
        self.pss += pss(pid).unwrap_or_default();
        self.ticks += ticks(pid).unwrap_or_default();
    }
}

/// The part that a process with this command line is, by its program's name.
fn part(command: &str) -> Option<&'static str> {
    let program = command.split(' ').next().and_then(|first| first.rsplit('/').next()).unwrap_or_default();
    PARTS.iter().find(|(_, name)| *name == program).map(|(part, _)| *part)
}

/// What each part uses now.
pub fn usage(node: &Node) -> BTreeMap<&'static str, Usage> {
    let mut all = BTreeMap::<_, Usage>::new();
    for process in leaks::processes_of(&node.path("")) {
        let Some(part) = part(&process.command) else { continue };
        all.entry(part).or_default().add(process.pid);
    }
    all
}

/// What one pod's processes use: its shim, and whoever is in its control groups. What has no part's name is the workload, pause included.
pub fn of_pod(id: &str, groups: &[PathBuf], all: &mut BTreeMap<&'static str, Usage>) {
    let is_shim = |pid: &i32| {
        let words = command(*pid);
        words.contains("containerd-shim-") && words.contains(id)
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for shim in pids.filter(is_shim) {
        all.entry("shim").or_default().add(shim);
    }
    let mut inside = BTreeSet::new();
    groups.iter().for_each(|group| members(group, &mut inside));
    for pid in inside {
        all.entry(part(&command(pid)).unwrap_or("workload")).or_default().add(pid);
    }
}

fn command(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// The processes in a control group and in those below it.
fn members(group: &Path, all: &mut BTreeSet<i32>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    all.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    let below = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| members(&path, all));
}

/// The parts in the order of the table.
pub fn parts() -> impl Iterator<Item = &'static str> {
    PARTS.into_iter().map(|(part, _)| part)
}

fn pss(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Time on a processor, in both modes (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit(')').next()?.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// MemAvailable, in MiB.
pub fn available() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}
