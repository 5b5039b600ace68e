//! Public keys: Ed25519 as JSON Web Keys, their thumbprints, and sets of them. Pure.
//! Source: RFC 7517 (JWK, JWK Set), RFC 7638 (thumbprint), RFC 8037 §2 (OKP). Our own members have names under a domain of
//! ours, so they collide with nobody's (RFC 7517 §4) and others ignore them.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KeyVersion, Status};
use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::id::KeyId;
use crate::json;

/// No set of ours or of an agent's is larger, in bytes.
pub const MAX_SET_BYTES: usize = 64 * 1024;

/// An Ed25519 public key that can verify: a point of the curve, not of small order. Written as a plain JWK.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Jwk", into = "Jwk")]
pub struct PublicKey {
    key: VerifyingKey,
    id: KeyId,
}

impl PublicKey {
    /// From the 32 bytes of RFC 8032.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, BadJwk> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| BadJwk::NoPoint)?;
        // Of small order: one signature would fit any message.
        if key.is_weak() { Err(BadJwk::NoPoint) } else { Ok(Self { id: thumbprint(&key), key }) }
    }

    /// Its RFC 7638 thumbprint.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Whether `signature` is this key's over exactly `message` (RFC 8032, strict: one signature per message and key).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }

    /// The member `x`, base64url.
    pub fn x(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.key.as_bytes())
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// SubjectPublicKeyInfo as PEM (RFC 8410), which cosign and OpenSSL read.
    pub fn to_pem(&self) -> Result<String, BadJwk> {
        self.key.to_public_key_pem(LineEnding::LF).map_err(|_| BadJwk::NoPoint)
    }

    /// Reads what [`PublicKey::to_pem`] writes.
    pub fn from_pem(pem: &str) -> Result<Self, BadJwk> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| BadJwk::NotPem)?;
        Self::from_bytes(key.as_bytes())
    }

    /// As a plain JWK: `kty`, `crv`, `x`, `kid`, `alg`, `use`.
    pub fn to_jwk(&self) -> Jwk {
        Jwk {
            kty: "OKP".into(),
            crv: Some("Ed25519".into()),
            x: Some(self.x()),
            kid: Some(self.id.to_string()),
            alg: Some("EdDSA".into()),
            usage: Some("sig".into()),
            ..Jwk::default()
        }
    }
}

impl TryFrom<Jwk> for PublicKey {
    type Error = BadJwk;

    fn try_from(jwk: Jwk) -> Result<Self, BadJwk> {
        jwk.public_key()
    }
}

impl From<PublicKey> for Jwk {
    fn from(key: PublicKey) -> Self {
        key.to_jwk()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

/// RFC 7638 §3: the required members in lexical order, without white space.
fn thumbprint(key: &VerifyingKey) -> KeyId {
    let x = BASE64_URL_SAFE_NO_PAD.encode(key.as_bytes());
    let hash = Digest::of(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#).as_bytes());
    KeyId::from_digest(&hash)
}

/// A JSON Web Key as it is written. Members that we do not know are ignored, as RFC 7517 §4 demands.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Key type; `OKP` is ours.
    pub kty: String,
    /// Curve; `Ed25519` is ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// The public key, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// What tokens and envelopes call the key; ours are thumbprints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// `EdDSA`, or `Ed25519` (RFC 9864).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// `sig`.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// Ours: what people call the key, `v1`.
    #[serde(rename = "creto.dev/version", skip_serializing_if = "Option::is_none")]
    pub version: Option<KeyVersion>,
    /// Ours: `active` or `deprecated`.
    #[serde(rename = "creto.dev/status", skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Ours: when it was made.
    #[serde(rename = "creto.dev/created", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Ours, of a deprecated key: from when on it counts only where its version is named.
    #[serde(rename = "creto.dev/deprecated-after", skip_serializing_if = "Option::is_none")]
    pub deprecated_after: Option<Timestamp>,
}

/// Why a key is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadJwk {
    /// Another type of key than we verify with.
    #[error("{member} is {found:?}; only {wanted} is taken")]
    Other {
        /// The JWK member.
        member: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: &'static str,
    },
    /// `x` is not 32 bytes of base64url.
    #[error("x is not the base64url of 32 bytes")]
    NotBase64,
    /// Another kind of key, or a private one.
    #[error("not an Ed25519 public key in PEM (SubjectPublicKeyInfo)")]
    NotPem,
    /// 32 bytes, but no key.
    #[error("x is no Ed25519 public key")]
    NoPoint,
}

impl Jwk {
    /// Whether it is of the one type that we know; others in a set are ignored (RFC 7517 §5).
    fn is_ed25519(&self) -> bool {
        self.kty == "OKP" && self.crv.as_deref() == Some("Ed25519")
    }

