//! The token by which a caller proves that it is the agent: a short-lived JWT under one of the agent's own keys. Pure: the
//! caller knows the time and looks the `jti` up (`replay`).
//! Source: RFC 7519, RFC 8725 (best practice). What is expected comes from us alone, never from the token.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;

use super::jose;
use super::source::AgentKey;
use crate::clock::{SKEW, Timestamp};
use crate::id::AgentId;

/// No honest token is longer, in bytes.
pub const MAX_BYTES: usize = 8 * 1024;
/// From `iat` to `exp` at most, where nothing else is configured.
pub const MAX_LIFETIME: Duration = Duration::from_secs(600);
/// A `jti` is a name, not a document; in bytes.
const MAX_JTI: usize = 256;

/// What this verifier expects of every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who we are: the token is for us and for nobody else.
    pub audience: String,
    /// How far the issuer's clock may be off.
    pub skew: Duration,
    /// From `iat` to `exp` at most.
    pub max_lifetime: Duration,
}

impl Rules {
    /// For this audience, with 30 s of skew and ten minutes of life.
    pub fn new(audience: impl Into<String>) -> Self {
        Self { audience: audience.into(), skew: SKEW, max_lifetime: MAX_LIFETIME }
    }
}

/// Which check a token failed. None repeats anything of the token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not read any further.
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Not three parts of base64url, or no JSON in them.
    #[error("is no compact JWS: has the file that was named a token, and nothing else?")]
    Form,
    /// `alg` is none, RS256, HS256, …
    #[error("alg is not EdDSA")]
    Algorithm,
    /// Another kind of token, such as a sandbox's own.
    #[error("typ is not JWT")]
    Type,
    /// It wants something understood that we do not know.
    #[error("crit is not understood")]
    Critical,
    /// Which key?
    #[error("kid is missing")]
    NoKeyId,
    /// Not the agent's, or no longer.
    #[error("kid names none of the agent's keys")]
    UnknownKey,
    /// Forged, or damaged.
    #[error("Ed25519 signature invalid")]
    Signature,
    /// `sub`, `aud`, `exp`, `iat` and `jti` are there once each; times are whole seconds.
    #[error("claims sub, aud, exp, iat, jti: one is missing, twice there, or of the wrong type")]
    Claims,
    /// Issued by somebody else.
    #[error("iss is not the agent")]
    Issuer,
    /// About somebody else.
    #[error("sub is not the agent")]
    Subject,
    /// For somebody else.
    #[error("aud is not {expected:?}")]
    Audience {
        /// Who we are.
        expected: String,
    },
    /// Too late.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// Too early.
    #[error("not valid before {0}")]
    NotYet(Timestamp),
    /// From the future.
    #[error("issued at {0}, which is to come: compare the clocks")]
    IssuedLater(Timestamp),
    /// It could be stolen for too long.
    #[error("lives {given:?}; at most {most:?} from iat to exp")]
    Lifetime {
        /// What it has.
        given: Duration,
        /// What we allow.
        most: Duration,
    },
    /// It cannot be told from another.
    #[error("jti is empty or longer than {MAX_JTI} bytes")]
    Jti,
}

/// A token that is genuine and fresh; whether it came before is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Genuine {
    /// Its name.
    pub jti: String,
    /// Until then it would be accepted again, skew included.
    pub until: Timestamp,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: Option<String>,
    sub: String,
    aud: Audience,
    exp: u64,
    iat: u64,
    #[serde(default)]
    nbf: Option<u64>,
    jti: String,
}

/// RFC 7519 §4.1.3: one, or a list. A token for others too could be taken from them and shown to us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    List([String; 1]),
}

