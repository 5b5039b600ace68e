//! Whether one more sandbox may be made: nothing is drained, the node has room. Asked before anything is made.

use std::fs;

use trust::id::NodeId;

use crate::error::SpawnError;
use crate::ports::Ports;
use crate::spec::Backend;
use crate::store::{Drain, Filter};

const MEMINFO: &str = "/proc/meminfo";

/// Refuses where a sandbox of this backend may not be made now.
pub async fn admit(ports: &Ports, backend: Backend) -> Result<(), SpawnError> {
    let there = ports.store.sandboxes(&Filter::of_node(&ports.node)).await.map_err(SpawnError::Store)?.len();
    admit_beside(ports, backend, there).await
}

/// The same, for whoever knows how many sandboxes are on this node.
pub async fn admit_beside(ports: &Ports, backend: Backend, there: usize) -> Result<(), SpawnError> {
    match drained(&ports.store.drained(&ports.node).await.map_err(SpawnError::Store)?, backend) {
        Some(None) => return Err(SpawnError::NodeDraining),
        Some(Some(backend)) => return Err(SpawnError::BackendDrained(backend)),
        None => {}
    }
    let limits = &ports.config.limits;
    if there >= limits.sandboxes {
        let why = format!("{there} sandboxes are on this node, which may have {} (limits.sandboxes)", limits.sandboxes);
        return Err(SpawnError::ResourceExhausted(why));
    }
    let available = fs::read_to_string(MEMINFO).ok().as_deref().and_then(available);
    match available {
        Some(bytes) if bytes < limits.free_memory_bytes => Err(SpawnError::ResourceExhausted(format!(
            "{} MiB of memory are available, and {} are kept free (limits.free_memory_bytes)",
            bytes >> 20,
            limits.free_memory_bytes >> 20
        ))),
        Some(_) => Ok(()),
        None => Err(SpawnError::ResourceExhausted(format!("{MEMINFO} does not say how much memory is available"))),
    }
}

/// What of the drained is in the way of a backend: the whole node (`None`), or itself.
pub fn drained(drains: &[Drain], backend: Backend) -> Option<Option<Backend>> {
    let whole = drains.iter().any(|drain| drain.backend.is_none());
    let itself = drains.iter().any(|drain| drain.backend == Some(backend));
    if whole { Some(None) } else { itself.then_some(Some(backend)) }
}

/// A node's drain, of one backend or as a whole.
pub fn drain(node: &NodeId, backend: Option<Backend>) -> Drain {
    Drain { node: node.clone(), backend }
}

/// MemAvailable of /proc/meminfo (proc_meminfo(5)), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_that_is_available_is_read_as_the_kernel_prints_it() {
        for (text, bytes) in [
            (
                "MemTotal:       24689712 kB\nMemFree:        100 kB\nMemAvailable:   23000000 kB\n",
                Some(23_552_000_000),
            ),
            ("MemTotal:       24689712 kB\n", None),
            ("MemAvailable:   many kB\n", None),
            ("", None),
        ] {
            assert_eq!(available(text), bytes, "{text:?}");
        }
        assert!(available(&fs::read_to_string(MEMINFO).unwrap()).is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_drained_node_is_drained_for_every_backend() {
        let node: NodeId = "n".parse().unwrap();
        let whole = drain(&node, None);
        let kata = drain(&node, Some(Backend::Kata));
        for (drains, backend, found) in [
            (vec![], Backend::Gvisor, None),
            (vec![kata.clone()], Backend::Gvisor, None),
            (vec![kata.clone()], Backend::Kata, Some(Some(Backend::Kata))),
            (vec![kata, whole], Backend::Kata, Some(None)),
        ] {
            assert_eq!(drained(&drains, backend), found, "{drains:?}");
        }
    }
}
