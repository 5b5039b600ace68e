//! Compact JWS by the crate `jsonwebtoken`, with one algorithm. Its own back ends bring RSA, the NIST curves and HMAC into
//! the process; given ours instead, there is nothing that an `alg` other than EdDSA could be verified with.
//! Source: RFC 7515, RFC 8037 §3.1.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json;
use crate::keys::jwks::PublicKey;

static EDDSA: CryptoProvider =
    CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };

/// The crate keeps one provider per process. Where somebody installed another first, EdDSA is what that one makes of it.
fn provide() {
    let _ = EDDSA.install_default();
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    match algorithm {
        Algorithm::EdDSA => {
            let key = SigningKey::from_pkcs8_der(key.as_bytes()).map_err(|_| ErrorKind::InvalidEddsaKey)?;
            Ok(Box::new(EdDsaSigner(key)))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match algorithm {
        Algorithm::EdDSA => {
            let bytes = key.try_get_as_bytes()?.try_into().map_err(|_| ErrorKind::InvalidEddsaKey)?;
            Ok(Box::new(EdDsaVerifier(PublicKey::from_bytes(bytes).map_err(|_| ErrorKind::InvalidEddsaKey)?)))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

struct EdDsaSigner(SigningKey);

impl Signer<Vec<u8>> for EdDsaSigner {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(ed25519_dalek::Signer::sign(&self.0, message).to_bytes().into())
    }
}

impl JwtSigner for EdDsaSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct EdDsaVerifier(PublicKey);

impl Verifier<Vec<u8>> for EdDsaVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        if self.0.verifies(message, signature) { Ok(()) } else { Err(signature::Error::new()) }
    }
}

impl JwtVerifier for EdDsaVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

/// A token over these claims.
pub fn sign<T: Serialize>(typ: &str, kid: &str, claims: &T, key: &SigningKey) -> Result<String> {
    provide();
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(typ.into());
    header.kid = Some(kid.into());
    let der = key.to_pkcs8_der().map_err(|_| Error::from(ErrorKind::InvalidEddsaKey))?; // wiped on drop, as are its copies
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes()))
}

/// What a token says of itself; nothing of it is proven.
#[derive(Debug, Deserialize)]
pub struct UnprovenHeader {
    /// Which algorithm it wants to be verified with.
    pub alg: String,
    /// What kind of token it is.
    pub typ: Option<String>,
    /// Which key.
    pub kid: Option<String>,
    /// What must be understood.
    pub crit: Option<Value>,
}

/// Reads a token's header; `None` where there is none, or a member twice.
pub fn unproven_header(token: &str) -> Option<UnprovenHeader> {
    let (header, _) = token.split_once('.')?;
    json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(header).ok()?).ok()
}

/// The claims of a token whose EdDSA signature is `key`'s. What the claims say is for the caller to check.
pub fn verify<T: DeserializeOwned>(token: &str, key: &PublicKey) -> Result<T> {
    provide();
    let mut only_signature = Validation::new(Algorithm::EdDSA);
    only_signature.required_spec_claims.clear();
    (only_signature.validate_exp, only_signature.validate_aud) = (false, false);
    // `from_ed_der` takes the bytes as they are, whatever its name says.
    jsonwebtoken::decode(token, &DecodingKey::from_ed_der(key.as_bytes()), &only_signature).map(|data| data.claims)
}
