//! The sandbox's own token, by which what runs in it shows who it is: short-lived, and bound to a key of its own that is
//! fresh for every sandbox, claim and restore.
//! Source: WIMSE workload identity token (draft-ietf-wimse-workload-creds: `typ: wit+jwt`, `cnf.jwk` with its `alg`),
//! RFC 7800 (`cnf`), RFC 8693 §4.1 (`act`). EdDSA, so it is no JWT-SVID: that specification forbids it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Identity, jose};
use crate::clock::{SKEW, Timestamp};
use crate::id::{BadId, NodeId, SandboxId, TrustDomain, WorkloadId};
use crate::keys::jwks::PublicKey;
use crate::keys::{self, Signer};

/// The JWT header's `typ`.
pub const TYPE: &str = "wit+jwt";

/// Who issues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The node's trust domain, in which it names itself and the sandboxes of nobody.
    pub domain: TrustDomain,
    /// The node.
    pub node: NodeId,
}

/// What a sandbox gets.
#[derive(Debug)]
pub struct Credential {
    /// Who it is.
    pub id: WorkloadId,
    /// The token: `header.claims.signature`.
    pub token: String,
    /// The private half of `cnf.jwk`, PKCS#8 PEM (RFC 8410); wiped on drop.
    pub private_key: Zeroizing<String>,
    /// The public half.
    pub public_key: PublicKey,
    /// The token's end.
    pub expires: Timestamp,
    /// When to issue the next: two thirds of the way.
    pub renew_at: Timestamp,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Its SPIFFE ID would be too long.
    #[error("the sandbox cannot be named")]
    Name(#[source] BadId),
    /// The system has no random numbers to give.
    #[error("no random numbers from the system: {0}")]
    Random(getrandom::Error),
    /// The library refused.
    #[error("writing the token: {0}")]
    Token(String),
}

#[derive(Serialize)]
struct Claims {
    iss: String,
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Actor>,
    cnf: Confirmation,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
}

#[derive(Serialize)]
struct Actor {
    sub: String,
}

#[derive(Serialize)]
struct Confirmation {
    jwk: keys::jwks::Jwk,
}

/// A fresh key and a token for it, from now on for `lifetime`.
pub fn issue(
    signer: &Signer,
    issuer: &Issuer,
    identity: &Identity,
    sandbox: &SandboxId,
    now: Timestamp,
    lifetime: Duration,
) -> Result<Credential, WorkloadError> {
    let secret = keys::fresh_key().map_err(WorkloadError::Random)?;
    let failed = |e: &dyn std::fmt::Display| WorkloadError::Token(e.to_string());
    let public_key = keys::public_half(&secret).map_err(|e| failed(&e))?;
    let private_key = keys::private_pem(&secret).map_err(|e| failed(&e))?;
    let id = name(issuer, identity, sandbox)?;
    let token = sign(signer, issuer, identity, &id, &public_key, now, lifetime)?;
    let (expires, renew_at) = ends(now, lifetime);
    Ok(Credential { id, token, private_key, public_key, expires, renew_at })
}

/// A new token in the place of one that is about to end; the key stays, for it is the sandbox's, not the token's.
pub fn renew(
    credential: &mut Credential,
    signer: &Signer,
    issuer: &Issuer,
    identity: &Identity,
    now: Timestamp,
    lifetime: Duration,
) -> Result<(), WorkloadError> {
    credential.token = sign(signer, issuer, identity, &credential.id, &credential.public_key, now, lifetime)?;
    (credential.expires, credential.renew_at) = ends(now, lifetime);
    Ok(())
}

fn name(issuer: &Issuer, identity: &Identity, sandbox: &SandboxId) -> Result<WorkloadId, WorkloadError> {
    let named = match identity.agent() {
        Some(agent) => agent.sandbox(sandbox),
        None => issuer.node.sandbox(&issuer.domain, sandbox),
    };
    named.map_err(WorkloadError::Name)
}

/// Of a token: its end, and when the next is due.
fn ends(now: Timestamp, lifetime: Duration) -> (Timestamp, Timestamp) {
    (now.plus(lifetime), now.plus(lifetime * 2 / 3))
}

fn sign(
    signer: &Signer,
    issuer: &Issuer,
    identity: &Identity,
    id: &WorkloadId,
    public_key: &PublicKey,
    now: Timestamp,
    lifetime: Duration,
) -> Result<String, WorkloadError> {
    let mut jti = [0; 16];
    getrandom::fill(&mut jti).map_err(WorkloadError::Random)?;
    let claims = Claims {
        iss: issuer.node.spiffe_id(&issuer.domain),
        sub: id.to_string(),
        act: identity.agent().map(|agent| Actor { sub: agent.to_string() }),
        cnf: Confirmation { jwk: public_key.to_jwk() },
        iat: now.unix(),
        // Whoever reads it may be behind.
        nbf: now.unix().saturating_sub(SKEW.as_secs()),
        exp: now.plus(lifetime).unix(),
        jti: BASE64_URL_SAFE_NO_PAD.encode(jti),
    };
    jose::sign(TYPE, signer.id().as_str(), &claims, signer.secret()).map_err(|e| WorkloadError::Token(e.to_string()))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::pkcs8::DecodePrivateKey;
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::FixedClock;
    use crate::identity::Proof;
    use crate::keys::Keyring;
    use crate::keys::jwks::{Jwk, TrustRoot};

    const NOW: u64 = 1_800_000_000;

    fn issue_for(identity: &Identity) -> (Credential, TrustRoot) {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_unix(NOW);
        let keyring = Keyring::open(dir.path(), &FixedClock::at(now)).unwrap();
        let issuer = Issuer { domain: "example.org".parse().unwrap(), node: "node-7".parse().unwrap() };
        let sandbox = "box-1".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let credential = issue(&keyring.signer().unwrap(), &issuer, identity, &sandbox, now, hour).unwrap();
        (credential, TrustRoot::parse(keyring.jwks().unwrap().as_bytes()).unwrap())
    }

    #[test]
    fn the_token_says_who_for_whom_and_by_which_key() {
        let agent = "spiffe://example.org/agents/a";
        let identity = Identity::for_test(Some(agent.parse().unwrap()), Proof::Token);
        let (credential, root) = issue_for(&identity);
        let header = jose::unproven_header(&credential.token).unwrap();
        assert_eq!(header.typ.as_deref(), Some("wit+jwt"));
        let node_key = root.find(header.kid.as_deref().unwrap()).unwrap();
        let mut claims: Value = jose::verify(&credential.token, &node_key.key).unwrap();
        let jti = claims["jti"].take();
        assert_eq!(jti.as_str().unwrap().len(), 22);
        let x = credential.public_key.x();
        let kid = credential.public_key.id().as_str();
        assert_eq!(
            claims,
            json!({
                "iss": "spiffe://example.org/node/node-7", "sub": format!("{agent}/sandbox/box-1"), "act": {"sub": agent},
                "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": "EdDSA", "use": "sig"}},
                "iat": NOW, "nbf": NOW - 30, "exp": NOW + 3600, "jti": null,
            })
        );
        assert_eq!((credential.renew_at.unix(), credential.expires.unix()), (NOW + 2400, NOW + 3600));
        // The private half is the one that cnf speaks of.
        let secret = SigningKey::from_pkcs8_pem(&credential.private_key).unwrap();
        let jwk: Jwk = serde_json::from_value(claims["cnf"]["jwk"].clone()).unwrap();
        assert!(jwk.public_key().unwrap().verifies(b"m", &secret.sign(b"m").to_bytes()));
        // A SEQUENCE that begins with version 0: OpenSSL, and all that is built on it, reads no other.
        let body: String = credential.private_key.lines().filter(|line| !line.starts_with('-')).collect();
        assert_eq!(base64::prelude::BASE64_STANDARD.decode(body).unwrap()[..5], [0x30, 0x2e, 0x02, 0x01, 0x00]);
    }

    #[test]
    fn a_renewed_token_is_for_the_same_key_and_lasts_longer() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_unix(NOW);
        let keyring = Keyring::open(dir.path(), &FixedClock::at(now)).unwrap();
        let issuer = Issuer { domain: "example.org".parse().unwrap(), node: "node-7".parse().unwrap() };
        let (identity, hour) = (Identity::for_test(None, Proof::None), Duration::from_secs(3600));
        let (signer, id) = (keyring.signer().unwrap(), "box-1".parse().unwrap());
        let mut credential = issue(&signer, &issuer, &identity, &id, now, hour).unwrap();
        let root = TrustRoot::parse(keyring.jwks().unwrap().as_bytes()).unwrap();
        let claims = |token: &str| jose::verify::<Value>(token, &root.keys()[0].key).unwrap();
        let first = claims(&credential.token);
        let due = credential.renew_at;
        renew(&mut credential, &signer, &issuer, &identity, due, hour).unwrap();
        let second = claims(&credential.token);
        assert_eq!((&first["cnf"], &first["sub"]), (&second["cnf"], &second["sub"]));
        assert_ne!(first["jti"], second["jti"]);
        assert_eq!((second["exp"].as_u64(), credential.expires.unix()), (Some(NOW + 6000), NOW + 6000));
    }

    #[test]
    fn without_an_agent_the_sandbox_is_the_nodes() {
        let (credential, root) = issue_for(&Identity::for_test(None, Proof::None));
        let claims: Value = jose::verify(&credential.token, &root.keys()[0].key).unwrap();
        assert_eq!(claims["sub"], "spiffe://example.org/node/node-7/sandbox/box-1");
        assert_eq!(claims.get("act"), None);
    }

    #[test]
    fn no_two_have_the_same_key_or_name() {
        let identity = Identity::for_test(None, Proof::None);
        let ((a, _), (b, _)) = (issue_for(&identity), issue_for(&identity));
        assert_ne!(a.public_key, b.public_key);
        assert_ne!(a.token, b.token);
    }
}