    /// The key in it.
    pub fn public_key(&self) -> Result<PublicKey, BadJwk> {
        let is = |member, found: Option<&String>, wanted: &'static str, allowed: &[&str], required: bool| match found {
            None if !required => Ok(()),
            Some(found) if allowed.contains(&found.as_str()) => Ok(()),
            found => Err(BadJwk::Other { member, found: found.cloned().unwrap_or_default(), wanted }),
        };
        is("kty", Some(&self.kty), "OKP", &["OKP"], true)?;
        is("crv", self.crv.as_ref(), "Ed25519", &["Ed25519"], true)?;
        is("alg", self.alg.as_ref(), "EdDSA or Ed25519", &["EdDSA", "Ed25519"], false)?;
        is("use", self.usage.as_ref(), "sig", &["sig"], false)?;
        let x = self.x.as_deref().unwrap_or_default();
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(x).map_err(|_| BadJwk::NotBase64)?;
        PublicKey::from_bytes(bytes.as_slice().try_into().map_err(|_| BadJwk::NotBase64)?)
    }

    /// How far it is to be believed; a key without our members is active.
    pub(super) fn status(&self) -> Option<Status> {
        match (self.status.as_deref(), self.deprecated_after) {
            (None | Some("active"), None) => Some(Status::Active),
            (Some("deprecated"), Some(after)) => Some(Status::Deprecated { after }),
            _ => None,
        }
    }
}

/// A JWK Set as it is written.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwkSet {
    /// In the order in which they are to be tried.
    pub keys: Vec<Jwk>,
}

/// Why a set is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadJwkSet {
    /// Too long to be one.
    #[error("{0} bytes; a key set has at most {MAX_SET_BYTES}")]
    TooLarge(usize),
    /// Not JSON, or not of this shape.
    #[error("not a JWK Set (RFC 7517): {0}")]
    Shape(String),
    /// A private key where a public one belongs: it is burnt.
    #[error("keys[{0}] has the member d: a private key has been published; replace that key")]
    Private(usize),
    /// One key is bad.
    #[error("keys[{0}]")]
    Key(usize, #[source] BadJwk),
    /// Our members contradict each other.
    #[error("keys[{0}]: creto.dev/status is active, or deprecated with creto.dev/deprecated-after")]
    Status(usize),
    /// A trust root's keys are found by thumbprint.
    #[error("keys[{at}]: kid is not the key's RFC 7638 thumbprint, {wanted}")]
    Kid {
        /// Which.
        at: usize,
        /// What its kid must be.
        wanted: KeyId,
    },
    /// Which of the two is meant?
    #[error("keys[{0}]: a key with this kid, or this version, is in the set already")]
    Twice(usize),
}

impl JwkSet {
    /// Reads a set. Keys of other types are left out; a private key is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadJwkSet> {
        if bytes.len() > MAX_SET_BYTES {
            return Err(BadJwkSet::TooLarge(bytes.len()));
        }
        let raw: Value = json::from_slice(bytes).map_err(|e| BadJwkSet::Shape(e.to_string()))?;
        let secret = |key: &Value| key.get("d").is_some();
        if let Some(at) = raw["keys"].as_array().and_then(|keys| keys.iter().position(secret)) {
            return Err(BadJwkSet::Private(at));
        }
        let mut set: Self =
            serde_json::from_value(raw).map_err(|e| BadJwkSet::Shape(json::BadJson::from(e).to_string()))?;
        set.keys.retain(Jwk::is_ed25519);
        Ok(set)
    }

    /// As it is published; ends in a newline.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// A node key that a verifier believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// What people call it, if the set says.
    pub version: Option<KeyVersion>,
    /// How far it is to be believed.
    pub status: Status,
}

/// The keys that a verifier believes: a node's jwks.json, from wherever the verifier trusts it to come, never from what
/// is to be verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustRoot(Vec<TrustedKey>);

