//! What can go wrong with a task, and its ttrpc code: decided here, once.

use containerd_shim_protos::ttrpc::{self, Code};

use trust::id::ClaimId;
use trust::refusal::Cause;

use crate::task::Phase;

/// A failed Task RPC, in our words.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such task, exec or process.
    #[error("{0} not found")]
    NotFound(String),
    /// The rootfs has no such program.
    #[error(transparent)]
    NoProgram(#[from] crate::program::Missing),
    /// The id is taken.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// The task's phase does not allow the call.
    #[error("cannot {verb} {what}, which is {phase}")]
    WrongPhase {
        /// The RPC.
        verb: &'static str,
        /// Container or exec id.
        what: String,
        /// Where it is in its life.
        phase: Phase,
    },
    /// The request itself makes no sense; the text names the field and the fix.
    #[error("{0}")]
    Invalid(String),
    /// Whoever asks is not who it says, or may not have this.
    #[error("{0}")]
    Rejected(String),
    /// The sandbox is not one that waits for this claim.
    #[error("{0}")]
    NotClaimable(String),
    /// A claim failed after something was changed: nobody gets the sandbox any more.
    #[error("the sandbox is spoilt, destroy it: {step} failed for claim {claim}: {why}")]
    Spoilt {
        /// Whose.
        claim: ClaimId,
        /// Where it failed.
        step: &'static str,
        /// The cause.
        why: String,
    },
    /// Somebody who is needed does not answer; nothing was changed.
    #[error("{0}")]
    Unavailable(String),
    /// For a cause that callers tell apart, beyond the code, by its mark.
    #[error("{}", cause.mark(error))]
    Marked {
        /// The cause.
        cause: Cause,
        /// What went wrong.
        error: Box<TaskError>,
    },
    /// This backend has no such operation.
    #[error("{0}")]
    Unimplemented(String),
    /// What a downstream shim answers, word for word.
    #[error("{text}")]
    Downstream {
        /// Its code.
        code: Code,
        /// Whose shim it is, and what it says.
        text: String,
    },
    /// A downstream shim does not answer any more.
    #[error("{0} is gone: {1}")]
    Gone(String, String),
    /// A step on the host failed.
    #[error("{doing}: {why}")]
    Host {
        /// What was being done, in the progressive.
        doing: String,
        /// The cause.
        why: String,
    },
}

impl TaskError {
    /// Wraps a cause with what was being done.
    pub fn host(doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Host { doing: doing.into(), why: why.to_string() }
    }

    /// For this cause, which its message says to programs, too.
    pub fn because(self, cause: Cause) -> Self {
        Self::Marked { cause, error: Box::new(self) }
    }

    /// The code callers branch on.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::NoProgram(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::WrongPhase { .. } | Self::NotClaimable(_) => Code::FAILED_PRECONDITION,
            Self::Spoilt { .. } => Code::ABORTED,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Rejected(_) => Code::PERMISSION_DENIED,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Downstream { code, .. } => *code,
            Self::Gone(..) | Self::Unavailable(_) => Code::UNAVAILABLE,
            Self::Host { .. } => Code::UNKNOWN,
            Self::Marked { error, .. } => error.code(),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error))
    }
}
