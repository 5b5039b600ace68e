//! Sandboxes that nobody uses end when their `idle_timeout` is over.
//!
//! A sandbox is used while somebody has a session in it (exec, attach, files in or out; whoever only
//! reads its log, for as long as that may be, does nothing in it), and whenever it has used more than [`FLOOR`] of a
//! processor since it was looked at before. What was seen last is kept in its record, so that an agent that was restarted goes on from there.
//! Not here: members that wait, whose age is their pool's business; what connects from inside counts by the processor time that it takes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trust::clock::Timestamp;
use trust::id::SandboxId;

use crate::containerd::{ContainersError, Usage};
use crate::ending::{Manner, end_soon};
use crate::pool::member::{Change, Input};
use crate::ports::Ports;
use crate::sandbox::{Activity, Phase, Sandbox};
use crate::store::StoreError;

/// Of one processor. What does nothing uses less, its kernel and its timers among it.
const FLOOR: f64 = 0.01;
/// A sandbox is looked at ten times before its time is over, and not more often or more seldom than this.
const LOOKS: u32 = 10;
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(10);

/// Why it is not known who is idle.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// What sandboxes use.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who has a session in which sandbox.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SandboxId, usize>>);

/// A session; it ends when this is dropped.
#[derive(Debug)]
pub struct InUse {
    sessions: Arc<Sessions>,
    id: SandboxId,
}

impl Sessions {
    /// One begins.
    pub fn begin(self: &Arc<Self>, id: &SandboxId) -> InUse {
        *self.lock().entry(id.clone()).or_default() += 1;
        InUse { sessions: self.clone(), id: id.clone() }
    }