/// Whose token it says it is, to look up by whose keys it must be signed. Nothing is proven by it: [`verify`] does that, and holds
/// the token to the same subject.
pub fn unverified_subject(token: &str) -> Result<AgentId, TokenError> {
    #[derive(Deserialize)]
    struct Subject {
        sub: String,
    }
    if token.len() > MAX_BYTES {
        return Err(TokenError::TooLong);
    }
    let payload = token.split('.').nth(1).ok_or(TokenError::Form)?;
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Form)?;
    let Subject { sub } = serde_json::from_slice(&json).map_err(|_| TokenError::Claims)?;
    sub.parse().map_err(|_| TokenError::Subject)
}

/// Checks everything that can be checked without knowing what came before. The order: size, header, signature, and only
/// then what the claims say.
pub fn verify(
    token: &str,
    agent: &AgentId,
    keys: &[AgentKey],
    rules: &Rules,
    now: Timestamp,
) -> Result<Genuine, TokenError> {
    if token.len() > MAX_BYTES {
        return Err(TokenError::TooLong);
    }
    let claims: Claims = jose::verify(token, &signed_by(token, keys)?.key).map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::Json(_) => TokenError::Claims,
        _ => TokenError::Form,
    })?;

    let agent = agent.to_string();
    if claims.sub != agent {
        return Err(TokenError::Subject);
    }
    if claims.iss.is_some_and(|iss| iss != agent) {
        return Err(TokenError::Issuer);
    }
    let (Audience::One(audience) | Audience::List([audience])) = claims.aud;
    if audience != rules.audience {
        return Err(TokenError::Audience { expected: rules.audience.clone() });
    }
    let (exp, iat) = (Timestamp::from_unix(claims.exp), Timestamp::from_unix(claims.iat));
    if now >= exp.plus(rules.skew) {
        return Err(TokenError::Expired(exp));
    }
    if let Some(nbf) = claims.nbf.map(Timestamp::from_unix).filter(|nbf| *nbf > now.plus(rules.skew)) {
        return Err(TokenError::NotYet(nbf));
    }
    if iat > now.plus(rules.skew) {
        return Err(TokenError::IssuedLater(iat));
    }
    if exp.since(iat) > rules.max_lifetime {
        return Err(TokenError::Lifetime { given: exp.since(iat), most: rules.max_lifetime });
    }
    if claims.jti.is_empty() || claims.jti.len() > MAX_JTI {
        return Err(TokenError::Jti);
    }
    Ok(Genuine { jti: claims.jti, until: exp.plus(rules.skew) })
}

