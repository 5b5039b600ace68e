//! What sandboxes use. Of all of them it is looked at together, once a second at most, however many ask: containerd asks each shim for it,
//! one after the other, and whoever lists sandboxes on a busy node is not to wait for that. Of one it is looked at when somebody asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;
use trust::id::SandboxId;

use crate::api::types::Usage;
use crate::containerd;
use crate::ports::Ports;
use crate::sandbox::Sandbox;
use crate::store::Filter;

/// What was seen counts so long, and nobody looks again.
const FRESH: Duration = Duration::from_secs(1);
/// So long it is answered, and looked at again for the next who asks. What is older is waited for.
const STALE: Duration = Duration::from_secs(3);

/// Of all sandboxes of the node, as it was last seen.
type Seen = BTreeMap<SandboxId, Usage>;

/// What is known.
pub struct Usages {
    ports: Arc<Ports>,
    /// The processor time of each when it was looked at last.
    looked: Mutex<HashMap<SandboxId, (Instant, u64)>>,
    last: Mutex<Option<(Instant, Arc<Seen>)>>,
    /// Who looks at all of them.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What an answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// A look, but not for this answer.
    Behind,
    /// A look first.
    First,
}

fn need(age: Option<Duration>) -> Need {
    match age {
        Some(age) if age < FRESH => Need::Nothing,
        Some(age) if age < STALE => Need::Behind,
        _ => Need::First,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Usages {
    /// Of the node's sandboxes.
    pub fn new(ports: Arc<Ports>) -> Arc<Self> {
        Arc::new(Self { ports, looked: Mutex::default(), last: Mutex::default(), turn: Arc::default() })
    }

    /// Of all; of one that has only begun nothing may be known yet.
    pub async fn of_all(self: &Arc<Self>) -> Arc<Seen> {
        let (need, seen) = self.known();
        match need {
            Need::Nothing => seen,
            Need::Behind => {
                if let Ok(turn) = self.turn.clone().try_lock_owned() {
                    let this = self.clone();
                    tokio::spawn(async move { this.look(turn).await });
                }
                seen
            }
            Need::First => {
                let turn = self.turn.clone().lock_owned().await;
                match self.known() {
                    (Need::First, _) => self.look(turn).await,
                    (Need::Nothing | Need::Behind, seen) => seen, // somebody has looked meanwhile
                }
            }
        }
    }

    fn known(&self) -> (Need, Arc<Seen>) {
        let last = lock(&self.last);
        let (at, seen) = last.clone().unzip();
        (need(at.map(|at| at.elapsed())), seen.unwrap_or_default())
    }

    async fn look(&self, _turn: OwnedMutexGuard<()>) -> Arc<Seen> {
        let all = match self.ports.store.sandboxes(&Filter::of_node(&self.ports.node)).await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "what sandboxes use is not known");
                return Arc::default();
            }
        };
        let seen = Arc::new(self.used(&all).await);
        lock(&self.looked).retain(|id, _| all.iter().any(|sandbox| sandbox.id == *id));
        *lock(&self.last) = Some((Instant::now(), seen.clone()));
        seen
    }

    /// Of one, now.
    pub async fn of(&self, sandbox: &Sandbox) -> Option<Usage> {
        self.used(std::slice::from_ref(sandbox)).await.remove(&sandbox.id)
    }

    async fn used(&self, all: &[Sandbox]) -> Seen {
        let ids: Vec<String> = all.iter().map(|sandbox| sandbox.id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let used = self.ports.maker.containers.usage(&ids).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what sandboxes use is not known");
            BTreeMap::new()
        });
        let usage =
            |sandbox: &Sandbox| Some((sandbox.id.clone(), self.usage(sandbox, used.get(&sandbox.id.to_string())?)));
        all.iter().filter_map(usage).collect()
    }

    fn usage(&self, sandbox: &Sandbox, used: &containerd::Usage) -> Usage {
        let now = Instant::now();
        let before = lock(&self.looked).insert(sandbox.id.clone(), (now, used.cpu_nanos));
        let (seconds, nanos) = match before {
            Some((then, nanos)) => ((now - then).as_secs_f64(), used.cpu_nanos.saturating_sub(nanos)),
            None => (self.ports.now().since(sandbox.created_at).as_secs_f64(), used.cpu_nanos),
        };
        let cpu_percent = if seconds > 0.0 { nanos as f64 / 1e7 / seconds } else { 0.0 };
        Usage { cpu_percent, memory_bytes: used.memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_waits_only_where_nothing_recent_is_known() {
        for (age, expected) in [
            (None, Need::First),
            (Some(0), Need::Nothing),
            (Some(999), Need::Nothing),
            (Some(1000), Need::Behind),
            (Some(2_999), Need::Behind),
            (Some(3_000), Need::First),
        ] {
            assert_eq!(need(age.map(Duration::from_millis)), expected, "{age:?} ms");
        }
    }
}
