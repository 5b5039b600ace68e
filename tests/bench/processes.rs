//! What a node's processes use, by part.

use std::collections::BTreeMap;
use std::fs;

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

/// What each part uses now.
pub fn usage(node: &Node) -> BTreeMap<&'static str, Usage> {
    let mut all = BTreeMap::<_, Usage>::new();
    for process in leaks::processes_of(&node.path("")) {
        let program = process.command.split(' ').next().and_then(|first| first.rsplit('/').next()).unwrap_or_default();
        let Some((part, _)) = PARTS.iter().find(|(_, name)| *name == program) else { continue };
        let usage = all.entry(*part).or_default();
        usage.processes += 1;
        usage.pss += pss(process.pid).unwrap_or_default();
        usage.ticks += ticks(process.pid).unwrap_or_default();
    }
    all
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
