//! Which lists of keys are possible, and how one becomes the next. Pure.

use std::path::Path;
use std::time::Duration;

use super::jwks::{BadJwkSet, Jwk, JwkSet, PublicKey};
use super::{Entry, KeyError, KeyVersion, Status};
use crate::clock::Timestamp;

/// So many keys stay listed, the oldest fall out: rotated monthly, ten years.
const MOST_KEYS: usize = 120;

/// The list of keys: oldest first, versions ascending, the last one active and no other. Pure.
pub struct Ring(Vec<Entry>);

impl Ring {
    /// Of a node that had none.
    pub fn first(key: PublicKey, now: Timestamp) -> Self {
        Self(vec![Entry { version: KeyVersion(1), key, status: Status::Active, created: now }])
    }

    /// With `key` as the active one; the one before counts for `overlap` more.
    pub fn rotated(mut self, key: PublicKey, now: Timestamp, overlap: Duration) -> Self {
        let version = KeyVersion(self.active().version.0.saturating_add(1));
        for entry in &mut self.0 {
            if entry.status == Status::Active {
                entry.status = Status::Deprecated { after: now.plus(overlap) };
            }
        }
        self.0.push(Entry { version, key, status: Status::Active, created: now });
        self.0.drain(..self.0.len().saturating_sub(MOST_KEYS));
        self
    }

    /// With the overlap of a deprecated key ended now.
    pub fn deprecated(mut self, version: KeyVersion, now: Timestamp) -> Result<Self, KeyError> {
        match self.0.iter_mut().find(|entry| entry.version == version).map(|entry| &mut entry.status) {
            Some(Status::Active) => Err(KeyError::IsActive(version)),
            Some(Status::Deprecated { after }) => {
                *after = now.min(*after);
                Ok(self)
            }
            None => Err(KeyError::Unknown(version)),
        }
    }

    /// The key that signs.
    pub fn active(&self) -> &Entry {
        // Never empty: `first` and `from_set` see to it.
        &self.0[self.0.len() - 1]
    }

    /// All but the active one.
    pub fn deprecated_entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(|entry| entry.status != Status::Active)
    }

    /// All, oldest first.
    pub fn into_entries(self) -> Vec<Entry> {
        self.0
    }

    /// From keyring.json, which lies at `path`.
    pub fn from_set(set: &JwkSet, path: &Path) -> Result<Self, KeyError> {
        let wrong = |why| KeyError::Contradiction { path: path.to_owned(), why };
        let mut entries: Vec<Entry> = Vec::new();
        for (at, jwk) in set.keys.iter().enumerate() {
            let bad = |e| KeyError::Keyring { path: path.to_owned(), why: BadJwkSet::Key(at, e) };
            let (Some(version), Some(status), Some(created)) = (jwk.version, jwk.status(), jwk.created) else {
                return Err(wrong("a key lacks its version, status or creation time"));
            };
            if entries.last().is_some_and(|before| before.version >= version) {
                return Err(wrong("versions do not ascend"));
            }
            entries.push(Entry { version, key: jwk.public_key().map_err(bad)?, status, created });
        }
        match entries.split_last() {
            Some((last, before))
                if last.status == Status::Active && before.iter().all(|e| e.status != Status::Active) =>
            {
                Ok(Self(entries))
            }
            _ => Err(wrong("exactly one key, the last one, is active")),
        }
    }

    /// As keyring.json and jwks.json have it.
    pub fn to_json(&self) -> Result<String, KeyError> {
        let jwk = |entry: &Entry| {
            let (status, deprecated_after) = match entry.status {
                Status::Active => ("active", None),
                Status::Deprecated { after } => ("deprecated", Some(after)),
            };
            Jwk {
                version: Some(entry.version),
                status: Some(status.into()),
                created: Some(entry.created),
                deprecated_after,
                ..entry.key.to_jwk()
            }
        };
        let set = JwkSet { keys: self.0.iter().map(jwk).collect() };
        set.to_json().map_err(|e| KeyError::Encoding(e.to_string()))
    }
}
