//! The audit ledger while the agent runs: what all producers of the node leave in their spools is drained into it, once a second, under
//! signed tree heads. Nobody waits for that. Where it fails the spools go on filling and it is loud: an error in the log, metrics, `/health`.
//!
//! The client drains, too, before it answers (`cli::audit`): SQLite's write lock keeps the two apart. Not here: how a record is kept, and
//! found (`trust::audit`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use trust::audit::inbox::{Inbox, InboxError, Waiting};
use trust::audit::ledger::{HeadSchedule, Ledger, LedgerError};
use trust::audit::node_key::NodeKey;
use trust::clock::SystemClock;
use trust::id::NodeId;
use trust::keys::{KeyError, Keyring};

use crate::metrics::{AuditCounts, Metrics};
use crate::node::Root;

/// The spools are looked at so often; after a failure …
const LOOK: Duration = Duration::from_secs(1);
/// … so long afterwards.
const REST: Duration = Duration::from_secs(5);
/// A drain that has not come to its end for so long is no drain.
const STUCK: Duration = Duration::from_secs(60);

/// Why nothing is drained.
#[derive(Debug, thiserror::Error)]
enum DrainFailed {
    #[error("the node's keys")]
    Keys(#[from] KeyError),
    #[error("the audit ledger")]
    Ledger(#[from] LedgerError),
    #[error("the spools")]
    Spools(#[from] InboxError),
}

/// Drains the node's spools.
#[derive(Debug)]
pub struct Drain {
    node: NodeId,
    /// Where the node's keys are.
    keys: PathBuf,
    ledger: PathBuf,
    inbox: Inbox,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// When a look came to its end last; at first when the agent was started.
    looked: Instant,
    /// Why the last one failed.
    failed: Option<String>,
    /// Records that wait to be vouched for by a tree head, since then.
    unsealed: Option<Instant>,
    counts: AuditCounts,
}

impl Drain {
    /// Of a node's spools, into its ledger.
    pub fn new(root: &Root, node: &NodeId) -> Self {
        let now = Instant::now();
        // Of what was drained before nothing is known: the first look drains in any case.
        let unsealed = Some(now.checked_sub(HeadSchedule::default().after).unwrap_or(now));
        let known = Known { looked: now, failed: None, unsealed, counts: AuditCounts::default() };
        Self {
            node: node.clone(),
            keys: root.lib().to_owned(),
            ledger: root.ledger(),
            inbox: Inbox::at(&root.spool()),
            known: Mutex::new(known),
        }
    }

    /// Drains for as long as it is awaited.
    pub async fn run(self: Arc<Self>, metrics: &Metrics) {
        loop {
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            let rest = looked.unwrap_or_else(|error| {
                tracing::error!(%error, "draining the audit spools");
                REST
            });
            metrics.count_audit(self.known().counts);
            tokio::time::sleep(rest).await;
        }
    }

    /// `None`: all is well; else what is not.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known();
        let waiting = known.counts.waiting;
        match (&known.failed, known.looked.elapsed()) {
            (Some(why), _) => Some(format!("degraded: {waiting} records wait in the spools: {why}")),
            (None, since) if since > STUCK => Some(format!(
                "degraded: {waiting} records wait in the spools: a drain has gone on for {} s",
                since.as_secs()
            )),
            (None, _) => None,
        }
    }

    /// One look at the spools, and a drain where something waits. Gives when to look again.
    fn look(&self) -> Duration {
        let done = self.drain();
        let waiting = self.inbox.waiting();
        let mut known = self.known();
        known.looked = Instant::now();
        if let Ok(Waiting { records, oldest }) = waiting {
            let age = |oldest: SystemTime| oldest.elapsed().unwrap_or_default();
            (known.counts.waiting, known.counts.oldest) = (records, oldest.map(age).unwrap_or_default());
        }
        match done {
            Ok(Some(size)) => known.counts.kept = size,
            Ok(None) => {}
            Err(error) => {
                known.counts.failures += 1;
                let why = trust::chain::chain(&error);
                if known.failed.as_ref() != Some(&why) {
                    tracing::error!(error = why, "audit records are not drained: they wait in the spools");
                }
                known.failed = Some(why);
                return REST;
            }
        }
        if known.failed.take().is_some() {
            tracing::info!("audit records are drained again");
        }
        LOOK
    }

    /// Gives how many records the ledger has, if it was opened.
    fn drain(&self) -> Result<Option<u64>, DrainFailed> {
        let schedule = HeadSchedule::default();
        let head_due = self.known().unsealed.is_some_and(|since| since.elapsed() >= schedule.after);
        if !head_due && self.inbox.list(1)?.is_empty() {
            return Ok(None);
        }
        let keyring = Keyring::open(&self.keys, &SystemClock)?;
        let mut ledger = Ledger::open(&self.ledger, &self.node.to_string())?;
        let signer = NodeKey::new(&self.node, keyring.signer()?);
        let drained = ledger.drain(&self.inbox, &schedule, &signer, SystemTime::now())?;
        let mut known = self.known();
        // A head is over all that was there when it was signed; what the last drain has brought since waits for the next.
        known.unsealed = match drained.heads {
            0 if drained.appended > 0 => known.unsealed.or(Some(Instant::now())),
            0 => known.unsealed.filter(|_| !head_due),
            _ => None,
        };
        drop(known);
        Ok(Some(ledger.size()?))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use trust::audit::{About, Audit, Event, Limits, Spool};

    use super::*;

    #[test]
    fn what_waits_is_drained_and_what_cannot_be_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()));
        fs::create_dir_all(root.lib()).unwrap();
        let spool = Spool::new(&root.spool(), "shim", "node-1", Limits::default()).unwrap();
        let record = || spool.record(&About::default(), Event::SandboxDeleted {});
        let drain = Drain::new(&root, &"node-1".parse().unwrap());
        record();
        record();
        assert_eq!((drain.look(), drain.trouble()), (LOOK, None));
        let counts = drain.known().counts;
        assert_eq!((counts.kept, counts.waiting, counts.failures), (2, 0, 0));
        assert!(drain.known().unsealed.is_none(), "the first look signs what it finds");

        // What is no database takes nothing, and the records wait.
        let kept = dir.path().join("kept");
        fs::rename(root.ledger(), &kept).unwrap();
        fs::create_dir(root.ledger()).unwrap();
        record();
        assert_eq!(drain.look(), REST);
        let trouble = drain.trouble().unwrap();
        assert!(trouble.starts_with("degraded: 1 records wait") && trouble.contains("the audit ledger"), "{trouble}");
        let counts = drain.known().counts;
        assert_eq!((counts.waiting, counts.failures), (1, 1));

        fs::remove_dir(root.ledger()).unwrap();
        fs::rename(&kept, root.ledger()).unwrap();
        assert_eq!((drain.look(), drain.trouble()), (LOOK, None));
        let counts = drain.known().counts;
        assert_eq!((counts.kept, counts.waiting), (3, 0));
        assert!(drain.known().unsealed.is_some(), "no head is over it yet");
    }
}
