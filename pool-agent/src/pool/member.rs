//! What becomes of a sandbox: (phase, input) → phase, in one table, and the record that follows. Pure.
//!
//! ```text
//! Warming ─▶ Ready ─▶ Claimed ─▶ Running ─▶ Terminating ─▶ (no record)
//!    └── a cold spawn ────────────▶┘            ▲
//!    any of them ─▶ Failed, its reason kept ────┘
//! ```

use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::{AgentId, SandboxId};

use crate::sandbox::{Activity, Claim, Fence, Phase, Reason, Sandbox};
use crate::spec::SandboxSpec;

/// What happens to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A member is there, and behind its fence: only so it can become Ready.
    Warmed(Fence),
    /// A cold spawn runs, behind its fence.
    Started(Fence),
    /// A claim takes it.
    Taken(Claim),
    /// It is bound to what the claim asked for.
    Bound,
    /// It could not be made or bound, or ended against all wishes.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// A member that waits shall end. One that a claim took meanwhile is the claim's: it does not.
    Evicted {
        /// For programs, such as `evicted-stale`.
        code: String,
        /// For people.
        message: String,
    },
    /// Nobody makes, binds or takes it down any more, and what is left of it is taken down. One that was taken up again meanwhile, and
    /// works, is its claim's: it is not.
    Swept {
        /// For programs, such as `interrupted`.
        code: String,
        /// For people.
        message: String,
    },
    /// It shall end, or has ended as it should; what is left of it is taken down.
    Ended {
        /// For programs, such as `terminated`.
        code: String,
        /// For people.
        message: String,
    },
    /// Something of its record changes, and not its phase.
    Amended,
}

impl Input {
    /// It shall end, and why.
    pub fn ended(code: &str, message: impl Into<String>) -> Self {
        Self::Ended { code: code.to_owned(), message: message.into() }
    }

    /// It shall end if it still waits, and why.
    pub fn evicted(code: &str, message: impl Into<String>) -> Self {
        Self::Evicted { code: code.to_owned(), message: message.into() }
    }

    /// What is left of it shall go, and why.
    pub fn swept(code: &str, message: impl Into<String>) -> Self {
        Self::Swept { code: code.to_owned(), message: message.into() }
    }

    /// It failed, and why.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Failed { code: code.to_owned(), message: message.into() }
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Warmed(_) => "become ready",
            Self::Started(_) => "start to run",
            Self::Taken(_) => "be claimed",
            Self::Bound => "be bound",
            Self::Failed { .. } => "fail",
            Self::Evicted { .. } => "be evicted",
            Self::Swept { .. } => "be swept away",
            Self::Ended { .. } => "end",
            Self::Amended => "be changed",
        }
    }
}

/// What changes of a record beside its phase; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// For whom it works.
    pub agent: Option<AgentId>,
    /// What it is asked to be.
    pub spec: Option<SandboxSpec>,
    /// What holds its packets.
    pub fence: Option<Fence>,
    /// The current statement about it.
    pub attestation: Option<Digest>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was used last.
    pub activity: Option<Activity>,
}

/// What cannot happen to a sandbox in its phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sandbox {sandbox} is {phase} and cannot {verb}")]
pub struct WrongPhase {
    /// Which one.
    pub sandbox: SandboxId,
    /// Where it is in its life.
    pub phase: Phase,
    /// What was to happen.
    pub verb: &'static str,
}

/// The table. `None` where it cannot happen.
pub fn step(phase: Phase, input: &Input) -> Option<Phase> {
    use Phase::{Claimed, Failed, Ready, Running, Terminating, Warming};
    match (phase, input) {
        (Warming, Input::Warmed(_)) => Some(Ready),
        (Warming, Input::Started(_)) => Some(Running),
        (Ready, Input::Taken(_)) => Some(Claimed),
        (Claimed, Input::Bound) => Some(Running),
        (Warming | Ready | Claimed | Running | Failed, Input::Failed { .. }) => Some(Failed),
        // What is being taken down exits, and that is no failure.
        (Terminating, Input::Failed { .. }) => Some(Terminating),
        (Ready, Input::Evicted { .. }) => Some(Terminating),
        (Warming | Claimed | Failed | Terminating, Input::Swept { .. }) => Some(Terminating),
        (_, Input::Ended { .. }) => Some(Terminating),
        (Warming | Ready | Claimed | Running, Input::Amended) => Some(phase),
        _ => None,
    }
}

/// The record after `input`.
pub fn advance(before: &Sandbox, input: Input, change: Change, now: Timestamp) -> Result<Sandbox, WrongPhase> {
    let wrong = |verb| WrongPhase { sandbox: before.id.clone(), phase: before.phase, verb };
    let phase = step(before.phase, &input).ok_or_else(|| wrong(input.verb()))?;
    // A cold spawn was made for its caller and is nobody's to claim; a member runs for nobody before it is claimed.
    match (&input, &before.pool) {
        (Input::Warmed(_), None) | (Input::Started(_), Some(_)) => return Err(wrong(input.verb())),
        _ => {}
    }
    let mut after = before.clone();
    after.phase = phase;
    if phase != before.phase {
        after.changed_at = now;
    }
    match input {
        Input::Warmed(fence) | Input::Started(fence) => {
            after.fence = Some(fence);
            after.ready_at = Some(now);
        }
        Input::Taken(claim) => after.claim = Some(claim),
        // The first reason is the one that counts.
        Input::Failed { code, message } if phase == Phase::Failed => {
            after.reason.get_or_insert(Reason { phase: before.phase, code, message });
        }
        Input::Evicted { code, message } | Input::Swept { code, message } | Input::Ended { code, message } => {
            after.reason.get_or_insert(Reason { phase: before.phase, code, message });
        }
        Input::Failed { .. } | Input::Bound | Input::Amended => {}
    }
    let Change { agent, spec, fence, attestation, expires_at, activity } = change;
    after.agent = agent.or(after.agent);
    after.spec = spec.unwrap_or(after.spec);
    after.fence = fence.or(after.fence);
    after.attestation = attestation.or(after.attestation);
    after.expires_at = expires_at.or(after.expires_at);
    after.activity = activity.or(after.activity);
    Ok(after)
}

