//! What a task uses, out of the metrics that its shim gives: containerd's cgroup messages, v1 or v2, of which two members are read.
//! Source: github.com/containerd/cgroups `cgroup1/stats/metrics.proto`, `cgroup2/stats/metrics.proto`.

use prost::Message;
use prost_types::Any;

/// What a task uses, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time so far, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory now, in bytes, page cache included.
    pub memory_bytes: u64,
    /// The most memory it may have, in bytes; 0 where that is not limited.
    pub memory_limit_bytes: u64,
    /// Processes and threads on the host now.
    pub pids: u64,
}

/// The kernel's way of saying "no limit", to a page.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

#[derive(Clone, PartialEq, Message)]
struct V1 {
    #[prost(message, optional, tag = "2")]
    pids: Option<Pids>,
    #[prost(message, optional, tag = "3")]
    cpu: Option<CpuV1>,
    #[prost(message, optional, tag = "4")]
    memory: Option<MemoryV1>,
}

#[derive(Clone, PartialEq, Message)]
struct Pids {
    #[prost(uint64, tag = "1")]
    current: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CpuV1 {
    #[prost(message, optional, tag = "1")]
    usage: Option<CpuUsageV1>,
}

#[derive(Clone, PartialEq, Message)]
struct CpuUsageV1 {
    /// Nanoseconds.
    #[prost(uint64, tag = "1")]
    total: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MemoryV1 {
    #[prost(message, optional, tag = "33")]
    usage: Option<MemoryEntryV1>,
}

#[derive(Clone, PartialEq, Message)]
struct MemoryEntryV1 {
    #[prost(uint64, tag = "1")]
    limit: u64,
    #[prost(uint64, tag = "2")]
    usage: u64,
}

#[derive(Clone, PartialEq, Message)]
struct V2 {
    #[prost(message, optional, tag = "1")]
    pids: Option<Pids>,
    #[prost(message, optional, tag = "2")]
    cpu: Option<CpuV2>,
    #[prost(message, optional, tag = "4")]
    memory: Option<MemoryV2>,
}

#[derive(Clone, PartialEq, Message)]
struct CpuV2 {
    /// Microseconds.
    #[prost(uint64, tag = "1")]
    usage: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MemoryV2 {
    #[prost(uint64, tag = "32")]
    usage: u64,
    #[prost(uint64, tag = "33")]
    limit: u64,
}

/// What metrics say; `None` where they are of another kind.
pub(super) fn decode(metrics: &Any) -> Option<Usage> {
    let (cpu_nanos, memory_bytes, limit, pids) = match metrics.type_url.rsplit('/').next()? {
        "io.containerd.cgroups.v1.Metrics" => {
            let all = V1::decode(&metrics.value[..]).ok()?;
            let memory = all.memory.and_then(|memory| memory.usage).unwrap_or_default();
            let cpu = all.cpu.and_then(|cpu| cpu.usage).unwrap_or_default();
            (cpu.total, memory.usage, memory.limit, all.pids)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let all = V2::decode(&metrics.value[..]).ok()?;
            let memory = all.memory.unwrap_or_default();
            (all.cpu.unwrap_or_default().usage.saturating_mul(1000), memory.usage, memory.limit, all.pids)
        }
        _ => return None,
    };
    let memory_limit_bytes = if limit >= NO_LIMIT { 0 } else { limit };
    Some(Usage { cpu_nanos, memory_bytes, memory_limit_bytes, pids: pids.unwrap_or_default().current })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, message: &impl Message) -> Any {
        Any { type_url: kind.to_owned(), value: message.encode_to_vec() }
    }

    #[test]
    fn both_kinds_of_metrics_say_the_same_in_the_same_units() {
        let pids = Some(Pids { current: 7 });
        let cpu = Some(CpuV1 { usage: Some(CpuUsageV1 { total: 5_000 }) });
        let memory = |limit| Some(MemoryV1 { usage: Some(MemoryEntryV1 { limit, usage: 4096 }) });
        let v1 = |limit| V1 { pids: pids.clone(), cpu: cpu.clone(), memory: memory(limit) };
        let v2 = |limit| V2 {
            pids: pids.clone(),
            cpu: Some(CpuV2 { usage: 5 }),
            memory: Some(MemoryV2 { usage: 4096, limit }),
        };
        let usage = |memory_limit_bytes| Usage { cpu_nanos: 5_000, memory_bytes: 4096, memory_limit_bytes, pids: 7 };
        for (limit, seen) in [(8192, 8192), (NO_LIMIT, 0), (u64::MAX, 0)] {
            assert_eq!(decode(&any("io.containerd.cgroups.v1.Metrics", &v1(limit))), Some(usage(seen)));
            assert_eq!(decode(&any("types.example/io.containerd.cgroups.v2.Metrics", &v2(limit))), Some(usage(seen)));
        }
        assert_eq!(decode(&any("io.containerd.cgroups.v3.Metrics", &v1(1))), None);
        let broken = Any { type_url: "io.containerd.cgroups.v1.Metrics".into(), value: vec![0xff] };
        assert_eq!(decode(&broken), None);
    }
}
