//! Why a shim refuses, in a form that survives its way: through ttrpc, and through containerd, which keeps a message and not always
//! its code, and puts words of its own around both. So a message ends in a mark, `[creto.dev/egress-unavailable]`, defined here, set by the
//! shim at the edge of its errors, and read by whoever tells them apart.

use std::fmt;

/// What a mark begins with.
const BEGINS: &str = "[creto.dev/";
/// And ends with.
const ENDS: char = ']';

/// What callers tell apart. Each has the word of the problem that the node agent reports it as (docs/api.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The agent is unknown, revoked or not allowed this.
    IdentityRejected,
    /// The network policy is not there, or cannot be read or held.
    PolicyInvalid,
    /// A secret is not there, or not for this agent.
    SecretUnavailable,
    /// creto-egress does not answer, or cannot do now what it is asked.
    EgressUnavailable,
    /// creto-egress knows of no fence around this sandbox any more.
    FenceLost,
    /// No fence can stand around the sandbox's network.
    NotFenceable,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::IdentityRejected,
        Self::PolicyInvalid,
        Self::SecretUnavailable,
        Self::EgressUnavailable,
        Self::FenceLost,
        Self::NotFenceable,
    ];

    /// As it is marked.
    pub fn word(self) -> &'static str {
        match self {
            Self::IdentityRejected => "identity-rejected",
            Self::PolicyInvalid => "policy-invalid",
            Self::SecretUnavailable => "secret-unavailable",
            Self::EgressUnavailable => "egress-unavailable",
            Self::FenceLost => "fence-lost",
            Self::NotFenceable => "not-fenceable",
        }
    }

    /// The message, marked.
    pub fn mark(self, message: impl fmt::Display) -> String {
        format!("{message} {BEGINS}{}{ENDS}", self.word())
    }

    /// What a message is marked with, and the message without it. The last mark counts: what stands before may be quoted from anybody.
    pub fn of(message: &str) -> Option<(Self, String)> {
        let (said, behind) = message.rsplit_once(BEGINS)?;
        let (word, rest) = behind.split_once(ENDS)?;
        let cause = Self::ALL.into_iter().find(|cause| cause.word() == word)?;
        Some((cause, format!("{}{rest}", said.trim_end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_again_whatever_stands_around_it() {
        for cause in Cause::ALL {
            let marked = cause.mark("it is not so");
            assert_eq!(Cause::of(&marked), Some((cause, "it is not so".into())));
            let wrapped = format!("failed to start shim task: {marked}: unknown");
            assert_eq!(Cause::of(&wrapped), Some((cause, "failed to start shim task: it is not so: unknown".into())));
        }
        let quoted = Cause::PolicyInvalid.mark("there is no policy \"[creto.dev/fence-lost]\"");
        assert_eq!(Cause::of(&quoted).map(|(cause, _)| cause), Some(Cause::PolicyInvalid));
        for unmarked in ["", "it is not so", "[creto.dev/", "[creto.dev/egress-unavailable", "[creto.dev/colour]"] {
            assert_eq!(Cause::of(unmarked), None, "{unmarked}");
        }
    }
}
