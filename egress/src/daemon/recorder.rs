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

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};
    use trust::audit::Limits;

    use super::super::events::Allowed;
    use super::*;
    use crate::policy::Protocol;
    use crate::protocol::PolicyRef;
    use crate::worker::Outcome;

    #[tokio::test(start_paused = true)]
    async fn what_is_told_after_a_sandboxs_end_is_its_agents_still() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), "egress", "n1", Limits::default()).unwrap();
        let recorder = Arc::new(Recorder::new(spool, Arc::new(Metrics::new())));
        let sandbox = SandboxKey { namespace: "n".into(), id: "s".into() };
        let policy = PolicyRef::Inline(json!({"rules": []}));
        let waits = Attach { sandbox: sandbox.clone(), agent: None, netns: "/x".into(), policy, attestation: None };
        recorder.know(&waits, 1);
        recorder.know(&Attach { agent: Some("alice".into()), ..waits }, 2);
        recorder.ended(&sandbox);
        let attempt = |destination: &str, generation| Attempt {
            sandbox: sandbox.clone(),
            destination: destination.into(),
            port: 443,
            protocol: Protocol::Tcp,
            outcome: Outcome::Denied("no rule allows it".into()),
            rule: None,
            generation,
        };
        let (tell, told) = mpsc::channel(1);
        let settings = Events { window: Duration::from_secs(10), allowed: Allowed::Count };
        let runs = tokio::spawn(recorder.clone().run(settings, told));
        tell.send((vec![attempt("early.example", 1), attempt("late.example", 2)], 0)).await.unwrap();
        drop(tell);
        runs.await.unwrap();
        let mut recorded = Vec::new();
        for file in fs::read_dir(dir.path().join(recorder.spool.producer().as_str())).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            recorded.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        let agent = |destination: &str| {
            let found = recorded.iter().find(|record| record.to_string().contains(destination)).unwrap();
            found.to_string().contains("alice")
        };
        assert_eq!((recorded.len(), agent("early.example"), agent("late.example")), (2, false, true), "{recorded:?}");
    }
}