impl TrustRoot {
    /// Reads a JWK Set; `kid`, where given, must be the thumbprint.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadJwkSet> {
        let mut trusted: Vec<TrustedKey> = Vec::new();
        for (at, jwk) in JwkSet::parse(bytes)?.keys.iter().enumerate() {
            let key = jwk.public_key().map_err(|e| BadJwkSet::Key(at, e))?;
            if jwk.kid.as_ref().is_some_and(|kid| kid != key.id().as_str()) {
                return Err(BadJwkSet::Kid { at, wanted: key.id().clone() });
            }
            let same = |t: &TrustedKey| t.key == key || (t.version.is_some() && t.version == jwk.version);
            if trusted.iter().any(same) {
                return Err(BadJwkSet::Twice(at));
            }
            let status = jwk.status().ok_or(BadJwkSet::Status(at))?;
            trusted.push(TrustedKey { key, version: jwk.version, status });
        }
        Ok(Self(trusted))
    }

    /// The key with this thumbprint.
    pub fn find(&self, id: &str) -> Option<&TrustedKey> {
        self.0.iter().find(|trusted| trusted.key.id().as_str() == id)
    }

    /// All of them.
    pub fn keys(&self) -> &[TrustedKey] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// RFC 8037 appendix A.2 and A.3.
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    #[test]
    fn the_thumbprint_is_the_rfcs() {
        let jwk = Jwk { kty: "OKP".into(), crv: Some("Ed25519".into()), x: Some(X.into()), ..Jwk::default() };
        let key = jwk.public_key().unwrap();
        assert_eq!(key.id().to_string(), THUMBPRINT);
        assert_eq!(key.to_jwk().public_key().unwrap(), key);
    }

    #[test]
    fn only_ed25519_public_keys_are_taken() {
        let good = json!({"kty": "OKP", "crv": "Ed25519", "x": X});
        for (member, value, why) in [
            ("kty", json!("RSA"), "kty is \"RSA\""),
            ("crv", json!("X25519"), "crv is \"X25519\""),
            ("crv", json!(null), "crv is \"\""),
            ("alg", json!("ES256"), "alg is \"ES256\""),
            ("use", json!("enc"), "use is \"enc\""),
            ("x", json!("AAAA"), "32 bytes"),
            ("x", json!(format!("{X}=")), "base64url"),
            ("x", json!(BASE64_URL_SAFE_NO_PAD.encode([0; 32])), "no Ed25519"), // small order
            ("x", json!(BASE64_URL_SAFE_NO_PAD.encode([2; 32])), "no Ed25519"),
        ] {
            let mut jwk = good.clone();
            jwk[member] = value;
            let error = serde_json::from_value::<Jwk>(jwk).unwrap().public_key().expect_err(why).to_string();
            assert!(error.contains(why), "{member}: {error}");
        }
    }

    #[test]
    fn a_trust_root_is_unambiguous() {
        let key = |more: Value| {
            let mut jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": X, "kid": THUMBPRINT});
            jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            jwk
        };
        let parse = |keys: Value| TrustRoot::parse(json!({ "keys": keys }).to_string().as_bytes());
        let (plain, rsa) = (key(json!({})), json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}));
        let root = parse(json!([rsa, plain])).unwrap();
        assert_eq!((root.keys().len(), root.find(THUMBPRINT).unwrap().status), (1, Status::Active));
        for (keys, why) in [
            (json!([plain, plain]), "already"),
            (json!([key(json!({"kid": "v1"}))]), "thumbprint"),
            (json!([key(json!({"d": "AAAA"}))]), "private key"),
            (json!([key(json!({"creto.dev/status": "deprecated"}))]), "deprecated-after"),
            (json!([key(json!({"creto.dev/status": "revoked"}))]), "active, or deprecated"),
            (json!("x"), "JWK Set"),
        ] {
            let error = parse(keys).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(TrustRoot::parse(br#"{"keys":[],"keys":[]}"#).is_err());
        assert!(TrustRoot::parse(&vec![b' '; MAX_SET_BYTES + 1]).is_err());
    }

    #[test]
    fn a_signature_is_bound_to_message_and_key() {
        let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let key = PublicKey::from_bytes(signing.verifying_key().as_bytes()).unwrap();
        let signature = ed25519_dalek::Signer::sign(&signing, b"message").to_bytes();
        assert!(key.verifies(b"message", &signature));
        assert!(!key.verifies(b"massage", &signature) && !key.verifies(b"message", &signature[1..]));
        let pem = key.to_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert_eq!(PublicKey::from_pem(&pem).as_ref(), Ok(&key));
        assert_eq!(PublicKey::from_pem(&pem.replace("PUBLIC", "PRIVATE")), Err(BadJwk::NotPem));
    }
}
