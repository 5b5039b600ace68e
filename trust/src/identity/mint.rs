//! The agent's side of `token`: its private key, and the tokens it signs. For trying things out and for agents in Rust; any
//! other JOSE library does as well. What a token must be: docs/identity.md.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use serde::Serialize;
use zeroize::Zeroizing;

use super::jose;
use super::token::MAX_LIFETIME;
use crate::clock::Timestamp;
use crate::id::AgentId;
use crate::keys::jwks::PublicKey;
use crate::keys::{fresh_key, private_pem, public_half};

/// An agent's private key; dropped, it is wiped.
pub struct AgentSecret {
    secret: SigningKey,
    public: PublicKey,
}

/// Why there is no key or no token. None repeats anything secret.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// Another kind of key, or none.
    #[error("not an Ed25519 private key in PKCS#8 PEM: make one with `creto-runtime-cli agent keygen`")]
    NotAKey,
    /// The system has no random numbers to give.
    #[error("no random numbers from the system: {0}")]
    Random(getrandom::Error),
    /// No node would take the token.
    #[error("a token lives 1 to {} s, not {} s", MAX_LIFETIME.as_secs(), .0.as_secs())]
    Lifetime(Duration),
    /// The library refused.
    #[error("writing it down: {0}")]
    Encoding(String),
}

#[derive(Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
}

impl AgentSecret {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self, MintError> {
        Self::of(fresh_key().map_err(MintError::Random)?)
    }

    /// Reads PKCS#8 PEM (RFC 8410).
    pub fn from_pem(pem: &str) -> Result<Self, MintError> {
        Self::of(SigningKey::from_pkcs8_pem(pem).map_err(|_| MintError::NotAKey)?)
    }

    fn of(secret: SigningKey) -> Result<Self, MintError> {
        let public = public_half(&secret).map_err(|_| MintError::NotAKey)?;
        Ok(Self { secret, public })
    }

    /// As PKCS#8 PEM; wiped on drop.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, MintError> {
        private_pem(&self.secret).map_err(|e| MintError::Encoding(e.to_string()))
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// A token of `agent` for `audience`, from `now` for `lifetime`. `kid` is what the registry calls the key; without, the
    /// key goes by its thumbprint.
    pub fn token(
        &self,
        agent: &AgentId,
        audience: &str,
        kid: Option<&str>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<String, MintError> {
        if lifetime > MAX_LIFETIME || lifetime.as_secs() == 0 {
            return Err(MintError::Lifetime(lifetime));
        }
        let mut jti = [0; 16];
        getrandom::fill(&mut jti).map_err(MintError::Random)?;
        let claims = Claims {
            iss: agent.to_string(),
            sub: agent.to_string(),
            aud: audience.to_owned(),
            iat: now.unix(),
            exp: now.plus(lifetime).unix(),
            jti: BASE64_URL_SAFE_NO_PAD.encode(jti),
        };
        let kid = kid.unwrap_or(self.public.id().as_str());
        jose::sign("JWT", kid, &claims, &self.secret).map_err(|e| MintError::Encoding(e.to_string()))
    }
}

impl fmt::Debug for AgentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentSecret({})", self.public.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::source::AgentKey;
    use crate::identity::token::{self, Rules};

    #[test]
    fn what_an_agent_mints_a_node_takes() {
        let (agent, now) = ("spiffe://example.org/agents/a".parse().unwrap(), Timestamp::from_unix(1_800_000_000));
        let secret = AgentSecret::from_pem(&AgentSecret::generate().unwrap().to_pem().unwrap()).unwrap();
        let rules = Rules::new("creto:node-7");
        for kid in [None, Some("2026-11")] {
            let token = secret.token(&agent, "creto:node-7", kid, now, MAX_LIFETIME).unwrap();
            let keys = [AgentKey::new(kid.map(str::to_owned), secret.public_key().clone())];
            let genuine = token::verify(&token, &agent, &keys, &rules, now).unwrap();
            assert_eq!(genuine.until, now.plus(MAX_LIFETIME + rules.skew));
            let again = secret.token(&agent, "creto:node-7", kid, now, MAX_LIFETIME).unwrap();
            assert_ne!(token::verify(&again, &agent, &keys, &rules, now).unwrap().jti, genuine.jti);
        }
    }

    #[test]
    fn no_token_is_minted_that_no_node_would_take() {
        let (agent, now) = ("spiffe://example.org/agents/a".parse().unwrap(), Timestamp::from_unix(1_800_000_000));
        let secret = AgentSecret::generate().unwrap();
        for lifetime in [Duration::ZERO, Duration::from_millis(999), MAX_LIFETIME + Duration::from_secs(1)] {
            let error = secret.token(&agent, "x", None, now, lifetime).unwrap_err();
            assert!(matches!(error, MintError::Lifetime(_)), "{lifetime:?}");
        }
    }

    #[test]
    fn an_error_about_a_key_repeats_nothing_of_it() {
        let pem = AgentSecret::generate().unwrap().to_pem().unwrap();
        let body = pem.lines().nth(1).unwrap();
        for bad in [body, &pem.replace("PRIVATE", "PUBLIC"), &pem.replace(body, &body[4..]), ""] {
            let error = AgentSecret::from_pem(bad).unwrap_err().to_string();
            assert!(error.contains("keygen") && !error.contains(&body[20..]), "{error}");
        }
    }
}
