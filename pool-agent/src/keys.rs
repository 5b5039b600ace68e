//! The node's public keys as it publishes them, jwks.json, and how far each counts. Looking at them needs that file alone, which
//! everybody may read. Not here: how keys are made, rotated and kept (`trust::keys`).

use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::clock::Timestamp;
use trust::id::KeyId;
use trust::keys::jwks::{BadJwkSet, Jwk, JwkSet, TrustRoot, TrustedKey};
use trust::keys::{KeyVersion, Status};

/// Why there are no keys to look at.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PublishedError {
    #[error("there is no {}: the first sandbox of a node makes its keys", .0.display())]
    NoKeys(PathBuf),
    #[error("reading {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("{}", path.display())]
    Jwks {
        path: PathBuf,
        #[source]
        why: BadJwkSet,
    },
}

/// A key set, as written and as believed: the same keys in the same order.
pub fn published(path: &Path) -> Result<(JwkSet, TrustRoot), PublishedError> {
    let path = || path.to_owned();
    let bytes = match std::fs::read(path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PublishedError::NoKeys(path())),
        bytes => bytes.map_err(|why| PublishedError::Read { path: path(), why })?,
    };
    let set = JwkSet::parse(&bytes).and_then(|set| Ok((set, TrustRoot::parse(&bytes)?)));
    set.map_err(|why| PublishedError::Jwks { path: path(), why })
}

/// A key, and how far it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyView {
    /// What people call it.
    pub version: Option<KeyVersion>,
    /// Its thumbprint, which envelopes and tokens name.
    pub key_id: KeyId,
    /// How far it counts now.
    pub status: KeyStatus,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// From when on it counts only where its version is named; of a deprecated key.
    pub counts_until: Option<Timestamp>,
}

/// How far a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum KeyStatus {
    /// It signs.
    Active,
    /// Another signs, and it counts still.
    Overlapping,
    /// It counts only where its version is named.
    Deprecated,
}

/// The keys of a set, and how far each counts.
pub fn views(set: &JwkSet, trusted: &TrustRoot, now: Timestamp) -> Vec<KeyView> {
    set.keys.iter().zip(trusted.keys()).map(|(jwk, key)| view(jwk, key, now)).collect()
}

fn view(jwk: &Jwk, key: &TrustedKey, now: Timestamp) -> KeyView {
    let (status, counts_until) = match key.status {
        Status::Active => (KeyStatus::Active, None),
        Status::Deprecated { after } if key.status.counts(now) => (KeyStatus::Overlapping, Some(after)),
        Status::Deprecated { after } => (KeyStatus::Deprecated, Some(after)),
    };
    KeyView { version: key.version, key_id: key.key.id().clone(), status, created: jwk.created, counts_until }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_tells_how_far_it_counts() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let until = |text: &str| (Some(text.parse().unwrap()), json!(text));
        let (later, now_too) = (until("2026-11-24T12:00:01Z"), until("2026-11-24T12:00:00Z"));
        for (after, status, counts_until) in [
            (None, KeyStatus::Active, None),
            (Some(later.1), KeyStatus::Overlapping, later.0),
            (Some(now_too.1), KeyStatus::Deprecated, now_too.0),
        ] {
            let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
            let mut jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "creto.dev/version": "v2"});
            if let Some(after) = after {
                jwk["creto.dev/status"] = json!("deprecated");
                jwk["creto.dev/deprecated-after"] = after;
            }
            let set = json!({ "keys": [jwk] }).to_string();
            let (set, root) = (JwkSet::parse(set.as_bytes()).unwrap(), TrustRoot::parse(set.as_bytes()).unwrap());
            let view = &views(&set, &root, now)[0];
            assert_eq!((view.status, view.counts_until, view.created), (status, counts_until, None));
            assert_eq!(view.version.unwrap().to_string(), "v2");
        }
    }

    #[test]
    fn no_keys_are_told_from_bad_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        assert!(matches!(published(&path), Err(PublishedError::NoKeys(_))));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(published(&path), Err(PublishedError::Jwks { .. })));
    }
}
