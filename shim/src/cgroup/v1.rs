//! Version 1: a tree for each controller.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::cgroups::metrics::*;
use containerd_shim_protos::protobuf::MessageField;

use super::{Limits, Resources, Used, keyed, millis, number, write};

/// What the kernel shows for no limit of memory: the largest whole number of pages.
const NONE: u64 = i64::MAX as u64 & !0xfff;

/// A process's directory in each controller's tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirs(HashMap<String, PathBuf>);

impl Dirs {
    pub(super) fn add(&mut self, controller: &str, dir: PathBuf) {
        if !controller.starts_with("name=") {
            self.0.insert(controller.to_owned(), dir);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        self.0.values().map(PathBuf::as_path)
    }

    pub(super) fn get(&self, controller: &str) -> Option<&Path> {
        self.0.get(controller).map(PathBuf::as_path)
    }

    /// Whether a controller that limits has the same directory for both.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        let same = |controller| self.get(controller).is_some_and(|dir| other.get(controller) == Some(dir));
        ["memory", "cpu", "pids"].into_iter().any(same)
    }

    /// A file of a controller; of one that is not mounted, a path where nothing is.
    fn file(&self, controller: &str, file: &str) -> PathBuf {
        self.get(controller).unwrap_or(Path::new("/nonexistent")).join(file)
    }
}

pub(super) fn metrics(dirs: &Dirs) -> Metrics {
    let pids = PidsStat {
        current: number(&dirs.file("pids", "pids.current")).unwrap_or(0),
        limit: number(&dirs.file("pids", "pids.max")).unwrap_or(0),
        ..Default::default()
    };
    Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu(dirs)),
        memory: MessageField::some(memory(dirs)),
        memory_oom_control: MessageField::some(oom_control(dirs)),
        blkio: MessageField::some(BlkIOStat {
            io_service_bytes_recursive: blkio(&dirs.file("blkio", "blkio.throttle.io_service_bytes_recursive")),
            io_serviced_recursive: blkio(&dirs.file("blkio", "blkio.throttle.io_serviced_recursive")),
            ..Default::default()
        }),
        rdma: MessageField::some(RdmaStat::default()),
        ..Default::default()
    }
}

/// Of a container that the kernel knows nothing of.
pub(super) fn metrics_of(used: &Used) -> Metrics {
    let (total, kernel, user) = (used.user.saturating_add(used.system), used.system, used.user);
    let usage = CPUUsage { total, kernel, user, ..Default::default() };
    let (usage, throttling) = (MessageField::some(usage), MessageField::some(Throttle::default()));
    let limit = used.memory_limit.unwrap_or(NONE);
    let entry = |usage, limit| MessageField::some(MemoryEntry { usage, limit, ..Default::default() });
    let memory = MemoryStat {
        rss: used.memory,
        total_rss: used.memory,
        hierarchical_memory_limit: limit,
        usage: entry(used.memory, limit),
        swap: entry(used.memory, NONE),
        kernel: entry(0, NONE),
        kernel_tcp: entry(0, NONE),
        ..Default::default()
    };
    let pids = PidsStat { current: used.pids, limit: used.pids_limit.unwrap_or(0), ..Default::default() };
    Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(CPUStat { usage, throttling, ..Default::default() }),
        memory: MessageField::some(memory),
        memory_oom_control: MessageField::some(MemoryOomControl::default()),
        blkio: MessageField::some(BlkIOStat::default()),
        rdma: MessageField::some(RdmaStat::default()),
        ..Default::default()
    }
}

pub(super) fn memory_usage(dirs: &Dirs) -> Option<u64> {
    number(&dirs.file("memory", "memory.usage_in_bytes"))
}

fn cpu(dirs: &Dirs) -> CPUStat {
    const TICK: u64 = 10_000_000; // USER_HZ is 100 on every architecture we run on
    let per_cpu = fs::read_to_string(dirs.file("cpuacct", "cpuacct.usage_percpu")).unwrap_or_default();
    let (ticks, throttled) = (keyed(&dirs.file("cpuacct", "cpuacct.stat")), keyed(&dirs.file("cpu", "cpu.stat")));
    let usage = CPUUsage {
        total: number(&dirs.file("cpuacct", "cpuacct.usage")).unwrap_or(0),
        kernel: ticks("system").saturating_mul(TICK),
        user: ticks("user").saturating_mul(TICK),
        per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        ..Default::default()
    };
    let throttling = Throttle {
        periods: throttled("nr_periods"),
        throttled_periods: throttled("nr_throttled"),
        throttled_time: throttled("throttled_time"),
        ..Default::default()
    };
    CPUStat { usage: MessageField::some(usage), throttling: MessageField::some(throttling), ..Default::default() }
}

