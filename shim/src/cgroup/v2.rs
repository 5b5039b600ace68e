//! Version 2: one tree.

use std::fs;
use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::*;
use containerd_shim_protos::protobuf::MessageField;

use super::{Limits, Resources, Used, keyed, millis, number, write};

pub(super) fn metrics(dir: &Path) -> Metrics {
    let file = |name: &str| dir.join(name);
    let pids = PidsStat {
        current: number(&file("pids.current")).unwrap_or(0),
        limit: number(&file("pids.max")).unwrap_or(0),
        ..Default::default()
    };
    Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu(dir)),
        memory: MessageField::some(memory(dir)),
        memory_events: MessageField::some(events(dir)),
        io: MessageField::some(IOStat { usage: io_stat(&file("io.stat")), ..Default::default() }),
        rdma: MessageField::some(RdmaStat::default()),
        ..Default::default()
    }
}

/// Of a container that the kernel knows nothing of.
pub(super) fn metrics_of(used: &Used) -> Metrics {
    let (user_usec, system_usec) = (used.user / 1000, used.system / 1000);
    let cpu =
        CPUStat { usage_usec: user_usec.saturating_add(system_usec), user_usec, system_usec, ..Default::default() };
    let memory = MemoryStat {
        anon: used.memory,
        usage: used.memory,
        usage_limit: used.memory_limit.unwrap_or(u64::MAX),
        swap_limit: u64::MAX,
        max_usage: used.memory,
        ..Default::default()
    };
    let pids = PidsStat { current: used.pids, limit: used.pids_limit.unwrap_or(0), ..Default::default() };
    Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        memory_events: MessageField::some(MemoryEvents::default()),
        io: MessageField::some(IOStat::default()),
        rdma: MessageField::some(RdmaStat::default()),
        ..Default::default()
    }
}

pub(super) fn memory_usage(dir: &Path) -> Option<u64> {
    number(&dir.join("memory.current"))
}

fn cpu(dir: &Path) -> CPUStat {
    let stat = keyed(&dir.join("cpu.stat"));
    CPUStat {
        usage_usec: stat("usage_usec"),
        user_usec: stat("user_usec"),
        system_usec: stat("system_usec"),
        nr_periods: stat("nr_periods"),
        nr_throttled: stat("nr_throttled"),
        throttled_usec: stat("throttled_usec"),
        ..Default::default()
    }
}

fn memory(dir: &Path) -> MemoryStat {
    let stat = keyed(&dir.join("memory.stat"));
    // As containerd does: no limit is the largest number.
    let limit = |name: &str| number(&dir.join(name)).unwrap_or(u64::MAX);
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: number(&dir.join("memory.current")).unwrap_or(0),
        usage_limit: limit("memory.max"),
        swap_usage: number(&dir.join("memory.swap.current")).unwrap_or(0),
        swap_limit: limit("memory.swap.max"),
        max_usage: number(&dir.join("memory.peak")).unwrap_or(0),
        ..Default::default()
    }
}

fn events(dir: &Path) -> MemoryEvents {
    let count = keyed(&dir.join("memory.events"));
    MemoryEvents {
        low: count("low"),
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        ..Default::default()
    }
}

/// Lines as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io_stat(path: &Path) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let (device, counts) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let count = |name: &str| {
            let value = counts.split(' ').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name));
            value.and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
        };
        Some(IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: count("rbytes"),
            wbytes: count("wbytes"),
            rios: count("rios"),
            wios: count("wios"),
            ..Default::default()
        })
    };
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(entry).collect()
}

pub(super) fn limits(dir: &Path) -> Limits {
    let cpu = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default(); // `QUOTA PERIOD`, or `max PERIOD`
    let mut cpu = cpu.split_whitespace().map(|word| word.parse().ok());
    Limits {
        memory_bytes: number(&dir.join("memory.max")),
        cpu_millis: millis(cpu.next().flatten(), cpu.next().flatten()),
        pids: number(&dir.join("pids.max")),
    }
}

pub(super) fn oom_kills(dir: &Path) -> u64 {
    events(dir).oom_kill
}

pub(super) fn update(dir: &Path, r: &Resources) -> io::Result<()> {
    let limit = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(memory) = r.memory.limit {
        write(dir.join("memory.max"), limit(memory))?;
    }
    if let Some(both) = r.memory.swap {
        // The spec counts memory and swap together, version 2 swap alone.
        let swap = if both < 0 { both } else { (both - r.memory.limit.unwrap_or(0).max(0)).max(0) };
        write(dir.join("memory.swap.max"), limit(swap))?;
    }
    if let Some(low) = r.memory.reservation {
        write(dir.join("memory.low"), limit(low))?;
    }
    if let Some(shares) = r.cpu.shares.filter(|s| *s > 0) {
        write(dir.join("cpu.weight"), weight(shares))?;
    }
    if r.cpu.quota.is_some() || r.cpu.period.is_some() {
        // One file for both: what an update does not name stays as it is.
        let now = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
        let mut now = now.split_whitespace().map(str::to_owned);
        let (quota_now, period_now) = (now.next(), now.next());
        let quota = match r.cpu.quota {
            Some(quota) if quota <= 0 => "max".to_owned(),
            Some(quota) => quota.to_string(),
            None => quota_now.unwrap_or_else(|| "max".to_owned()),
        };
        let period = r.cpu.period.filter(|p| *p > 0).map(|p| p.to_string()).or(period_now);
        write(dir.join("cpu.max"), format!("{quota} {}", period.unwrap_or_else(|| "100000".to_owned())))?;
    }
    for (file, value) in [("cpuset.cpus", &r.cpu.cpus), ("cpuset.mems", &r.cpu.mems)] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            write(dir.join(file), value)?;
        }
    }
    match r.pids.limit {
        Some(pids) if pids > 0 => write(dir.join("pids.max"), pids),
        Some(_) => write(dir.join("pids.max"), "max"),
        None => Ok(()),
    }
}

/// Shares of 2 to 262144 onto weights of 1 to 10000. Source: runtime-spec's cgroup v2 conversion.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_after_the_kernels_documentation_is_read_whole() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cgroup-v2");
        let got = metrics(&tree);
        assert_eq!((got.pids.current, got.pids.limit), (12, 100));
        assert_eq!(limits(&tree), Limits { memory_bytes: Some(67_108_864), cpu_millis: None, pids: Some(100) });
        assert_eq!((got.memory.usage, got.memory.usage_limit), (12_345_344, 67_108_864));
        assert_eq!((got.cpu.usage_usec, got.memory_events.oom_kill), (1_234_567, 1));
        assert_eq!(got.io.usage.iter().map(|e| (e.major, e.rbytes)).collect::<Vec<_>>(), [(8, 4096)]);
    }

    #[test]
    fn limits_are_written_in_version_2s_terms() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"memory":{"limit":1000,"swap":1500},"cpu":{"shares":1024,"quota":5000,"period":10000},"pids":{"limit":-1}}"#;
        update(dir.path(), &serde_json::from_str(json).unwrap()).unwrap();
        for (file, expected) in [
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("cpu.weight", "39"),
            ("cpu.max", "5000 10000"),
            ("pids.max", "max"),
        ] {
            assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), expected, "{file}");
        }
        // The period alone: the quota stays.
        update(dir.path(), &serde_json::from_str(r#"{"cpu":{"period":20000}}"#).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "5000 20000");
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
    }
}
