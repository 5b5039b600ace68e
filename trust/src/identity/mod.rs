//! Who a sandbox works for. [`Binder::bind`] turns what a request claims into an [`Identity`], which nothing else can make:
//! no identity, no sandbox.
//!
//! Below it: what a caller's token must be (`token`), that it is good once (`replay`), where agents are looked up
//! (`source`, `registry`, `http`), the sandbox's own token (`workload`), and the agent's side
//! of all this (`mint`). Source: docs/identity.md.

#[cfg(feature = "http")]
pub mod http;
mod jose;
pub mod mint;
pub mod registry;
pub mod replay;
pub mod service;
pub mod source;
pub mod token;
pub mod workload;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::id::{AgentId, BackendName, PolicyName};
use replay::{ReplayError, SeenTokens};
use source::{Agent, AgentSource, SourceError};
use token::{Rules, TokenError};

/// How it is known that the sandbox works for its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// The agent's own token, under one of its keys.
    Token,
    /// The word of whoever may talk to containerd.
    Operator,
    /// There is no agent.
    None,
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Operator => "operator",
            Self::None => "none",
        })
    }
}

/// Whom a sandbox works for, after all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    agent: Option<AgentId>,
    proof: Proof,
    default_policy: Option<PolicyName>,
}

impl Identity {
    /// The agent; `None` for a sandbox that works for nobody.
    pub fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    /// How that is known.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Where it may connect if nothing else is said; `None` for nowhere.
    pub fn default_policy(&self) -> Option<&PolicyName> {
        self.default_policy.as_ref()
    }

    /// One that was not bound.
    #[cfg(test)]
    pub fn for_test(agent: Option<AgentId>, proof: Proof) -> Self {
        Self { agent, proof, default_policy: None }
    }
}

/// What a request claims.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// `creto.dev/agent`.
    pub agent: Option<&'a AgentId>,
    /// What is in the file of `creto.dev/agent-token-file`.
    pub token: Option<&'a str>,
    /// What will make the sandbox.
    pub backend: &'a BackendName,
}

/// What somebody says who has verified the agent's token, or need not.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// For whom the sandbox is to work.
    pub agent: Option<&'a AgentId>,
    /// Whether its token was verified, and is used up.
    pub by_token: bool,
    /// What has made the sandbox.
    pub backend: &'a BackendName,
}

/// `allow` or `deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// It may be so.
    Allow,
    /// It may not.
    Deny,
}

/// What the node's operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sandboxes that name no agent.
    pub anonymous: Permission,
    /// Sandboxes that name an agent without its token.
    pub operator: Permission,
    /// What tokens must be.
    pub tokens: Rules,
}

