//! What all that the agent does works with: one of each, made when it starts.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use egress::policy::Policies;
use tokio::sync::Semaphore;
use trust::clock::{Clock, Timestamp};
use trust::id::{NodeId, SandboxId};

use crate::audit::Drain;
use crate::config::Config;
use crate::events::Events;
use crate::idle::Sessions;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::node::Root;
use crate::shim::{Address, Shim, ShimError};
use crate::spawn;
use crate::store::Store;

/// The node, as the agent has it.
pub struct Ports {
    /// Which node.
    pub node: NodeId,
    /// Where its things lie.
    pub root: Root,
    /// What the operator has decided.
    pub config: Config,
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// Makes sandboxes, and takes them away.
    pub maker: spawn::Node,
    /// The named network policies.
    pub policies: Policies,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// The holder's program, on the host.
    pub holder: PathBuf,
    /// Who works at which sandbox.
    pub hands: Arc<Hands>,
    /// What drains the node's audit spools.
    pub audit: Arc<Drain>,
    /// Who has a session in which sandbox.
    pub sessions: Arc<Sessions>,
    /// How sandboxes have ended that are gone since.
    pub exits: Exits,
    /// Who may make a sandbox for somebody who waits for it.
    pub turns: Semaphore,
    /// What sandboxes have written.
    pub logs: Arc<Logs>,
    /// What happens to sandboxes.
    pub events: Arc<Events>,
}

impl Ports {
    /// Now.
    pub fn now(&self) -> Timestamp {
        self.clock.timestamp()
    }

    /// A connection to a sandbox's shim.
    pub async fn shim(&self, id: &SandboxId) -> Result<Shim, ShimError> {
        let containerd = &self.config.containerd;
        let address = Address::of(&containerd.state, &containerd.namespace, &id.to_string());
        Shim::connect(&address.map_err(|e| ShimError::NotFound(e.to_string()))?).await
    }

    /// Where a sandbox's output is kept.
    pub fn log(&self, id: &SandboxId) -> PathBuf {
        self.logs.path(id)
    }
}

/// How the last sandboxes have ended, for whoever asks after they are gone.
#[derive(Debug, Default)]
pub struct Exits(Mutex<VecDeque<(SandboxId, u32)>>);

impl Exits {
    /// Of so many it is known.
    const KEPT: usize = 4096;

    /// One has ended, with this exit code. The first counts: what is taken down after its command's end is killed, and exits, too.
    pub fn note(&self, id: &SandboxId, status: u32) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|(ended, _)| ended == id) {
            return;
        }
        if all.len() == Self::KEPT {
            all.pop_front();
        }
        all.push_back((id.clone(), status));
    }

    /// With which it ended.
    pub fn of(&self, id: &SandboxId) -> Option<u32> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(ended, _)| ended == id).map(|(_, status)| *status)
    }
}

/// The sandboxes that somebody of this process is making, binding or taking down. Whoever has one in hand is alone with it.
#[derive(Debug, Default)]
pub struct Hands(Mutex<HashSet<SandboxId>>);

/// A sandbox in hand, until it is dropped.
#[derive(Debug)]
pub struct Hand {
    hands: Arc<Hands>,
    id: SandboxId,
}

impl Hands {
    /// Takes a sandbox in hand; none where somebody else has it.
    pub fn take(self: &Arc<Self>, id: &SandboxId) -> Option<Hand> {
        let free = self.lock().insert(id.clone());
        free.then(|| Hand { hands: self.clone(), id: id.clone() })
    }

    /// Whether somebody has it.
    pub fn has(&self, id: &SandboxId) -> bool {
        self.lock().contains(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<SandboxId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hand {
    /// Which one.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.hands.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_ends_once() {
        let (exits, id): (_, SandboxId) = (Exits::default(), "a".parse().unwrap());
        assert_eq!(exits.of(&id), None);
        exits.note(&id, 7);
        exits.note(&id, 137);
        assert_eq!(exits.of(&id), Some(7));
        (0..Exits::KEPT).for_each(|n| exits.note(&format!("b{n}").parse().unwrap(), 0));
        assert_eq!(exits.of(&id), None, "of the last ones alone");
    }

    #[test]
    fn one_hand_at_a_time() {
        let hands = Arc::new(Hands::default());
        let id: SandboxId = "a".parse().unwrap();
        let hand = hands.take(&id).unwrap();
        assert!(hands.take(&id).is_none() && hands.has(&id) && hand.id() == &id);
        assert!(hands.take(&"b".parse().unwrap()).is_some());
        drop(hand);
        assert!(!hands.has(&id) && hands.take(&id).is_some());
    }
}
