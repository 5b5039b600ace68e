//! Takes what sandboxes tried, from the worker and from the kernel, to the audit trail and the counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use trust::audit::{Audit, Event, Spool};

use super::config::Events;
use super::events::{Aggregate, Counted, about};
use super::known::AllKnown;
use super::metrics::Metrics;
use crate::protocol::{Attach, SandboxKey};
use crate::worker::Attempt;

/// What a sandbox tried is told so long after its end at most, beside the windows in which it is counted.
const LATE: Duration = Duration::from_secs(10);

/// Where the record is kept, and what it has to know of sandboxes.
pub struct Recorder {
    spool: Spool,
    metrics: Arc<Metrics>,
    known: Mutex<AllKnown>,
}

impl Recorder {
    /// Records in this spool.
    pub fn new(spool: Spool, metrics: Arc<Metrics>) -> Self {
        Self { spool, metrics, known: Mutex::default() }
    }

    /// What is known of a sandbox from this generation of its policy on.
    pub fn know(&self, attach: &Attach, generation: u64) {
        self.known().know(attach, generation);
    }

    /// It is gone.
    pub fn ended(&self, sandbox: &SandboxKey) {
        self.known().end(sandbox, Instant::now());
    }

    fn known(&self) -> MutexGuard<'_, AllKnown> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what happened to a sandbox.
    pub fn record(&self, sandbox: &SandboxKey, event: Event) {
        let agent = self.known().now(sandbox).agent;
        self.spool.record(&about(sandbox, agent.as_deref()), event);
    }

    fn counted(&self, counted: Counted) {
        let sandbox = counted.attempt.sandbox.clone();
        let known = self.known().at(&sandbox, counted.attempt.generation);
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
                _ = tick.tick() => {
                    all.flush(Instant::now()).into_iter().for_each(|counted| self.counted(counted));
                    self.known().forget(settings.window * 2 + LATE, Instant::now());
                }
            }
        }
    }
}