fn memory(dirs: &Dirs) -> MemoryStat {
    let stat = keyed(&dirs.file("memory", "memory.stat"));
    let entry = |prefix: &str| {
        let read = |name: &str| number(&dirs.file("memory", &format!("{prefix}.{name}"))).unwrap_or(0);
        MessageField::some(MemoryEntry {
            limit: read("limit_in_bytes"),
            usage: read("usage_in_bytes"),
            max: read("max_usage_in_bytes"),
            failcnt: read("failcnt"),
            ..Default::default()
        })
    };
    MemoryStat {
        cache: stat("cache"),
        rss: stat("rss"),
        rss_huge: stat("rss_huge"),
        mapped_file: stat("mapped_file"),
        dirty: stat("dirty"),
        writeback: stat("writeback"),
        pg_pg_in: stat("pgpgin"),
        pg_pg_out: stat("pgpgout"),
        pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        hierarchical_memory_limit: stat("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat("hierarchical_memsw_limit"),
        total_cache: stat("total_cache"),
        total_rss: stat("total_rss"),
        total_rss_huge: stat("total_rss_huge"),
        total_mapped_file: stat("total_mapped_file"),
        total_dirty: stat("total_dirty"),
        total_writeback: stat("total_writeback"),
        total_pg_pg_in: stat("total_pgpgin"),
        total_pg_pg_out: stat("total_pgpgout"),
        total_pg_fault: stat("total_pgfault"),
        total_pg_maj_fault: stat("total_pgmajfault"),
        total_inactive_anon: stat("total_inactive_anon"),
        total_active_anon: stat("total_active_anon"),
        total_inactive_file: stat("total_inactive_file"),
        total_active_file: stat("total_active_file"),
        total_unevictable: stat("total_unevictable"),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        ..Default::default()
    }
}

fn oom_control(dirs: &Dirs) -> MemoryOomControl {
    let control = keyed(&dirs.file("memory", "memory.oom_control"));
    MemoryOomControl {
        oom_kill_disable: control("oom_kill_disable"),
        under_oom: control("under_oom"),
        oom_kill: control("oom_kill"),
        ..Default::default()
    }
}

/// Lines as `8:0 Read 4096`; the total at the end has no operation and is left out.
fn blkio(path: &Path) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let (op, value) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(BlkIOEntry { op, major, minor, value, ..Default::default() })
    };
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(entry).collect()
}

pub(super) fn limits(dirs: &Dirs) -> Limits {
    let cpu = |file: &str| number(&dirs.file("cpu", file)); // a quota of -1 is none, and no number
    Limits {
        memory_bytes: number(&dirs.file("memory", "memory.limit_in_bytes")).filter(|limit| *limit < NONE),
        cpu_millis: millis(cpu("cpu.cfs_quota_us"), cpu("cpu.cfs_period_us")),
        pids: number(&dirs.file("pids", "pids.max")),
    }
}

pub(super) fn oom_kills(dirs: &Dirs) -> u64 {
    oom_control(dirs).oom_kill
}

pub(super) fn update(dirs: &Dirs, r: &Resources) -> io::Result<()> {
    set_memory(dirs, r)?;
    if let Some(shares) = r.cpu.shares {
        write(dirs.file("cpu", "cpu.shares"), shares)?;
    }
    if let Some(period) = r.cpu.period.filter(|p| *p > 0) {
        write(dirs.file("cpu", "cpu.cfs_period_us"), period)?;
    }
    if let Some(quota) = r.cpu.quota.filter(|q| *q != 0) {
        write(dirs.file("cpu", "cpu.cfs_quota_us"), quota)?;
    }
    for (file, value) in [("cpuset.cpus", &r.cpu.cpus), ("cpuset.mems", &r.cpu.mems)] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            write(dirs.file("cpuset", file), value)?;
        }
    }
    match r.pids.limit {
        Some(limit) if limit > 0 => write(dirs.file("pids", "pids.max"), limit),
        Some(_) => write(dirs.file("pids", "pids.max"), "max"),
        None => Ok(()),
    }
}

/// memory may never be above memory and swap together, so the order depends on whether the limit rises.
fn set_memory(dirs: &Dirs, r: &Resources) -> io::Result<()> {
    let memory = r.memory.limit.map(|limit| (dirs.file("memory", "memory.limit_in_bytes"), limit));
    let both = r.memory.swap.map(|limit| (dirs.file("memory", "memory.memsw.limit_in_bytes"), limit));
    let rises = match (&both, number(&dirs.file("memory", "memory.memsw.limit_in_bytes"))) {
        (Some((_, limit)), Some(now)) => *limit < 0 || *limit as u64 > now,
        _ => false,
    };
    let order = if rises { [both, memory] } else { [memory, both] };
    for (file, limit) in order.into_iter().flatten() {
        write(file, limit)?;
    }
    match r.memory.reservation {
        Some(soft) => write(dirs.file("memory", "memory.soft_limit_in_bytes"), soft),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_tree_is_read_whole() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cgroup-v1");
        let mut dirs = Dirs::default();
        for controller in ["memory", "cpu", "cpuacct", "pids", "blkio"] {
            dirs.add(controller, tree.join(controller));
        }
        let got = metrics(&dirs);
        assert_eq!((got.pids.current, got.pids.limit), (21, 0), "no limit is 0");
        assert_eq!((got.memory.usage.usage, got.memory.usage.limit), (15_089_664, 67_108_864));
        assert_eq!(limits(&dirs), Limits { memory_bytes: Some(67_108_864), cpu_millis: None, pids: None });
        assert!(got.cpu.usage.total > 0 && got.cpu.usage.per_cpu.len() == 2);
        assert!(got.blkio.is_some() && got.rdma.is_some() && got.memory_oom_control.is_some());
    }

    #[test]
    fn a_host_without_controllers_has_empty_parts() {
        let got = metrics(&Dirs::default());
        assert!(got.pids.is_some() && got.cpu.is_some() && got.memory.is_some() && got.blkio.is_some());
    }
}
