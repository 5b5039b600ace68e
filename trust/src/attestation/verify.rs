//! Envelope + trust root + time → what is proven, and what is not. Pure: who calls it reads the files and the clock.

use std::fmt;

use super::dsse::{BadEnvelope, Envelope};
use super::predicate::{Agent, Image};
use super::statement::{BadStatement, Statement, Subject};
use crate::clock::{SKEW, Timestamp};
use crate::digest::Digest;
use crate::id::{KeyId, Namespace, SandboxId};
use crate::keys::jwks::TrustRoot;
use crate::keys::{KeyVersion, Status};

/// What the verifier knows already, and the statement must agree with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// Which sandbox it is about.
    pub sandbox: Option<SandboxId>,
    /// In which containerd namespace.
    pub namespace: Option<Namespace>,
    /// What it is about: each must be a subject.
    pub subjects: Vec<(Subject, Digest)>,
    /// What it must follow.
    pub previous: Previous,
    /// The one key that may have signed it; named, a deprecated key counts.
    pub key_version: Option<KeyVersion>,
}

/// A statement's place in its sandbox's chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Previous {
    /// It does not matter.
    #[default]
    Any,
    /// It is the sandbox's first.
    First,
    /// It follows the statement with this digest.
    Is(Digest),
}

/// A statement whose every check has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What is said.
    pub statement: Statement,
    /// What the next one must name as its previous.
    pub digest: Digest,
    /// What follows from the checks.
    pub proven: Vec<Proven>,
    /// What a reader might take for proven, and is not.
    pub not_proven: Vec<NotProven>,
}

/// Something that follows from the checks. The first ones are about the signature; the rest is what the signer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proven {
    /// Who says so.
    Signer {
        /// The key.
        id: KeyId,
        /// What people call it, if the trust root says.
        version: Option<KeyVersion>,
        /// Active or deprecated.
        status: Status,
    },
    /// When it counts.
    Valid {
        /// From.
        from: Timestamp,
        /// To.
        until: Timestamp,
    },
    /// It is about the sandbox that was expected.
    Sandbox(SandboxId),
    /// It is about a file that was expected.
    Subject(Subject, Digest),
    /// It follows what was expected, `None` for nothing.
    Follows(Option<Digest>),
}

/// Something that nobody should read into a valid statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProven {
    /// No hardware stands behind it.
    Hardware,
    /// Nothing says that there is no later one.
    Latest,
    /// No sandbox was expected.
    WhichSandbox,
    /// No digest was expected of this subject.
    Compared(Subject),
    /// The runtime did not know the image.
    Image,
    /// The image is known from an annotation alone.
    ImageAsked,
    /// The agent is the operator's word.
    AgentsConsent,
    /// There is no agent.
    Agent,
    /// No fence has been observed yet.
    Fence,
    /// Its place in the chain was not looked at.
    Chain,
}

/// The statement proves nothing. Printed as operators know it from the runbook.
#[derive(Debug, thiserror::Error)]
#[error("VerificationResult::Invalid {{ reason: {:?} }}", .reason.to_string())]
pub struct Invalid {
    /// Why.
    pub reason: Reason,
}