    /// Where there is one now, or was since this was asked last.
    fn seen(&self) -> HashSet<SandboxId> {
        let mut all = self.lock();
        let seen = all.keys().cloned().collect();
        all.retain(|_, open| *open > 0);
        seen
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // At zero it stays until it was seen.
        if let Some(open) = self.sessions.lock().get_mut(&self.id) {
            *open = open.saturating_sub(1);
        }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Used,
    Unused,
    /// Nobody has used it for as long as it may be.
    Over,
}

/// Of a sandbox that was used last at `last`, and has used so many nanoseconds of processor time in `during`.
fn judge(timeout: Duration, last: Timestamp, nanos: u64, during: Duration, session: bool, now: Timestamp) -> Verdict {
    if session || nanos as f64 > during.as_nanos() as f64 * FLOOR {
        Verdict::Used
    } else if now.since(last) >= timeout {
        Verdict::Over
    } else {
        Verdict::Unused
    }
}

/// What is known of the sandboxes that may become idle.
#[derive(Debug, Default)]
pub struct Idle {
    all: BTreeMap<SandboxId, Looked>,
    sessions: HashSet<SandboxId>,
}

#[derive(Clone, Copy, Debug)]
struct Looked {
    at: Instant,
    cpu_nanos: u64,
    /// When it was used last.
    used: Timestamp,
    /// When its record says so.
    kept: Timestamp,
}

impl Idle {
    /// Of `all` on this node, looks at those whose turn it is, and ends what is idle; asked once a second or so.
    pub async fn look(&mut self, ports: &Arc<Ports>, all: &[Sandbox]) -> Result<(), IdleError> {
        self.sessions.extend(ports.sessions.seen());
        let may_be_idle = |sandbox: &&Sandbox| sandbox.phase == Phase::Running && sandbox.spec.idle_timeout.is_some();
        let mut running: Vec<_> = all.iter().filter(may_be_idle).collect();
        let there: HashSet<_> = running.iter().map(|sandbox| sandbox.id.clone()).collect();
        self.all.retain(|id, _| there.contains(id));
        self.sessions.retain(|id| there.contains(id));
        running.retain(|sandbox| self.is_due(sandbox));
        if running.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = running.iter().map(|sandbox| sandbox.id.to_string()).collect();
        let used = ports.maker.containers.usage(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        for sandbox in running {
            // Of one that is not told of nothing is known: it has just ended, or its shim does not answer.
            if let Some(usage) = used.get(&sandbox.id.to_string()) {
                self.look_at(ports, sandbox, usage).await?;
            }
        }
        Ok(())
    }

    fn is_due(&self, sandbox: &Sandbox) -> bool {
        let timeout = sandbox.spec.idle_timeout.unwrap_or_default();
        let every = (timeout / LOOKS).clamp(SOONEST, LATEST);
        self.all.get(&sandbox.id).is_none_or(|looked| looked.at.elapsed() >= every)
    }

    async fn look_at(&mut self, ports: &Arc<Ports>, sandbox: &Sandbox, usage: &Usage) -> Result<(), StoreError> {
        let (now, at, cpu_nanos) = (ports.now(), Instant::now(), usage.cpu_nanos);
        let timeout = sandbox.spec.idle_timeout.unwrap_or_default();
        let session = self.sessions.remove(&sandbox.id);
        let (last, nanos, during, kept) = match (self.all.get(&sandbox.id), &sandbox.activity) {
            (Some(looked), _) => {
                (looked.used, cpu_nanos.saturating_sub(looked.cpu_nanos), at - looked.at, Some(looked.kept))
            }
            // Another agent has looked at it last.
            (None, Some(seen)) => {
                (seen.at, cpu_nanos.saturating_sub(seen.cpu_nanos), now.since(seen.at), Some(seen.at))
            }
            // It has begun to run just now.
            (None, None) => (now, u64::MAX, Duration::ZERO, None),
        };
        let used = match judge(timeout, last, nanos, during, session, now) {
            Verdict::Used => now,
            Verdict::Unused => last,
            Verdict::Over => {
                let why = format!("nobody has used it for {}", humantime::format_duration(timeout));
                end_soon(ports, &sandbox.id, Input::ended("idle", why), Manner::Graceful);
                last
            }
        };
        let keep = kept.is_none_or(|kept| used.since(kept) >= (timeout / LOOKS).max(SOONEST));
        if keep {
            let activity = Some(Activity { at: used, cpu_nanos });
            match ports.store.advance(&sandbox.id, Input::Amended, Change { activity, ..Change::default() }, now).await
            {
                Ok(_) | Err(StoreError::NotFound(_) | StoreError::WrongPhase(_)) => {} // it has ended meanwhile
                Err(error) => return Err(error),
            }
        }
        let kept = if keep { used } else { kept.unwrap_or(used) };
        self.all.insert(sandbox.id.clone(), Looked { at, cpu_nanos, used, kept });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_is_what_has_a_session_or_computes() {
        let at = |seconds: u64| Timestamp::from_unix(1000 + seconds);
        let (timeout, second) = (Duration::from_secs(60), Duration::from_secs(1));
        for (what, now, nanos, session, verdict) in [
            ("it computes", 59, 20_000_000, false, Verdict::Used),
            ("it computes, after all", 3600, 20_000_000, false, Verdict::Used),
            ("somebody is in it", 3600, 0, true, Verdict::Used),
            ("its timers tick", 59, 9_000_000, false, Verdict::Unused),
            ("its time is over", 60, 9_000_000, false, Verdict::Over),
            ("the clock was set back", 0, 0, false, Verdict::Unused),
        ] {
            assert_eq!(judge(timeout, at(0), nanos, second, session, at(now)), verdict, "{what}");
        }
    }

    #[test]
    fn a_session_counts_while_it_lasts_and_once_after_its_end() {
        let sessions = Arc::new(Sessions::default());
        let (a, b): (SandboxId, SandboxId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (first, second) = (sessions.begin(&a), sessions.begin(&a));
        drop(sessions.begin(&b));
        assert_eq!(sessions.seen(), HashSet::from([a.clone(), b]), "one that was short, too");
        drop(first);
        assert_eq!(sessions.seen(), HashSet::from([a.clone()]));
        drop(second);
        assert_eq!(sessions.seen(), HashSet::from([a]), "it has ended since");
        assert_eq!(sessions.seen(), HashSet::new());
    }
}
