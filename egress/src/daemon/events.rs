//! What sandboxes tried, as records of the audit trail. A flood becomes counts: of attempts that are alike the first is
//! recorded at once and the others together, once for each window; and of one sandbox only so many kinds are told apart.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use trust::audit::{About, Connection, Event, Protocol as Transport};

use crate::policy::Protocol;
use crate::protocol::SandboxKey;
use crate::worker::{Attempt, Outcome};

/// The kinds of attempts of one sandbox that are told apart within a window.
const KINDS: usize = 256;
/// The destination of those beyond.
const MANY: &str = "(many)";

/// Which attempts that were let through are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// As those that were refused: the first, then counts.
    #[default]
    Count,
    /// None.
    Off,
}

/// Attempts that have been recorded and may come again.
#[derive(Debug)]
pub struct Aggregate {
    window: Duration,
    allowed: Allowed,
    sandboxes: HashMap<SandboxKey, HashMap<Kind, Seen>>,
}

/// Attempts that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    destination: String,
    port: u16,
    protocol: Protocol,
    outcome: Outcome,
    rule: Option<String>,
    generation: u64,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    /// Not recorded yet.
    more: u64,
}

/// Attempts to record.
#[derive(Debug, PartialEq, Eq)]
pub struct Counted {
    /// One of them.
    pub attempt: Attempt,
    /// How many there were.
    pub count: u64,
}

impl Aggregate {
    /// Counts within windows of this length.
    pub fn new(window: Duration, allowed: Allowed) -> Self {
        Self { window, allowed, sandboxes: HashMap::new() }
    }

    /// What is to be recorded of an attempt now.
    pub fn tell(&mut self, attempt: Attempt, now: Instant) -> Option<Counted> {
        if attempt.outcome == Outcome::Allowed && self.allowed == Allowed::Off {
            return None;
        }
        let Attempt { sandbox, destination, port, protocol, outcome, rule, generation } = attempt;
        let kinds = self.sandboxes.entry(sandbox.clone()).or_default();
        let mut kind = Kind { destination, port, protocol, outcome, rule, generation };
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            let (destination, rule) = (MANY.to_owned(), None);
            kind = Kind { destination, port: 0, rule, ..kind };
        }
        match kinds.entry(kind) {
            Entry::Occupied(mut seen) => {
                seen.get_mut().more += 1;
                None
            }
            Entry::Vacant(place) => {
                let attempt = place.key().of(&sandbox);
                place.insert(Seen { since: now, more: 0 });
                Some(Counted { attempt, count: 1 })
            }
        }
    }

    /// What has come since, of windows that have ended.
    pub fn flush(&mut self, now: Instant) -> Vec<Counted> {
        let mut ended = Vec::new();
        self.sandboxes.retain(|sandbox, kinds| {
            kinds.retain(|kind, seen| {
                if now.duration_since(seen.since) < self.window {
                    return true;
                }
                let more = std::mem::take(&mut seen.more);
                if more > 0 {
                    ended.push(Counted { attempt: kind.of(sandbox), count: more });
                }
                seen.since = now;
                more > 0 // it goes on
            });
            !kinds.is_empty()
        });
        ended
    }
}

impl Kind {
    fn of(&self, sandbox: &SandboxKey) -> Attempt {
        let Self { destination, port, protocol, outcome, rule, generation } = self.clone();
        Attempt { sandbox: sandbox.clone(), destination, port, protocol, outcome, rule, generation }
    }
}

impl Counted {
    /// As the record has it; `attestation` is the current statement about the sandbox.
    pub fn event(self, attestation: Option<String>) -> Event {
        let Attempt { destination, port, protocol, outcome, rule, generation, .. } = self.attempt;
        let protocol = match protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        let text = |text: String| text.as_str().into();
        let (destination, rule) = (destination.as_str().into(), rule.map(text));
        let (count, attestation) = (self.count, attestation.map(text));
        let connection = Connection { destination, port, protocol, rule, generation, count, attestation };
        match outcome {
            Outcome::Allowed => Event::EgressAllowed { connection },
            Outcome::Denied(reason) => Event::EgressDenied { connection, reason: text(reason) },
            Outcome::AuthzRequired => Event::AuthzRequired { connection },
        }
    }
}

/// Whom the record says an attempt concerns.
pub fn about(sandbox: &SandboxKey, agent: Option<&str>) -> About {
    let text = |text: &str| Some(text.into());
    About {
        namespace: text(&sandbox.namespace),
        sandbox: text(&sandbox.id),
        agent: agent.map(Into::into),
        backend: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(destination: &str, outcome: Outcome) -> Attempt {
        Attempt {
            sandbox: SandboxKey { namespace: "n".into(), id: "s".into() },
            destination: destination.into(),
            port: 443,
            protocol: Protocol::Tcp,
            outcome,
            rule: None,
            generation: 1,
        }
    }

    fn denied() -> Outcome {
        Outcome::Denied("no rule allows it".into())
    }

    #[test]
    fn the_first_is_recorded_at_once_and_the_others_as_a_count() {
        let (mut all, start) = (Aggregate::new(Duration::from_secs(10), Allowed::Count), Instant::now());
        assert_eq!(all.tell(attempt("a", denied()), start).map(|c| c.count), Some(1));
        for _ in 0..5 {
            assert_eq!(all.tell(attempt("a", denied()), start), None);
        }
        assert!(all.tell(attempt("b", denied()), start).is_some(), "another kind");
        assert_eq!(all.flush(start + Duration::from_secs(9)), []);
        let flushed = all.flush(start + Duration::from_secs(10));
        assert_eq!(flushed, [Counted { attempt: attempt("a", denied()), count: 5 }]);
        assert_eq!(all.flush(start + Duration::from_secs(20)), []);
        assert!(all.sandboxes.is_empty(), "nothing is kept of what has ended");
    }

    #[test]
    fn a_flood_of_kinds_is_one_kind() {
        let (mut all, start) = (Aggregate::new(Duration::from_secs(10), Allowed::Count), Instant::now());
        let recorded = (0..10_000).filter_map(|n| all.tell(attempt(&n.to_string(), denied()), start)).count();
        assert_eq!(recorded, KINDS + 1);
        let flushed = all.flush(start + Duration::from_secs(10));
        assert_eq!(flushed.len(), 1);
        assert_eq!((flushed[0].attempt.destination.as_str(), flushed[0].count), (MANY, 10_000 - KINDS as u64 - 1));
    }

    #[test]
    fn what_is_allowed_may_be_left_out() {
        let (mut all, start) = (Aggregate::new(Duration::from_secs(10), Allowed::Off), Instant::now());
        assert_eq!(all.tell(attempt("a", Outcome::Allowed), start), None);
        assert!(all.tell(attempt("a", denied()), start).is_some());
    }
}
