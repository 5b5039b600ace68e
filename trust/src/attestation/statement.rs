//! The statement: what it is about, by SHA-256, and the predicate. Pure.
//! Source: in-toto attestation framework, Statement v1 and ResourceDescriptor; read strictly, so that one text says one thing.

use serde::{Deserialize, Serialize};

use super::predicate::{self, Launch, Predicate};
use crate::digest::Digest;
use crate::json;

/// The statement's type.
pub const TYPE: &str = "https://in-toto.io/Statement/v1";

/// What a statement can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// The image's manifest, or its index of manifests.
    #[serde(rename = "image")]
    Image,
    /// The config.json that the backend ran, byte by byte.
    #[serde(rename = "config.json")]
    Config,
    /// The effective network policy, as its compiled form is written.
    #[serde(rename = "policy")]
    Policy,
    /// The manifest of the checkpoint that was restored.
    #[serde(rename = "checkpoint")]
    Checkpoint,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Config => "config.json",
            Self::Policy => "policy",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// A statement about a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    config: Digest,
    policy: Digest,
    predicate: Predicate,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<WireSubject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSubject {
    name: Subject,
    digest: DigestSet,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestSet {
    sha256: String,
}

/// Why bytes are no statement of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStatement {
    /// Not JSON, a key twice, a member missing, unknown or of the wrong type.
    #[error("not a sandbox statement: {0}")]
    Shape(String),
    /// Not an in-toto Statement v1.
    #[error("_type is not {TYPE}")]
    Type,
    /// About something else.
    #[error("predicateType is not {}", predicate::TYPE)]
    PredicateType,
    /// `config.json` and `policy` always; `image` and `checkpoint` exactly where the predicate names them.
    #[error("the subjects are not those that the predicate speaks of")]
    Subjects,
}

impl Statement {
    /// About a sandbox with this config.json and policy; the other subjects are in the predicate.
    pub fn new(config: Digest, policy: Digest, predicate: Predicate) -> Self {
        Self { config, policy, predicate }
    }

    /// What is said.
    pub fn predicate(&self) -> &Predicate {
        &self.predicate
    }

    /// A subject's digest; `None` where the statement is not about such a thing.
    pub fn subject(&self, subject: Subject) -> Option<Digest> {
        match (subject, &self.predicate.launch) {
            (Subject::Config, _) => Some(self.config),
            (Subject::Policy, _) => Some(self.policy),
            (Subject::Image, _) => self.predicate.image.digest(),
            (Subject::Checkpoint, Launch::Restored { restored_from }) => Some(*restored_from),
            (Subject::Checkpoint, _) => None,
        }
    }

    fn subjects(&self) -> Vec<WireSubject> {
        [Subject::Image, Subject::Config, Subject::Policy, Subject::Checkpoint]
            .into_iter()
            .filter_map(|name| Some(WireSubject { name, digest: DigestSet { sha256: self.subject(name)?.hex() } }))
            .collect()
    }

    /// The bytes that are signed.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Wire {
            kind: TYPE.into(),
            subject: self.subjects(),
            predicate_type: predicate::TYPE.into(),
            predicate: self.predicate.clone(),
        })
    }

    /// Reads a statement. Who says so is for the caller to know.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadStatement> {
        // The types first: a later version's predicate has another shape, and that is not what is wrong with it.
        let types: Types = json::from_slice(bytes).map_err(|e| BadStatement::Shape(e.to_string()))?;
        if types.kind != TYPE {
            return Err(BadStatement::Type);
        }
        if types.predicate_type != predicate::TYPE {
            return Err(BadStatement::PredicateType);
        }
        let wire: Wire = json::from_slice(bytes).map_err(|e| BadStatement::Shape(e.to_string()))?;
        let digest = |name| {
            let subject = wire.subject.iter().find(|subject| subject.name == name);
            subject.and_then(|subject| Digest::from_hex(&subject.digest.sha256).ok()).ok_or(BadStatement::Subjects)
        };
        let statement =
            Self { config: digest(Subject::Config)?, policy: digest(Subject::Policy)?, predicate: wire.predicate };
        if statement.subjects() != wire.subject { Err(BadStatement::Subjects) } else { Ok(statement) }
    }
}

#[derive(Deserialize)]
struct Types {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}
