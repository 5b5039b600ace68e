//! The sandbox's control group on the host: metrics, out-of-memory kills, limits. By the *host's* version of cgroups, as
//! clients expect. Source: kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

mod resources;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageDyn};

pub use resources::Resources;
use trust::attestation::predicate::Limits;

/// Where the kernel's trees are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// One process's control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// One directory for each controller.
    V1(v1::Dirs),
    /// One for all.
    V2(PathBuf),
}

impl Cgroup {
    /// Where a living process is.
    pub fn of(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        find(Path::new(MOUNTED), &text).ok_or_else(|| io::Error::other("the process is in no control group"))
    }

    /// containerd's metrics for the host's version, every part present: clients crash on absent ones.
    pub fn metrics(&self) -> Result<Any, containerd_shim_protos::protobuf::Error> {
        match self {
            Self::V1(dirs) => any(&v1::metrics(dirs)),
            Self::V2(dir) => any(&v2::metrics(dir)),
        }
    }

    /// The bounds as the kernel has them.
    pub fn limits(&self) -> Limits {
        match self {
            Self::V1(dirs) => v1::limits(dirs),
            Self::V2(dir) => v2::limits(dir),
        }
    }

    /// Bytes of memory that is charged to it, the kernel's cache of files included.
    pub fn memory(&self) -> Option<u64> {
        match self {
            Self::V1(dirs) => v1::memory_usage(dirs),
            Self::V2(dir) => v2::memory_usage(dir),
        }
    }

    /// containerd's metrics for the host's version of something that has no control group of its own.
    pub fn metrics_of(&self, used: &Used) -> Result<Any, containerd_shim_protos::protobuf::Error> {
        match self {
            Self::V1(_) => any(&v1::metrics_of(used)),
            Self::V2(_) => any(&v2::metrics_of(used)),
        }
    }

    /// Whether limits of one would be limits of the other.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::V1(one), Self::V1(other)) => one.is_shared_with(other),
            (one, other) => one == other,
        }
    }

    /// How often the kernel killed a process in here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        match self {
            Self::V1(dirs) => v1::oom_kills(dirs),
            Self::V2(dir) => v2::oom_kills(dir),
        }
    }

    /// Sets limits; an error names the file.
    pub fn update(&self, resources: &Resources) -> io::Result<()> {
        match self {
            Self::V1(dirs) => v1::update(dirs, resources),
            Self::V2(dir) => v2::update(dir, resources),
        }
    }
}

/// What one container of a sandbox uses, as the sandbox counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes.
    pub memory: u64,
    /// Bytes; none where there is no limit.
    pub memory_limit: Option<u64>,
    /// Nanoseconds in programs.
    pub user: u64,
    /// Nanoseconds in the sandbox's kernel.
    pub system: u64,
    /// Its threads.
    pub pids: u64,
    /// None where there is no limit.
    pub pids_limit: Option<u64>,
}

fn any<M: Message + MessageDyn>(metrics: &M) -> Result<Any, containerd_shim_protos::protobuf::Error> {
    let type_url = metrics.descriptor_dyn().full_name().to_owned();
    Ok(Any { type_url, value: metrics.write_to_bytes()?, ..Default::default() })
}

/// Reads /proc/PID/cgroup: `0::PATH` is version 2, `N:controllers:PATH` version 1. A hybrid host has both, and its
/// controllers are version 1's.
fn find(mounted: &Path, text: &str) -> Option<Cgroup> {
    let (mut dirs, mut unified) = (v1::Dirs::default(), None);
    // A group outside our cgroup namespace has `/..` in its path: it is not visible from here.
    let visible = |path: &PathBuf| path.components().all(|part| part != Component::ParentDir);
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        match (number, controllers) {
            ("0", "") => unified = Some(mounted.join(path)).filter(visible),
            _ => {
                let dir = Some(mounted.join(controllers.trim_start_matches('/')).join(path)).filter(visible);
                let all = dir.iter().flat_map(|dir| controllers.split(',').map(move |name| (name, dir)));
                all.for_each(|(name, dir)| dirs.add(name, dir.clone()));
            }
        }
    }
    if dirs.is_empty() { unified.map(Cgroup::V2) } else { Some(Cgroup::V1(dirs)) }
}

/// Of a quota and a period in microseconds, thousandths of a CPU.
fn millis(quota: Option<u64>, period: Option<u64>) -> Option<u64> {
    Some(quota? * 1000 / period.filter(|period| *period > 0)?)
}

/// A file with one number; `max`, absent and garbage are `None`.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A file of `key value` lines.
fn keyed(path: &Path) -> impl Fn(&str) -> u64 + use<> {
    let text = fs::read_to_string(path).unwrap_or_default();
    move |key| {
        let value = text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)?.1.parse().ok());
        value.unwrap_or(0)
    }
}

fn write(path: PathBuf, value: impl std::fmt::Display) -> io::Result<()> {
    fs::write(&path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("writing {value} to {}: {error}", path.display())))
}

/// Moves this process into a control group, in every hierarchy that has it.
pub fn join(path: &Path) -> io::Result<()> {
    let groups = everywhere(path)?;
    if groups.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such control group: make it first"));
    }
    groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), std::process::id().to_string()))
}

/// Removes a control group that nobody is in; one with somebody in it, or with others below it, stays. Whether it is gone.
pub fn remove(path: &Path) -> io::Result<bool> {
    let groups = everywhere(path)?;
    Ok(groups.iter().filter(|group| fs::remove_dir(group).is_err()).count() == 0)
}

/// The pids of those who are in a control group.
pub fn processes(path: &Path) -> io::Result<Vec<i32>> {
    let read = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let texts: Vec<_> = everywhere(path)?.iter().map(read).collect();
    Ok(texts.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok()).collect())
}