#[cfg(test)]
mod tests {
    use Phase::{Claimed, Failed, Ready, Running, Terminating, Warming};

    use super::*;
    use crate::sandbox::{Generation, Membership};

    fn inputs() -> [Input; 9] {
        let claim = Claim {
            id: "claim-1".parse().unwrap(),
            pool: "demo".parse().unwrap(),
            idempotency_key: None,
            agent: None,
            at: Timestamp::from_unix(1),
        };
        [
            Input::Warmed(Fence::Sealed),
            Input::Started(Fence::Sealed),
            Input::Taken(claim),
            Input::Bound,
            Input::failed("f", "it failed"),
            Input::evicted("v", "too many"),
            Input::swept("s", "nobody's"),
            Input::ended("e", "it ended"),
            Input::Amended,
        ]
    }

    fn sandbox(phase: Phase, pool: bool) -> Sandbox {
        let member = Membership { pool: "demo".parse().unwrap(), generation: Generation::of(b"") };
        let spec = SandboxSpec::of("a".parse().unwrap());
        let (id, node) = ("box".parse().unwrap(), "node".parse().unwrap());
        Sandbox { phase, ..Sandbox::wished(id, node, pool.then_some(member), spec, Timestamp::from_unix(0)) }
    }

    #[test]
    fn each_phase_allows_what_the_table_says() {
        // Warmed, Started, Taken, Bound, Failed, Evicted, Swept, Ended, Amended
        let (t, none) = (Some(Terminating), None);
        for (phase, row) in [
            (Warming, [Some(Ready), Some(Running), none, none, Some(Failed), none, t, t, Some(Warming)]),
            (Ready, [none, none, Some(Claimed), none, Some(Failed), t, none, t, Some(Ready)]),
            (Claimed, [none, none, none, Some(Running), Some(Failed), none, t, t, Some(Claimed)]),
            (Running, [none, none, none, none, Some(Failed), none, none, t, Some(Running)]),
            (Terminating, [none, none, none, none, t, none, t, t, none]),
            (Failed, [none, none, none, none, Some(Failed), none, t, t, none]),
        ] {
            assert_eq!(inputs().each_ref().map(|input| step(phase, input)), row, "{phase}");
        }
    }

    #[test]
    fn nothing_is_ready_or_runs_without_its_fence() {
        let (now, none) = (Timestamp::from_unix(9), Change::default());
        let member = advance(&sandbox(Warming, true), Input::Warmed(Fence::Sealed), none.clone(), now).unwrap();
        assert_eq!((member.phase, member.fence, member.ready_at), (Ready, Some(Fence::Sealed), Some(now)));
        let cold = advance(&sandbox(Warming, false), Input::Started(Fence::Sealed), none.clone(), now).unwrap();
        assert_eq!((cold.phase, cold.fence, cold.changed_at), (Running, Some(Fence::Sealed), now));
        for (input, pool) in [(Input::Warmed(Fence::Sealed), false), (Input::Started(Fence::Sealed), true)] {
            let error = advance(&sandbox(Warming, pool), input, none.clone(), now).unwrap_err();
            assert!(error.to_string().starts_with("sandbox box is Warming and cannot"), "{error}");
        }
    }

    #[test]
    fn the_first_reason_is_kept() {
        let (now, none) = (Timestamp::from_unix(9), Change::default());
        let failed =
            advance(&sandbox(Warming, true), Input::failed("image-not-found", "no"), none.clone(), now).unwrap();
        let again = advance(&failed, Input::failed("timeout", "late"), none.clone(), now).unwrap();
        let ended = advance(&again, Input::ended("removed", "swept"), none.clone(), now).unwrap();
        let exited = advance(&ended, Input::failed("exited", "exit 137"), none, now).unwrap();
        let reason = Reason { phase: Warming, code: "image-not-found".into(), message: "no".into() };
        assert_eq!((exited.phase, exited.reason), (Terminating, Some(reason)));
    }

    #[test]
    fn what_is_not_changed_stays() {
        let now = Timestamp::from_unix(9);
        let agent: AgentId = "spiffe://example.org/agents/a".parse().unwrap();
        let change = Change { agent: Some(agent.clone()), expires_at: Some(now), ..Change::default() };
        let bound = advance(&sandbox(Claimed, true), Input::Bound, change, now).unwrap();
        let later = advance(&bound, Input::Amended, Change::default(), Timestamp::from_unix(10)).unwrap();
        assert_eq!((later.agent, later.expires_at, later.changed_at), (Some(agent), Some(now), now));
    }
}
