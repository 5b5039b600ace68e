//! For whom each sandbox works, and since which generation of its policy: an attempt is recorded as that agent's under whose policy it
//! was made, also when another has the sandbox by then, or nobody.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::protocol::{Attach, SandboxKey};

/// Of one sandbox so many are told apart: it is handed over once, and may be attached again.
const KEPT: usize = 8;

/// What an attempt's record says of its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// For whom it works.
    pub agent: Option<String>,
    /// The statement about it that was current when it was attached.
    pub attestation: Option<String>,
}

/// All sandboxes, and those that ended a short while ago.
#[derive(Debug, Default)]
pub struct AllKnown(HashMap<SandboxKey, Life>);

#[derive(Debug, Default)]
struct Life {
    /// From which generation on; the last is the current one.
    since: Vec<(u64, Known)>,
    ended: Option<Instant>,
}

impl AllKnown {
    /// What holds of a sandbox from this generation on.
    pub fn know(&mut self, attach: &Attach, generation: u64) {
        let known =
            Known { agent: attach.agent.clone(), attestation: attach.attestation.map(|digest| digest.to_string()) };
        let life = self.0.entry(attach.sandbox.clone()).or_default();
        if life.ended.take().is_some() {
            life.since.clear(); // another sandbox of this name
        }
        life.since.retain(|(before, _)| *before < generation);
        life.since.push((generation, known));
        if life.since.len() > KEPT {
            life.since.remove(0);
        }
    }

    /// It has ended. What it did until now may still have to be recorded.
    pub fn end(&mut self, sandbox: &SandboxKey, now: Instant) {
        if let Some(life) = self.0.get_mut(sandbox) {
            life.ended = Some(now);
        }
    }

    /// Forgets those that ended so long ago.
    pub fn forget(&mut self, after: Duration, now: Instant) {
        self.0.retain(|_, life| life.ended.is_none_or(|ended| now.duration_since(ended) < after));
    }

    /// What holds of a sandbox; as its last, where it has ended.
    pub fn now(&self, sandbox: &SandboxKey) -> Known {
        self.at(sandbox, u64::MAX)
    }

    /// What held of it under the policy of this generation.
    pub fn at(&self, sandbox: &SandboxKey, generation: u64) -> Known {
        let since = self.0.get(sandbox).map(|life| life.since.as_slice()).unwrap_or_default();
        let held = since.iter().rev().find(|(from, _)| *from <= generation).or_else(|| since.first());
        held.map(|(_, known)| known.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::PolicyRef;

    fn attach(id: &str, agent: Option<&str>) -> Attach {
        let sandbox = SandboxKey { namespace: "n".into(), id: id.into() };
        let policy = PolicyRef::Inline(json!({"rules": []}));
        Attach { sandbox, agent: agent.map(str::to_owned), netns: "/x".into(), policy, attestation: None }
    }

    #[test]
    fn an_attempt_is_its_agents_whoever_has_the_sandbox_by_then() {
        let (mut all, start) = (AllKnown::default(), Instant::now());
        let (waits, claimed) = (attach("a", None), attach("a", Some("alice")));
        let sandbox = waits.sandbox.clone();
        let agent = |all: &AllKnown, generation| all.at(&sandbox, generation).agent;
        let alice = || Some("alice".to_owned());
        all.know(&waits, 1);
        all.know(&claimed, 2);
        assert_eq!((agent(&all, 1), agent(&all, 2), agent(&all, 3)), (None, alice(), alice()));
        all.know(&attach("a", Some("bob")), 3);
        all.know(&claimed, 3); // it was refused, and goes back
        assert_eq!((agent(&all, 3), all.now(&sandbox).agent), (alice(), alice()));
        // After the end, as long as something late may be told.
        all.end(&sandbox, start);
        let after = Duration::from_secs(20);
        all.forget(after, start + Duration::from_secs(19));
        assert_eq!((agent(&all, 1), agent(&all, 2), all.now(&sandbox).agent), (None, alice(), alice()));
        all.forget(after, start + after);
        assert_eq!(agent(&all, 2), None);
        assert!(all.0.is_empty(), "nothing is kept");
    }

    #[test]
    fn another_sandbox_of_the_same_name_is_another_agents() {
        let (mut all, start) = (AllKnown::default(), Instant::now());
        all.know(&attach("a", Some("alice")), 4);
        let sandbox = attach("a", None).sandbox;
        all.end(&sandbox, start);
        all.know(&attach("a", Some("bob")), 1);
        all.forget(Duration::ZERO, start);
        assert_eq!(all.at(&sandbox, 1).agent.as_deref(), Some("bob"));
        (2..100).for_each(|generation| all.know(&attach("a", Some("bob")), generation));
        assert_eq!(all.0[&sandbox].since.len(), KEPT, "bounded");
    }
}