/// The directories of a control group, in the hierarchies that have it; never a hierarchy itself.
fn everywhere(path: &Path) -> io::Result<Vec<PathBuf>> {
    let below = path.strip_prefix("/").unwrap_or(path);
    if below.as_os_str().is_empty() || path.components().any(|part| part == Component::ParentDir) {
        return Ok(Vec::new());
    }
    let hierarchies = fs::read_dir(MOUNTED)?.flatten().map(|entry| entry.path()).chain([PathBuf::from(MOUNTED)]);
    Ok(hierarchies.map(|top| top.join(below)).filter(|group| group.join("cgroup.procs").exists()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_are_shared_if_a_limit_of_one_is_a_limit_of_the_other() {
        let of = |text: &str| find(Path::new("/c"), text).unwrap();
        for (one, other, shared) in [
            ("0::/a", "0::/a", true),
            ("0::/a", "0::/a/b", false),
            ("1:memory:/a\n2:pids:/", "1:memory:/a\n2:pids:/b", true),
            ("1:memory:/a\n3:devices:/", "1:memory:/b\n3:devices:/", false),
            ("1:memory:/a", "0::/a", false),
        ] {
            assert_eq!(of(one).is_shared_with(&of(other)), shared, "{one:?} {other:?}");
        }
    }

    #[test]
    fn metrics_of_a_container_have_every_part_in_both_versions() {
        let used = Used { memory: 5, memory_limit: Some(9), user: 2000, system: 1000, pids: 3, pids_limit: None };
        let v1 = v1::metrics_of(&used);
        assert_eq!(
            (v1.memory.usage.usage, v1.memory.usage.limit, v1.cpu.usage.total, v1.pids.current),
            (5, 9, 3000, 3)
        );
        assert!(v1.blkio.is_some() && v1.cpu.throttling.is_some() && v1.memory_oom_control.is_some());
        let v2 = v2::metrics_of(&used);
        assert_eq!((v2.memory.usage, v2.memory.usage_limit, v2.cpu.usage_usec, v2.pids.current), (5, 9, 3, 3));
        assert!(v2.io.is_some() && v2.memory_events.is_some());
        let free = Used::default();
        assert_eq!(v2::metrics_of(&free).memory.usage_limit, u64::MAX);
        assert_eq!(v1::metrics_of(&free).memory.usage.limit, 0x7fff_ffff_ffff_f000);
    }

    #[test]
    fn a_process_is_found_on_every_kind_of_host() {
        let mounted = Path::new("/c");
        let v2 = find(mounted, "0::/system.slice/x\n");
        assert_eq!(v2, Some(Cgroup::V2("/c/system.slice/x".into())));
        let hybrid = find(mounted, "9:name=systemd:/\n4:memory:/default/x\n2:cpu,cpuacct:/y\n0::/\n").unwrap();
        let Cgroup::V1(dirs) = hybrid else { panic!("a hybrid host's controllers are version 1") };
        assert_eq!(dirs.get("memory"), Some(Path::new("/c/memory/default/x")));
        assert_eq!(dirs.get("cpuacct"), Some(Path::new("/c/cpu,cpuacct/y")));
        assert_eq!(find(mounted, "garbage"), None);
    }

    proptest! {
        #[test]
        fn a_control_group_is_below_where_the_trees_are_mounted(text in prop_oneof![
            crate::arbitrary::text(),
            prop::collection::vec(("[0-9]{0,2}", "(name=)?[a-z,/.]{0,12}", "[a-z/.]{0,16}"), 0..6).prop_map(|lines| {
                lines.into_iter().map(|(n, controllers, path)| format!("{n}:{controllers}:{path}\n")).collect()
            }),
        ]) {
            let mounted = Path::new("/c");
            let dirs = match find(mounted, &text) {
                None => vec![],
                Some(Cgroup::V2(dir)) => vec![dir],
                Some(Cgroup::V1(dirs)) => dirs.all().map(Path::to_owned).collect(),
            };
            for dir in dirs {
                let inside = dir.components().all(|part| part != Component::ParentDir);
                prop_assert!(dir.starts_with(mounted) && inside, "{text:?} leads to {dir:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))] // each makes a directory

        #[test]
        fn whatever_the_kernel_s_files_hold_there_are_metrics_with_every_part(text in prop_oneof![
            crate::arbitrary::text(),
            prop::collection::vec(("[a-z_0-9:]{0,10}", "[ =]", prop::num::u64::ANY), 0..5).prop_map(|lines| {
                lines.into_iter().map(|(key, sep, value)| format!("{key}{sep}{value}\n")).collect()
            }),
            prop::sample::select(vec!["user 18446744073709551615", "8:0 Read 18446744073709551616", "max", "8:0 rbytes=-1"])
                .prop_map(str::to_owned),
        ]) {
            let dir = tempfile::tempdir().unwrap();
            for file in [
                "cpuacct.stat", "cpuacct.usage", "cpuacct.usage_percpu", "cpu.stat", "memory.stat", "memory.oom_control",
                "memory.usage_in_bytes", "blkio.throttle.io_serviced_recursive", "pids.max", "memory.current", "memory.max",
                "memory.events", "io.stat",
            ] {
                fs::write(dir.path().join(file), &text).unwrap();
            }
            let mut dirs = v1::Dirs::default();
            for controller in ["memory", "cpu", "cpuacct", "pids", "blkio"] {
                dirs.add(controller, dir.path().to_owned());
            }
            for cgroup in [Cgroup::V1(dirs), Cgroup::V2(dir.path().to_owned())] {
                prop_assert!(!cgroup.metrics().unwrap().value.is_empty());
                let _ = cgroup.oom_kills();
            }
        }
    }
}