/// Which check a claim failed. No text repeats a token.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Whose is it?
    #[error("a token without an agent: name the agent in creto.dev/agent")]
    TokenAlone,
    /// The operator wants an agent.
    #[error("no agent is named, and identity.anonymous is \"deny\": name one in creto.dev/agent")]
    Anonymous,
    /// Unknown, disabled, revoked, or nobody can say.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The agent is held to other backends.
    #[error("agent {agent} may not use backend {backend}: allowed are {allowed:?}")]
    Backend {
        /// Who.
        agent: AgentId,
        /// What was asked for.
        backend: BackendName,
        /// What it may have.
        allowed: Vec<String>,
    },
    /// The operator wants a proof.
    #[error("agent {0} brings no token, and identity.operator is \"deny\": give creto.dev/agent-token-file")]
    NoToken(AgentId),
    /// The token is not a proof.
    #[error("the token of agent {0}: {1}")]
    Token(AgentId, #[source] TokenError),
    /// The token was a proof, once.
    #[error("the token of agent {0}: {1}")]
    Replay(AgentId, #[source] ReplayError),
}

/// What binding needs.
pub struct Binder {
    /// Where agents are looked up.
    pub source: Box<dyn AgentSource>,
    /// Tokens that came before.
    pub seen: SeenTokens,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What the operator decides.
    pub settings: Settings,
}

impl Binder {
    /// The checks, in this order: cheap and local ones before the look-up, the token's own before its name is used up, so that
    /// whoever cannot sign for the agent can neither fill the memory of seen tokens nor spend a token of the agent's.
    pub async fn bind(&self, claim: Claim<'_>) -> Result<Identity, BindError> {
        let Some(id) = claim.agent else { return self.nobody(claim.token.is_some()) };
        let agent = self.known(id, claim.token.is_some(), claim.backend).await?;
        // 5. Is it who it says?
        let proof = match claim.token {
            None => Proof::Operator,
            Some(token) => {
                let now = self.clock.timestamp();
                let genuine = token::verify(token, &agent.id, &agent.keys, &self.settings.tokens, now)
                    .map_err(|e| BindError::Token(id.clone(), e))?;
                // 6. Last, for it uses the token up: has this token come before?
                self.seen
                    .take(&agent.id, &genuine.jti, genuine.until, now)
                    .map_err(|e| BindError::Replay(id.clone(), e))?;
                Proof::Token
            }
        };
        Ok(Identity { agent: Some(agent.id), proof, default_policy: agent.default_policy })
    }

    /// The checks of somebody else's word: the same, but for those of the token, which whoever gives its word has made.
    pub async fn vouched(&self, word: Word<'_>) -> Result<Identity, BindError> {
        let Some(id) = word.agent else { return self.nobody(word.by_token) };
        let agent = self.known(id, word.by_token, word.backend).await?;
        let proof = if word.by_token { Proof::Token } else { Proof::Operator };
        Ok(Identity { agent: Some(agent.id), proof, default_policy: agent.default_policy })
    }

    /// 1. Nobody is named: may that be?
    fn nobody(&self, has_token: bool) -> Result<Identity, BindError> {
        match (has_token, self.settings.anonymous) {
            (true, _) => Err(BindError::TokenAlone),
            (false, Permission::Deny) => Err(BindError::Anonymous),
            (false, Permission::Allow) => Ok(Identity { agent: None, proof: Proof::None, default_policy: None }),
        }
    }

    /// Whom the claim names, if it may be bound to this backend.
    async fn known(&self, id: &AgentId, has_token: bool, backend: &BackendName) -> Result<Agent, BindError> {
        // 2. Must it prove who it is?
        if !has_token && self.settings.operator == Permission::Deny {
            return Err(BindError::NoToken(id.clone()));
        }
        // 3. Is it known, and not shut out?
        let agent = self.source.agent(id).await?;
        // 4. May it have this backend?
        match &agent.backends {
            Some(allowed) if !allowed.contains(backend) => {
                let allowed = allowed.iter().map(ToString::to_string).collect();
                Err(BindError::Backend { agent: agent.id, backend: backend.clone(), allowed })
            }
            _ => Ok(agent),
        }
    }

    /// Whether whoever was bound is still known, and not shut out. Nobody is never shut out.
    pub async fn still(&self, identity: &Identity) -> Result<(), SourceError> {
        match &identity.agent {
            Some(id) => self.source.agent(id).await.map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use ed25519_dalek::SigningKey;
    use serde_json::json;

    use super::source::AgentKey;
    use super::*;
    use crate::clock::{FixedClock, Timestamp};
    use crate::keys::public_half;

    const NOW: u64 = 1_800_000_000;

    /// Knows `…/agents/a` with one key and one backend; `…/agents/revoked` is out.
    struct Two;

    #[async_trait]
    impl AgentSource for Two {
        async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError> {
            match id.to_string().rsplit('/').next() {
                Some("a") => Ok(Agent {
                    id: id.clone(),
                    keys: vec![AgentKey::new(Some("k".into()), public_half(&key()).unwrap())],
                    backends: Some(vec!["gvisor".parse().unwrap()]),
                    default_policy: Some("web-only".parse().unwrap()),
                }),
                Some("revoked") => Err(SourceError::Revoked(id.clone(), "the test".into())),
                _ => Err(SourceError::Unknown(id.clone(), "the test".into())),
            }
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn agent(name: &str) -> AgentId {
        format!("spiffe://example.org/agents/{name}").parse().unwrap()
    }

    fn token(name: &str, jti: &str) -> String {
        let claims = json!({"sub": agent(name), "aud": "creto:node-7", "iat": NOW, "exp": NOW + 60, "jti": jti});
        jose::sign("JWT", "k", &claims, &key()).unwrap()
    }

    fn binder(dir: &tempfile::TempDir, anonymous: Permission, operator: Permission) -> Binder {
        Binder {
            source: Box::new(Two),
            seen: SeenTokens::new(dir.path()),
            clock: Arc::new(FixedClock::at(Timestamp::from_unix(NOW))),
            settings: Settings { anonymous, operator, tokens: Rules::new("creto:node-7") },
        }
    }

    async fn bind(binder: &Binder, name: Option<&str>, token: Option<&str>, backend: &str) -> Result<Identity, String> {
        let (agent, backend) = (name.map(agent), backend.parse().unwrap());
        let claim = Claim { agent: agent.as_ref(), token, backend: &backend };
        binder.bind(claim).await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn an_identity_says_how_it_was_proven() {
        let dir = tempfile::tempdir().unwrap();
        let binder = binder(&dir, Permission::Allow, Permission::Allow);
        for (name, token, proof) in [
            (None, None, Proof::None),
            (Some("a"), None, Proof::Operator),
            (Some("a"), Some(token("a", "1")), Proof::Token),
        ] {
            let identity = bind(&binder, name, token.as_deref(), "gvisor").await.unwrap();
            assert_eq!((identity.agent(), identity.proof()), (name.map(agent).as_ref(), proof));
            assert_eq!(identity.default_policy().map(ToString::to_string), name.map(|_| "web-only".to_owned()));
        }
    }

    #[tokio::test]
    async fn who_is_vouched_for_passes_all_checks_but_those_of_the_token() {
        use Permission::{Allow, Deny};
        let (dir, gvisor, kata) = (tempfile::tempdir().unwrap(), "gvisor".parse().unwrap(), "kata".parse().unwrap());
        for (anonymous, operator, name, by_token, backend, expected) in [
            (Allow, Allow, None, false, &gvisor, Ok(Proof::None)),
            (Deny, Allow, None, false, &gvisor, Err("identity.anonymous")),
            (Allow, Allow, None, true, &gvisor, Err("a token without an agent")),
            (Allow, Allow, Some("a"), false, &gvisor, Ok(Proof::Operator)),
            (Allow, Deny, Some("a"), false, &gvisor, Err("identity.operator")),
            (Allow, Deny, Some("a"), true, &gvisor, Ok(Proof::Token)),
            (Allow, Allow, Some("a"), true, &kata, Err("may not use backend kata")),
            (Allow, Allow, Some("revoked"), true, &gvisor, Err("revoked")),
            (Allow, Allow, Some("c"), true, &gvisor, Err("not known")),
        ] {
            let agent = name.map(agent);
            let word = Word { agent: agent.as_ref(), by_token, backend };
            match (binder(&dir, anonymous, operator).vouched(word).await, expected) {
                (Ok(identity), Ok(proof)) => assert_eq!((identity.agent(), identity.proof()), (agent.as_ref(), proof)),
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (result, expected) => panic!("{name:?}: {result:?}, expected {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn who_was_bound_is_looked_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let binder = binder(&dir, Permission::Allow, Permission::Allow);
        let bound = |name: Option<&str>| Identity::for_test(name.map(agent), Proof::Operator);
        assert_eq!(binder.still(&bound(None)).await, Ok(()));
        assert_eq!(binder.still(&bound(Some("a"))).await, Ok(()));
        assert!(matches!(binder.still(&bound(Some("revoked"))).await, Err(SourceError::Revoked(..))));
    }

    #[tokio::test]
    async fn the_first_failed_check_is_named() {
        use Permission::{Allow, Deny};
        let dir = tempfile::tempdir().unwrap();
        let (good, others) = (token("a", "1"), token("b", "1"));
        for (anonymous, operator, name, token, backend, why) in [
            (Deny, Allow, None, None, "gvisor", "identity.anonymous"),
            (Allow, Allow, None, Some(good.as_str()), "gvisor", "a token without an agent"),
            (Allow, Deny, Some("a"), None, "gvisor", "identity.operator"),
            (Allow, Deny, Some("c"), None, "gvisor", "identity.operator"), // without a token nobody learns who is known
            (Allow, Allow, Some("c"), None, "gvisor", "not known"),
            (Allow, Allow, Some("revoked"), Some(&good), "gvisor", "revoked"),
            (Allow, Allow, Some("a"), Some(&good), "kata", "may not use backend kata: allowed are [\"gvisor\"]"),
            (Allow, Allow, Some("a"), Some(&others), "gvisor", "sub is not the agent"),
            (Allow, Allow, Some("a"), Some("x"), "gvisor", "no compact JWS"),
        ] {
            let error = bind(&binder(&dir, anonymous, operator), name, token, backend).await.expect_err(why);
            assert!(error.contains(why), "{error}");
            assert!(!error.contains(&good) && !error.contains(&others));
        }
        // None of these used the token up.
        let binder = binder(&dir, Allow, Deny);
        bind(&binder, Some("a"), Some(&good), "gvisor").await.unwrap();
        let error = bind(&binder, Some("a"), Some(&good), "gvisor").await.unwrap_err();
        assert!(error.contains("jti was used before"), "{error}");
    }
}
