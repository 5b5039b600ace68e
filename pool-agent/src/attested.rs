//! What the kept statements say, for showing: read, and believed no further. What is proven, `trust::attestation::verify` says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trust::attestation::dsse::{BadEnvelope, Envelope};
use trust::attestation::predicate::{self, Agent, Predicate};
use trust::attestation::statement::{self, BadStatement, Statement, Subject};
use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::{AgentId, Namespace, SandboxId};

use crate::statements::{Kept, StatementsError};

/// Why it is not known what a file says.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Unread {
    #[error("what is stored is no envelope; without --json it is printed as it is")]
    Envelope(#[from] BadEnvelope),
    #[error("what is stored is no statement; without --json it is printed as it is")]
    Statement(#[from] BadStatement),
    #[error(transparent)]
    Statements(#[from] StatementsError),
}

/// What a statement says. The predicate's members stand at the top, so that `.validUntil` finds its own; what is around it has names
/// that no predicate has. A test holds the shape to docs/cli.md.
#[derive(Debug, Serialize)]
pub struct Decoded {
    verified: bool,
    #[serde(rename = "statementDigest")]
    digest: Digest,
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: Value,
    #[serde(rename = "predicateType")]
    predicate_type: &'static str,
    /// The predicate.
    #[serde(flatten)]
    pub predicate: Predicate,
    envelope: Value,
}

/// Reads an envelope's bytes.
pub fn decoded(bytes: &[u8]) -> Result<Decoded, Unread> {
    let envelope = Envelope::parse(bytes)?;
    let statement = Statement::parse(envelope.unverified_payload())?;
    let subjects = [Subject::Image, Subject::Config, Subject::Policy, Subject::Checkpoint];
    let subject = |name| Some(json!({"name": name, "digest": {"sha256": statement.subject(name)?.hex()}}));
    Ok(Decoded {
        verified: false,
        digest: envelope.statement_digest(),
        kind: statement::TYPE,
        subject: subjects.into_iter().filter_map(subject).collect(),
        predicate_type: predicate::TYPE,
        predicate: statement.predicate().clone(),
        envelope: serde_json::from_slice(bytes).map_err(|e| BadEnvelope::Shape(e.to_string()))?,
    })
}

/// A sandbox's current statement among others; nothing in it is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AttestationSummary")]
pub struct Summary {
    /// containerd's namespace.
    pub namespace: Namespace,
    /// The sandbox.
    pub id: SandboxId,
    /// Never: whoever reads it verifies it.
    pub verified: bool,
    /// For whom it works, and how that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// When it was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    /// Until when it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the current statement about a sandbox says in short.
pub fn summary(kept: &Kept) -> Summary {
    let said = kept.current().map_err(Unread::from).and_then(|bytes| decoded(&bytes)).map(|said| said.predicate);
    let (namespace, id) = (kept.namespace.clone(), kept.id.clone());
    let unread =
        Summary { namespace, id, verified: false, agent: None, issued_at: None, valid_until: None, error: None };
    match said {
        Ok(Predicate { agent, issued_at, valid_until, .. }) => {
            Summary { agent: Some(agent), issued_at: Some(issued_at), valid_until: Some(valid_until), ..unread }
        }
        Err(error) => Summary { error: Some(error.to_string()), ..unread },
    }
}

impl Summary {
    /// For whom the sandbox works, by its statement.
    pub fn works_for(&self) -> Option<&AgentId> {
        match self.agent.as_ref()? {
            Agent::Token { id } | Agent::Operator { id } => Some(id),
            Agent::None {} => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statements::find;

    #[test]
    fn what_is_no_statement_is_nobodys_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("creto/a/00000001.dsse.json");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "{}").unwrap();
        let summary = summary(&find(dir.path(), &"a".parse().unwrap(), None).unwrap());
        assert!(summary.works_for().is_none() && summary.error.unwrap().contains("no envelope"));
    }
}
