//! Takes what sandboxes tried, from the worker and from the kernel, to the audit trail and the counters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use trust::audit::{Audit, Event, Spool};

use super::config::Events;
use super::events::{Aggregate, Counted, about};
use super::metrics::Metrics;
use crate::protocol::{Attach, SandboxKey};
use crate::worker::Attempt;

/// Where the record is kept, and what it has to know of sandboxes.
pub struct Recorder {
    spool: Spool,
    metrics: Arc<Metrics>,
    known: Mutex<HashMap<SandboxKey, Known>>,
}

/// What an attempt's record says of its sandbox.
#[derive(Clone, Debug, Default)]
struct Known {
    /// For whom it works.
    agent: Option<String>,
    /// The statement about it that was current when it was attached.
    attestation: Option<String>,
}

impl Recorder {
    /// Records in this spool.
    pub fn new(spool: Spool, metrics: Arc<Metrics>) -> Self {
        Self { spool, metrics, known: Mutex::default() }
    }

    /// What is known of a sandbox from now on.
    pub fn know(&self, attach: &Attach) {
        let attestation = attach.attestation.map(|digest| digest.to_string());
        self.all().insert(attach.sandbox.clone(), Known { agent: attach.agent.clone(), attestation });
    }

    /// It is gone.
    pub fn forget(&self, sandbox: &SandboxKey) {
        self.all().remove(sandbox);
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what happened to a sandbox.
    pub fn record(&self, sandbox: &SandboxKey, event: Event) {
        let agent = self.all().get(sandbox).and_then(|known| known.agent.clone());
        self.spool.record(&about(sandbox, agent.as_deref()), event);
    }

    fn counted(&self, counted: Counted) {
        let sandbox = counted.attempt.sandbox.clone();
        let known = self.all().get(&sandbox).cloned().unwrap_or_default();
        self.spool.record(&about(&sandbox, known.agent.as_deref()), counted.event(known.attestation));
    }

    /// Takes attempts for as long as somebody tells them.
    pub async fn run(self: Arc<Self>, settings: Events, mut attempts: mpsc::Receiver<(Vec<Attempt>, u64)>) {
        let mut all = Aggregate::new(settings.window, settings.allowed);
        let mut tick = tokio::time::interval(settings.window / 2);
        loop {
            tokio::select! {
                told = attempts.recv() => {
                    let Some((told, lost)) = told else { return };
                    self.metrics.lost(lost);
                    for attempt in told {
                        self.metrics.attempt(&attempt.outcome);
                        all.tell(attempt, Instant::now()).into_iter().for_each(|counted| self.counted(counted));
                    }
                }
                _ = tick.tick() => all.flush(Instant::now()).into_iter().for_each(|counted| self.counted(counted)),
            }
        }
    }
}
