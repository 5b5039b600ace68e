//! What stands, for whoever asks; and whose turn it is to change it: of each sandbox one at a time, and none waits for what is done to
//! another. Whoever reads waits for nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedMutexGuard, watch};

use crate::daemon::ruleset::Slot;
use crate::daemon::state::Kept;
use crate::policy::CompiledPolicy;
use crate::protocol::{Fence, SandboxKey};

/// The kernel may tell of a packet so long after the fence was taken down.
const LATE: Duration = Duration::from_secs(10);

/// A fence that stands.
pub struct Standing {
    pub kept: Kept,
    pub policy: CompiledPolicy,
}

/// All of them.
#[derive(Default)]
pub struct Standings {
    all: Mutex<All>,
    /// Of those that somebody has, or waits for.
    turns: Mutex<HashMap<SandboxKey, Weak<tokio::sync::Mutex<()>>>>,
    newcomers: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct All {
    stand: BTreeMap<SandboxKey, Entry>,
    /// Taken down lately.
    gone: VecDeque<(Instant, Arc<Standing>)>,
}

struct Entry {
    now: Arc<Standing>,
    /// Told to whoever watches.
    changes: watch::Sender<Fence>,
}

/// The right to change what stands around one sandbox, until it is dropped.
pub struct Turn {
    sandbox: SandboxKey,
    _alone: OwnedMutexGuard<()>,
}

impl Turn {
    /// Whose.
    pub fn sandbox(&self) -> &SandboxKey {
        &self.sandbox
    }
}

impl Standings {
    /// Waits until nobody else changes what stands around this sandbox.
    pub async fn turn(&self, sandbox: &SandboxKey) -> Turn {
        let line = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, line| line.strong_count() > 0);
            match turns.get(sandbox).and_then(Weak::upgrade) {
                Some(line) => line,
                None => {
                    let line = Arc::default();
                    turns.insert(sandbox.clone(), Arc::downgrade(&line));
                    line
                }
            }
        };
        Turn { sandbox: sandbox.clone(), _alone: line.lock_owned().await }
    }

    /// Waits until nobody else gives out marks or looks whether addresses are free. To be had before a turn, never after.
    pub async fn newcomer(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.newcomers.lock().await
    }

    /// What stands around a sandbox.
    pub fn get(&self, sandbox: &SandboxKey) -> Option<Arc<Standing>> {
        self.lock().stand.get(sandbox).map(|entry| entry.now.clone())
    }

    /// What stands, in the order of names.
    pub fn all(&self) -> Vec<Arc<Standing>> {
        self.lock().stand.values().map(|entry| entry.now.clone()).collect()
    }

    /// Around whom something stands.
    pub fn sandboxes(&self) -> Vec<SandboxKey> {
        self.lock().stand.keys().cloned().collect()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.lock().stand.len()
    }

    /// Whose packets have, or lately had, this mark.
    pub fn of_slot(&self, slot: Slot) -> Option<Arc<Standing>> {
        let all = self.lock();
        let standing = all.stand.values().map(|entry| &entry.now);
        let late = all.gone.iter().rev().filter(|(since, _)| since.elapsed() < LATE).map(|(_, gone)| gone);
        standing.chain(late).find(|standing| standing.kept.slot() == Some(slot)).cloned()
    }

    /// This stands now, and whoever watches is told.
    pub fn put(&self, turn: &Turn, kept: Kept, policy: CompiledPolicy) -> Fence {
        let fence = kept.fence.clone();
        let now = Arc::new(Standing { kept, policy });
        let mut all = self.lock();
        match all.stand.get_mut(&turn.sandbox) {
            Some(entry) => {
                entry.now = now;
                entry.changes.send_replace(fence.clone());
            }
            None => {
                let changes = watch::Sender::new(fence.clone());
                all.stand.insert(turn.sandbox.clone(), Entry { now, changes });
            }
        }
        fence
    }

    /// Nothing stands any more.
    pub fn remove(&self, turn: &Turn) {
        let mut all = self.lock();
        all.gone.retain(|(since, _)| since.elapsed() < LATE);
        if let Some(Entry { now, .. }) = all.stand.remove(&turn.sandbox) {
            all.gone.push_back((Instant::now(), now));
        }
    }

    /// Whatever comes to stand around a sandbox, until nothing does.
    pub fn watch(&self, sandbox: &SandboxKey) -> Option<watch::Receiver<Fence>> {
        self.lock().stand.get(sandbox).map(|entry| entry.changes.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use serde_json::json;
    use trust::digest::Digest;

    use super::*;
    use crate::policy::{Document, Policy};
    use crate::protocol::{Attach, PolicyRef};

    fn sandbox(id: &str) -> SandboxKey {
        SandboxKey { namespace: "n".into(), id: id.into() }
    }

    fn kept(id: &str, number: u16, generation: u64) -> Kept {
        let (sandbox, none) = (sandbox(id), Digest::of(b""));
        let policy = PolicyRef::Inline(json!({"rules": []}));
        let mark = Slot::new(number).unwrap().mark();
        Kept {
            attach: Attach { sandbox: sandbox.clone(), agent: None, netns: "/x".into(), policy, attestation: None },
            own_rules: vec![],
            policy: Document::default(),
            ports: vec![],
            fence: Fence { sandbox, mark, interfaces: vec![], ruleset: none, policy: none, generation },
            frame: None,
            put: None,
        }
    }

    fn nothing() -> CompiledPolicy {
        CompiledPolicy::new(Policy::default())
    }

    /// Whether it is there without waiting.
    fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(got) => Some(got),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn of_one_sandbox_each_waits_for_its_turn_and_of_another_nobody() {
        let all = Standings::default();
        let (a, b) = (sandbox("a"), sandbox("b"));
        let first = all.turn(&a).await;
        assert_eq!(first.sandbox(), &a);
        assert!(at_once(all.turn(&b)).is_some(), "another one's");
        let mut second = pin!(all.turn(&a));
        assert!(at_once(second.as_mut()).is_none() && at_once(all.turn(&a)).is_none());
        drop(first);
        let second = at_once(second).unwrap();
        assert!(at_once(all.turn(&a)).is_none(), "it is the second one's");
        drop(second);
        assert!(at_once(all.turn(&a)).is_some());
        assert!(all.turns.lock().unwrap().len() <= 1, "nothing is kept of those whom nobody changes");
    }

    #[tokio::test]
    async fn what_stands_is_told_and_late_packets_find_whose_they_were() {
        let all = Standings::default();
        let turn = all.turn(&sandbox("a")).await;
        assert!(all.get(turn.sandbox()).is_none() && all.watch(turn.sandbox()).is_none());
        all.put(&turn, kept("a", 7, 1), nothing());
        let mut watched = all.watch(turn.sandbox()).unwrap();
        assert_eq!(watched.borrow_and_update().generation, 1);
        let read = all.get(turn.sandbox()).unwrap();
        all.put(&turn, kept("a", 7, 2), nothing());
        assert_eq!(watched.borrow_and_update().generation, 2);
        assert_eq!((read.kept.fence.generation, all.count()), (1, 1), "what was read stays as it was");
        let of = |number| {
            let found = all.of_slot(Slot::new(number).unwrap());
            found.map(|found| (found.kept.attach.sandbox.id.clone(), found.kept.fence.generation))
        };
        all.remove(&turn);
        assert!(watched.changed().await.is_err(), "whoever watches hears of the end");
        assert_eq!((of(7), of(8)), (Some(("a".to_owned(), 2)), None));
        let next = all.turn(&sandbox("b")).await;
        all.put(&next, kept("b", 7, 1), nothing());
        assert_eq!(of(7), Some(("b".to_owned(), 1)), "who has the mark now");
    }
}
