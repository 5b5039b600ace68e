//! What a shim's refusal is called here: the one place where [`Cause`]s become errors of a spawn and of a claim. Pure.

use trust::refusal::Cause;

use crate::error::{ClaimError, SpawnError};
use crate::shim::ShimError;

/// Of a sandbox that was to start.
pub fn of_spawn(cause: Cause, message: String) -> SpawnError {
    match cause {
        Cause::IdentityRejected => SpawnError::IdentityRejected(message),
        Cause::PolicyInvalid => SpawnError::PolicyInvalid(message),
        Cause::SecretUnavailable => SpawnError::SecretUnavailable(message),
        Cause::EgressUnavailable | Cause::FenceLost => SpawnError::EgressUnavailable(message),
        Cause::NotFenceable => SpawnError::NetworkUnavailable(message),
    }
}

/// Of a member that was to be bound.
pub fn of_claim(error: ShimError) -> ClaimError {
    match error {
        ShimError::Because { cause, message } => match cause {
            Cause::IdentityRejected => ClaimError::IdentityRejected(message),
            Cause::PolicyInvalid => ClaimError::PolicyInvalid(message),
            Cause::SecretUnavailable => ClaimError::SecretUnavailable(message),
            Cause::EgressUnavailable => ClaimError::EgressUnavailable(message),
            Cause::FenceLost | Cause::NotFenceable => ClaimError::MemberLost(message),
        },
        // Nobody answers, so nothing is bound; and nobody is left to bind it.
        ShimError::Gone { .. } => ClaimError::MemberLost(error.to_string()),
        // Of a shim that marks nothing: one that ran before this agent was installed.
        ShimError::Rejected(why) => ClaimError::IdentityRejected(why),
        ShimError::Invalid(why) => ClaimError::PolicyInvalid(why),
        ShimError::Unavailable(why) => ClaimError::EgressUnavailable(why),
        other => ClaimError::BindFailed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_reported_by_its_own_word() {
        for cause in Cause::ALL {
            let spawn = of_spawn(cause, "why".into());
            let claim = of_claim(ShimError::Because { cause, message: "why".into() });
            match cause {
                Cause::FenceLost => assert_eq!((spawn.code(), claim.code()), ("egress-unavailable", "member-lost")),
                Cause::NotFenceable => assert_eq!((spawn.code(), claim.code()), ("network-unavailable", "member-lost")),
                _ => assert_eq!((spawn.code(), claim.code()), (cause.word(), cause.word())),
            }
        }
    }
}
