//! What a node's sandboxes are bound to, as an outsider sees it: agents, tokens, statements, records.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use trust::attestation::verify::{Expectations, Invalid, Verified, verify};
use trust::clock::{Clock, SystemClock};
use trust::keys::jwks::TrustRoot;

use super::Node;

/// An agent with a key of its own.
pub struct Agent {
    /// Its SPIFFE ID.
    pub id: String,
    key: SigningKey,
}

impl Agent {
    /// Registered at the node.
    pub fn register(node: &Node, name: &str, seed: u8) -> Self {
        let agent = Self::unregistered(name, seed);
        agent.write(node, name, "enabled");
        agent
    }

    /// Known to nobody yet.
    pub fn unregistered(name: &str, seed: u8) -> Self {
        Self { id: format!("spiffe://example.org/agents/{name}"), key: SigningKey::from_bytes(&[seed; 32]) }
    }

    /// The `x` of its public key's JWK.
    pub fn x(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.key.verifying_key().to_bytes())
    }

    /// (Re)writes its file.
    pub fn write(&self, node: &Node, name: &str, status: &str) {
        let x = self.x();
        let dir = node.path("creto/etc/agents.d");
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "spiffe_id = {:?}\nstatus = {status:?}\n[[keys]]\nkty = \"OKP\"\ncrv = \"Ed25519\"\nkid = \"k\"\nx = {x:?}\n",
            self.id
        );
        fs::write(dir.join(format!("{name}.toml")), text).unwrap();
    }

    /// A token for this audience.
    pub fn token(&self, audience: &str, jti: &str) -> String {
        self.token_from(audience, jti, 0)
    }

    /// One that was made so many seconds ago, for a minute.
    pub fn token_from(&self, audience: &str, jti: &str, ago: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - ago;
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({"alg": "EdDSA", "kid": "k", "typ": "JWT"}));
        let claims = json!({"sub": self.id, "aud": audience, "iat": now, "exp": now + 60, "jti": jti});
        let signed = format!("{header}.{}", part(claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }
}

/// The claims of a token, without any check.
pub fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

impl Node {
    /// The statements about a sandbox, oldest first.
    pub fn statements(&self, id: &str) -> Vec<PathBuf> {
        let dir = self.path("creto/lib/attestations").join(self.namespace()).join(id);
        let mut all: Vec<_> = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }

    /// The public keys of the node.
    pub fn trust_root(&self) -> TrustRoot {
        TrustRoot::parse(&fs::read(self.path("creto/lib/jwks.json")).unwrap()).unwrap()
    }

    /// Verifies an envelope under the node's keys, some time from now.
    pub fn verify(&self, envelope: &[u8], expected: &Expectations, from_now: Duration) -> Result<Verified, Invalid> {
        verify(envelope, &self.trust_root(), SystemClock.timestamp().plus(from_now), expected)
    }

    /// The audit records that wait in the spools, in no order.
    pub fn records(&self) -> Vec<Value> {
        let dirs = fs::read_dir(self.path("creto/lib/spool")).into_iter().flatten().flatten();
        let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
        let text = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect::<String>();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The names of the events that were recorded of one sandbox.
    pub fn recorded(&self, id: &str) -> Vec<String> {
        let of = |record: &Value| record["about"]["sandbox"] == id;
        let mut all: Vec<_> = self.records().into_iter().filter(of).collect();
        all.sort_by_key(|record| {
            let id = record["id"].as_str().unwrap().to_owned();
            let (producer, number) = id.rsplit_once('/').unwrap();
            (record["time"].as_u64(), producer.to_owned(), number.parse::<u64>().unwrap())
        });
        all.iter().map(|record| record["event"]["type"].as_str().unwrap().to_owned()).collect()
    }
}