/// Which check failed, in the order of the checks.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// No envelope.
    #[error(transparent)]
    Envelope(#[from] BadEnvelope),
    /// The key is nobody's that we trust, whatever the envelope says.
    #[error("keyid is in no trusted key set: was the statement issued on another node?")]
    UnknownKey,
    /// Another key than the one asked for.
    #[error("signed by key {found}, not by {wanted}")]
    OtherKey {
        /// What the trust root calls it.
        found: String,
        /// What was asked for.
        wanted: KeyVersion,
    },
    /// Its overlap is over.
    #[error("key {version} is deprecated since {since}: name it with --key-version if you trust it")]
    Deprecated {
        /// Which.
        version: String,
        /// The end of its overlap.
        since: Timestamp,
    },
    /// Forged, or damaged.
    #[error("Ed25519 signature invalid")]
    Signature,
    /// Signed, but no statement of ours.
    #[error(transparent)]
    Statement(#[from] BadStatement),
    /// Too early.
    #[error("not valid before {0}: compare the clocks")]
    NotYet(Timestamp),
    /// Too late.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// About another sandbox.
    #[error("about sandbox {found}, not {wanted}")]
    OtherSandbox {
        /// What it is about.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// Not about what was expected.
    #[error("{subject} {wanted} is not a subject")]
    Subject {
        /// What.
        subject: Subject,
        /// Its expected digest.
        wanted: Digest,
    },
    /// The chain is broken.
    #[error("follows {found}, not {wanted}")]
    Chain {
        /// What it names as its previous.
        found: String,
        /// What was expected.
        wanted: String,
    },
}

/// Verifies an envelope at `now`. Nothing in it is believed before its signature is; the keys are the trust root's alone.
pub fn verify(bytes: &[u8], trusted: &TrustRoot, now: Timestamp, expected: &Expectations) -> Result<Verified, Invalid> {
    check(bytes, trusted, now, expected).map_err(|reason| Invalid { reason })
}

/// Verifies a sandbox's statements, oldest first, as one unbroken chain that the last of them ends. Only the last one must
/// be valid at `now`: those before were valid when they were replaced.
pub fn verify_chain(
    envelopes: &[Vec<u8>],
    trusted: &TrustRoot,
    now: Timestamp,
    expected: &Expectations,
) -> Result<Option<Verified>, Invalid> {
    let mut before: Option<Verified> = None;
    for (at, bytes) in envelopes.iter().enumerate() {
        let previous = before.as_ref().map_or(Previous::First, |before| Previous::Is(before.digest));
        let last = at + 1 == envelopes.len();
        let mut link = Expectations { previous, ..expected.clone() };
        if let Some(first) = &before {
            let sandbox = &first.statement.predicate().sandbox;
            (link.sandbox, link.namespace) = (Some(sandbox.id.clone()), Some(sandbox.namespace.clone()));
        }
        if !last {
            // What the sandbox is now, its last statement says; and keys change in the life of a sandbox.
            (link.subjects, link.key_version) = (Vec::new(), None);
        }
        let then = if last { now } else { issued_at(bytes).unwrap_or(now) };
        before = Some(verify(bytes, trusted, then, &link)?);
    }
    Ok(before)
}

/// When a statement claims to be issued; only to choose the time at which it is then verified.
fn issued_at(bytes: &[u8]) -> Option<Timestamp> {
    let envelope = Envelope::parse(bytes).ok()?;
    Some(Statement::parse(envelope.unverified_payload()).ok()?.predicate().issued_at)
}

fn check(bytes: &[u8], trusted: &TrustRoot, now: Timestamp, expected: &Expectations) -> Result<Verified, Reason> {
    let envelope = Envelope::parse(bytes)?;
    let key = trusted.find(envelope.keyid()).ok_or(Reason::UnknownKey)?;
    let name = || key.version.map_or_else(|| key.key.id().to_string(), |version| version.to_string());
    match (expected.key_version, key.status) {
        (Some(wanted), _) if key.version != Some(wanted) => return Err(Reason::OtherKey { found: name(), wanted }),
        (None, Status::Deprecated { after }) if !key.status.counts(now) => {
            return Err(Reason::Deprecated { version: name(), since: after });
        }
        _ => {}
    }
    let payload = envelope.verified_by(&key.key).ok_or(Reason::Signature)?;

    // From here on it is the signer's word; what is left is whether it is about what was expected, and now.
    let statement = Statement::parse(payload)?;
    let said = statement.predicate();
    if now.plus(SKEW) < said.issued_at {
        return Err(Reason::NotYet(said.issued_at));
    }
    if now >= said.valid_until {
        return Err(Reason::Expired(said.valid_until));
    }
    for (found, wanted) in [
        (said.sandbox.id.to_string(), expected.sandbox.as_ref().map(ToString::to_string)),
        (said.sandbox.namespace.to_string(), expected.namespace.as_ref().map(ToString::to_string)),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            return Err(Reason::OtherSandbox { found, wanted });
        }
    }
    for (subject, wanted) in expected.subjects.iter().copied() {
        if statement.subject(subject) != Some(wanted) {
            return Err(Reason::Subject { subject, wanted });
        }
    }
    let name = |link: Option<Digest>| link.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
    let wanted = match expected.previous {
        Previous::Any => said.previous,
        Previous::First => None,
        Previous::Is(digest) => Some(digest),
    };
    if said.previous != wanted {
        return Err(Reason::Chain { found: name(said.previous), wanted: name(wanted) });
    }

    let signer = Proven::Signer { id: key.key.id().clone(), version: key.version, status: key.status };
    let (proven, not_proven) = (proven(signer, &statement, expected), not_proven(&statement, expected));
    Ok(Verified { digest: envelope.statement_digest(), proven, not_proven, statement })
}

fn proven(signer: Proven, statement: &Statement, expected: &Expectations) -> Vec<Proven> {
    let said = statement.predicate();
    let mut proven = vec![signer, Proven::Valid { from: said.issued_at, until: said.valid_until }];
    proven.extend(expected.sandbox.clone().map(Proven::Sandbox));
    proven.extend(expected.subjects.iter().map(|(subject, digest)| Proven::Subject(*subject, *digest)));
    if expected.previous != Previous::Any {
        proven.push(Proven::Follows(said.previous));
    }
    proven
}

fn not_proven(statement: &Statement, expected: &Expectations) -> Vec<NotProven> {
    let said = statement.predicate();
    let mut not = vec![NotProven::Hardware, NotProven::Latest];
    if expected.sandbox.is_none() {
        not.push(NotProven::WhichSandbox);
    }
    for subject in [Subject::Image, Subject::Config, Subject::Policy, Subject::Checkpoint] {
        let compared = expected.subjects.iter().any(|(name, _)| *name == subject);
        if statement.subject(subject).is_some() && !compared {
            not.push(NotProven::Compared(subject));
        }
    }
    match said.image {
        Image::Containerd { .. } => {}
        Image::Annotation { .. } => not.push(NotProven::ImageAsked),
        Image::Unknown {} => not.push(NotProven::Image),
    }
    match said.agent {
        Agent::Token { .. } => {}
        Agent::Operator { .. } => not.push(NotProven::AgentsConsent),
        Agent::None {} => not.push(NotProven::Agent),
    }
    not.extend(said.fence.is_none().then_some(NotProven::Fence));
    not.extend((expected.previous == Previous::Any).then_some(NotProven::Chain));
    not
}

impl fmt::Display for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signer { id, version, status } => {
                let version = version.map(|version| format!(" {version}")).unwrap_or_default();
                write!(f, "signed by the trusted key{version} ({id})")?;
                match status {
                    Status::Active => Ok(()),
                    Status::Deprecated { after } => write!(f, ", deprecated as of {after}"),
                }
            }
            Self::Valid { from, until } => write!(f, "issued at {from}, valid until {until}"),
            Self::Sandbox(id) => write!(f, "about sandbox {id}"),
            Self::Subject(subject, digest) => write!(f, "about {subject} {digest}"),
            Self::Follows(None) => write!(f, "the sandbox's first statement"),
            Self::Follows(Some(digest)) => write!(f, "follows the statement {digest}"),
        }
    }
}

impl fmt::Display for NotProven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => {
                write!(f, "that the node tells the truth: its root could sign anything; no hardware vouches")
            }
            Self::Latest => write!(f, "that this is the sandbox's latest statement, or that the sandbox still runs"),
            Self::WhichSandbox => write!(f, "that this is the sandbox you mean: no id was given to compare"),
            Self::Compared(subject) => {
                write!(f, "that {subject} is the one you expect: no digest was given to compare")
            }
            Self::Image => write!(f, "which image runs: its digest was not known to the runtime"),
            Self::ImageAsked => {
                write!(f, "that the image is the one named: an annotation says so, containerd was not heard")
            }
            Self::AgentsConsent => write!(f, "that the agent knows of it: an operator named it, no token was shown"),
            Self::Agent => write!(f, "for whom it works: no agent is bound"),
            Self::Fence => write!(f, "where it may connect: no fence was observed"),
            Self::Chain => write!(f, "what the sandbox was before: its earlier statements were not compared"),
        }
    }
}
