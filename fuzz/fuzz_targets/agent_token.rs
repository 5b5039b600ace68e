//! An agent's token: nothing but a whole token under the agent's key is taken, and what is taken is within the rules.
#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use libfuzzer_sys::fuzz_target;
use trust::clock::Timestamp;
use trust::id::AgentId;
use trust::identity::source::AgentKey;
use trust::identity::token::{Rules, verify};
use trust::keys::jwks::PublicKey;

const NOW: u64 = 1_800_000_000;

static SECRET: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[1; 32]));
static AGENT: LazyLock<AgentId> = LazyLock::new(|| "spiffe://example.org/a".parse().unwrap());
static KEYS: LazyLock<[AgentKey; 1]> = LazyLock::new(|| {
    let key = PublicKey::from_bytes(SECRET.verifying_key().as_bytes()).unwrap();
    [AgentKey::new(Some("k".into()), key)]
});
static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::new("creto:n"));

// A header and claims, parted by a newline: as they are, and signed as only the agent can.
fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let now = Timestamp::from_unix(NOW);
    assert!(verify(text, &AGENT, KEYS.as_slice(), &RULES, now).is_err(), "a stranger's");
    let (header, claims) = text.split_once('\n').unwrap_or(("{\"alg\":\"EdDSA\",\"kid\":\"k\"}", text));
    let message = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = BASE64_URL_SAFE_NO_PAD.encode(SECRET.sign(message.as_bytes()).to_bytes());
    let Ok(genuine) = verify(&format!("{message}.{signature}"), &AGENT, KEYS.as_slice(), &RULES, now) else { return };
    assert!((1..=256).contains(&genuine.jti.len()));
    let longest = RULES.skew + RULES.max_lifetime + RULES.skew;
    assert!(genuine.until > now && genuine.until <= now.plus(longest));
    assert!(claims.contains("creto:n") || claims.contains('\\'), "the audience is in the claims");
});
