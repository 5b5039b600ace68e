//! Where agents are looked up. Behind the trait: a directory on the node (`registry`), or a service (`http`). Answers can be
//! written, for whoever asks may be another process than the one that needs to know.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::id::{AgentId, BackendName, PolicyName};
use crate::keys::jwks::{Jwk, PublicKey};

/// A key of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentKey {
    /// What the header of the agent's tokens calls it.
    pub kid: String,
    /// The key.
    pub key: PublicKey,
}

impl AgentKey {
    /// Without a `kid` of its own it goes by its thumbprint.
    pub fn new(kid: Option<String>, key: PublicKey) -> Self {
        Self { kid: kid.unwrap_or_else(|| key.id().to_string()), key }
    }

    /// All of an agent's keys; an error names the one that is bad.
    pub fn of_jwks(jwks: impl IntoIterator<Item = Jwk>) -> Result<Vec<Self>, String> {
        let mut keys: Vec<Self> = Vec::new();
        for (at, jwk) in jwks.into_iter().enumerate() {
            let key = Self::new(jwk.kid.clone(), jwk.public_key().map_err(|e| format!("keys[{at}]: {e}"))?);
            if keys.iter().any(|other| other.kid == key.kid) {
                return Err(format!("keys[{at}]: kid {:?} is there already", key.kid));
            }
            keys.push(key);
        }
        Ok(keys)
    }
}

/// An agent that may have sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its SPIFFE ID.
    pub id: AgentId,
    /// Its keys; without any it can prove nothing, and exists only by the operator's word.
    pub keys: Vec<AgentKey>,
    /// What may make its sandboxes; `None` for whatever the node has.
    pub backends: Option<Vec<BackendName>>,
    /// Where it may connect if nothing else is said; `None` for nowhere.
    pub default_policy: Option<PolicyName>,
}

/// Why there is no such agent now. Whatever the reason, it gets no sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SourceError {
    /// Nobody has heard of it.
    #[error("agent {0} is not known: {1}")]
    Unknown(AgentId, String),
    /// Known, and out for a while.
    #[error("agent {0} is disabled by {1}")]
    Disabled(AgentId, String),
    /// Known, and out for good.
    #[error("agent {0} is revoked by {1}")]
    Revoked(AgentId, String),
    /// Two files claim it; neither is believed.
    #[error("agent {id} is in {} and in {}: keep one", first.display(), second.display())]
    Twice {
        /// Who.
        id: AgentId,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// What was found cannot be read or believed.
    #[error("{0}")]
    Broken(String),
    /// The source did not answer.
    #[error("agent {0} cannot be looked up: {1}")]
    Unreachable(AgentId, String),
}

/// Looks agents up. An answer is about now: a revoked agent is refused at its next sandbox.
#[async_trait]
pub trait AgentSource: Send + Sync {
    /// The agent, if it may have a sandbox now.
    async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError>;
}