/// The key that the header names. The header is a stranger's word still: it may choose among the agent's keys, no more.
fn signed_by<'a>(token: &str, keys: &'a [AgentKey]) -> Result<&'a AgentKey, TokenError> {
    let header = jose::unproven_header(token).ok_or(TokenError::Form)?;
    if header.alg != "EdDSA" {
        return Err(TokenError::Algorithm);
    }
    if header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
        return Err(TokenError::Type);
    }
    if header.crit.is_some() {
        return Err(TokenError::Critical);
    }
    let kid = header.kid.ok_or(TokenError::NoKeyId)?;
    keys.iter().find(|key| key.kid == kid).ok_or(TokenError::UnknownKey)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::keys::{fresh_key, public_half};

    const AGENT: &str = "spiffe://example.org/agents/a";
    const NOW: u64 = 1_800_000_000;

    fn key(seed: u8) -> (SigningKey, AgentKey) {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        let key = AgentKey::new(Some(format!("k{seed}")), public_half(&secret).unwrap());
        (secret, key)
    }

    fn claims() -> Value {
        json!({"iss": AGENT, "sub": AGENT, "aud": "creto:node-7", "exp": NOW + 300, "iat": NOW, "nbf": NOW, "jti": "j1"})
    }

    /// Any header over any claims: what a library of ours would refuse to make.
    fn token(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let message = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn check(token: &str) -> Result<Genuine, TokenError> {
        let rules = Rules::new("creto:node-7");
        verify(token, &AGENT.parse().unwrap(), &[key(1).1, key(2).1], &rules, Timestamp::from_unix(NOW))
    }

    fn with(change: Value) -> String {
        let mut claims = claims();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        jose::sign("JWT", "k1", &claims, &key(1).0).unwrap()
    }

    #[test]
    fn a_good_token_is_taken_whatever_key_of_the_agent_signed_it() {
        let until = Timestamp::from_unix(NOW + 330);
        for (seed, typ) in [(1, "JWT"), (2, "jwt")] {
            let token = jose::sign(typ, &format!("k{seed}"), &claims(), &key(seed).0).unwrap();
            assert_eq!(check(&token), Ok(Genuine { jti: "j1".into(), until }));
        }
        assert!(check(&with(json!({"iss": null, "nbf": null, "aud": ["creto:node-7"], "more": {"a": 1}}))).is_ok());
        let untyped = token(r#"{"alg":"EdDSA","kid":"k1"}"#, &claims().to_string(), |m| key(1).0.sign(m).to_vec());
        assert!(check(&untyped).is_ok());
    }

    #[test]
    fn what_the_claims_must_say() {
        let audience = || TokenError::Audience { expected: "creto:node-7".into() };
        let at = Timestamp::from_unix;
        for (change, why) in [
            (json!({"sub": "spiffe://example.org/agents/b"}), TokenError::Subject),
            (json!({"sub": AGENT.to_uppercase()}), TokenError::Subject),
            (json!({"iss": "spiffe://example.org/agents/b"}), TokenError::Issuer),
            (json!({"aud": "creto:node-8"}), audience()),
            (json!({"aud": ["creto:node-8"]}), audience()),
            (json!({"aud": ["creto:node-7", "creto:node-8"]}), TokenError::Claims),
            (json!({"aud": null}), TokenError::Claims),
            (json!({"aud": []}), TokenError::Claims),
            (json!({"exp": NOW - 30, "iat": NOW - 60}), TokenError::Expired(at(NOW - 30))),
            (json!({"exp": null}), TokenError::Claims),
            (json!({"exp": (NOW + 300) as f64 + 0.5}), TokenError::Claims),
            (json!({"exp": "2027-01-15T08:00:00Z"}), TokenError::Claims),
            (json!({"exp": -1}), TokenError::Claims),
            (json!({"nbf": NOW + 31}), TokenError::NotYet(at(NOW + 31))),
            (json!({"iat": NOW + 31}), TokenError::IssuedLater(at(NOW + 31))),
            (json!({"iat": null}), TokenError::Claims),
            (
                json!({"exp": NOW + 601}),
                TokenError::Lifetime { given: Duration::from_secs(601), most: Duration::from_secs(600) },
            ),
            (
                json!({"exp": u64::MAX}),
                TokenError::Lifetime { given: at(u64::MAX).since(at(NOW)), most: Duration::from_secs(600) },
            ),
            (json!({"jti": null}), TokenError::Claims),
            (json!({"jti": ""}), TokenError::Jti),
            (json!({"jti": "j".repeat(257)}), TokenError::Jti),
        ] {
            assert_eq!(check(&with(change.clone())), Err(why), "{change}");
        }
        for just in [
            json!({"exp": NOW - 29, "iat": NOW - 60}),
            json!({"nbf": NOW + 30}),
            json!({"iat": NOW + 30}),
            json!({"exp": NOW + 600}),
        ] {
            assert!(check(&with(just.clone())).is_ok(), "{just}");
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let (secret, claims) = (key(1).0, claims().to_string());
        let eddsa = |message: &[u8]| secret.sign(message).to_vec();
        let attacker = |message: &[u8]| fresh_key().unwrap().sign(message).to_vec();
        // HMAC under the public key is what a confused verifier would compute; any bytes do to show that nobody gets so far.
        let mac = |message: &[u8]| {
            crate::digest::Digest::of(&[key(1).1.key.as_bytes(), message].concat()).as_bytes().to_vec()
        };
        let good = token(r#"{"alg":"EdDSA","kid":"k1"}"#, &claims, eddsa);
        assert!(check(&good).is_ok());
        let embedded = serde_json::to_string(&public_half(&fresh_key().unwrap()).unwrap().to_jwk()).unwrap();
        let (head, rest) = good.split_once('.').unwrap();
        let (body, signature) = rest.split_once('.').unwrap();
        let other_body = BASE64_URL_SAFE_NO_PAD.encode(claims.replace("j1", "j2"));
        for (what, forged, why) in [
            ("alg none", token(r#"{"alg":"none","kid":"k1"}"#, &claims, |_| vec![]), TokenError::Algorithm),
            ("alg None, signed", token(r#"{"alg":"None","kid":"k1"}"#, &claims, eddsa), TokenError::Algorithm),
            ("HS256 by the public key", token(r#"{"alg":"HS256","kid":"k1"}"#, &claims, mac), TokenError::Algorithm),
            ("RS256", token(r#"{"alg":"RS256","kid":"k1"}"#, &claims, eddsa), TokenError::Algorithm),
            ("ES256", token(r#"{"alg":"ES256","kid":"k1"}"#, &claims, eddsa), TokenError::Algorithm),
            ("no alg", token(r#"{"kid":"k1"}"#, &claims, eddsa), TokenError::Form),
            ("alg twice", token(r#"{"alg":"EdDSA","alg":"none","kid":"k1"}"#, &claims, eddsa), TokenError::Form),
            ("no kid", token(r#"{"alg":"EdDSA"}"#, &claims, eddsa), TokenError::NoKeyId),
            ("unknown kid", token(r#"{"alg":"EdDSA","kid":"k3"}"#, &claims, eddsa), TokenError::UnknownKey),
            ("kid of another key", token(r#"{"alg":"EdDSA","kid":"k2"}"#, &claims, eddsa), TokenError::Signature),
            ("attacker's key", token(r#"{"alg":"EdDSA","kid":"k1"}"#, &claims, attacker), TokenError::Signature),
            (
                "attacker's key in the header",
                token(&format!(r#"{{"alg":"EdDSA","kid":"k1","jwk":{embedded}}}"#), &claims, attacker),
                TokenError::Signature,
            ),
            (
                "a sandbox's token",
                token(r#"{"alg":"EdDSA","kid":"k1","typ":"wit+jwt"}"#, &claims, eddsa),
                TokenError::Type,
            ),
            (
                "crit",
                token(r#"{"alg":"EdDSA","kid":"k1","crit":["b64"],"b64":false}"#, &claims, eddsa),
                TokenError::Critical,
            ),
            ("other claims", format!("{head}.{other_body}.{signature}"), TokenError::Signature),
            ("no signature", format!("{head}.{body}."), TokenError::Signature),
            ("signature's end changed", format!("{head}.{body}.{}_", &signature[..85]), TokenError::Form),
            ("padding", format!("{good}="), TokenError::Form),
            ("four parts", format!("{good}.x"), TokenError::Form),
            ("white space", format!("{good}\n"), TokenError::Form),
            (
                "sub twice",
                {
                    let twice = claims.replace("\"sub\"", "\"sub\":\"spiffe://example.org/agents/b\",\"sub\"");
                    token(r#"{"alg":"EdDSA","kid":"k1"}"#, &twice, eddsa)
                },
                TokenError::Claims,
            ),
            ("no JSON", token(r#"{"alg":"EdDSA","kid":"k1"}"#, "x", eddsa), TokenError::Claims),
            ("too long", format!("{good}{}", "x".repeat(MAX_BYTES)), TokenError::TooLong),
            ("empty", String::new(), TokenError::Form),
        ] {
            let error = check(&forged).expect_err(what);
            assert_eq!(error, why, "{what}");
            assert!(!error.to_string().contains("j1"), "{what}: an error repeats nothing of the token");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[A-Za-z0-9._-]{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(check(&text).is_err());
            let header = String::from_utf8_lossy(&bytes);
            prop_assert!(check(&token(&header, &header, |_| vec![0; 64])).is_err());
        }
    }
}
