//! The node's signing keys: one active, the deprecated ones' public halves, and the order in which they change.
//!
//! ```text
//! <root>/keys/           0700, root's
//!   keyring.json         which keys there are and which one signs: the truth, replaced whole
//!   v3.pem               the active private half (PKCS#8), 0600; a deprecated key's is removed, nothing signs with it again
//! <root>/jwks.json       0644, the same list for everybody; published before a key signs
//! ```
//! Nothing is held between calls: each reads what is on disk, so a rotation reaches every process at its next signature.
//! Not here: how files are written (`store`), which lists are possible (`ring`), what a key looks like (`jwks`).

pub mod jwks;
mod ring;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ed25519::pkcs8::KeypairBytes;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::clock::{Clock, Timestamp};
use crate::id::KeyId;
use jwks::{BadJwkSet, JwkSet, PublicKey};
use ring::Ring;
use store::Store;

/// A signer may lose this many races against rotations before it gives up.
const TRIES: usize = 5;

/// What people call a key: `v1`, `v2`, … in the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion(u32);

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// The text is no version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key version: give v1, v2, …")]
pub struct BadKeyVersion;

impl FromStr for KeyVersion {
    type Err = BadKeyVersion;

    fn from_str(text: &str) -> Result<Self, BadKeyVersion> {
        let number = text.strip_prefix('v').and_then(|digits| digits.parse().ok()).ok_or(BadKeyVersion)?;
        let version = Self(number);
        if number > 0 && version.to_string() == text { Ok(version) } else { Err(BadKeyVersion) }
    }
}

impl Serialize for KeyVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// How far a key is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It signs.
    Active,
    /// It signs no more. Until `after` what it signed counts as before (the overlap); then only where its version is named.
    Deprecated {
        /// The end of the overlap.
        after: Timestamp,
    },
}

impl Status {
    /// Whether what the key signed counts at `now` without the key being named.
    pub fn counts(self, now: Timestamp) -> bool {
        match self {
            Self::Active => true,
            Self::Deprecated { after } => now < after,
        }
    }
}

/// A key of the node, without its private half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What people call it.
    pub version: KeyVersion,
    /// The public half.
    pub key: PublicKey,
    /// Active, or deprecated.
    pub status: Status,
    /// When it was made.
    pub created: Timestamp,
}

/// Why the keys cannot be used. A path is named with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others may read or write what is root's alone.
    #[error("{0}: mode {mode:04o} lets others in: chmod {wanted:o} {0}", path.display())]
    Loose {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they must be.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{}: belongs to uid {owner}, we are uid {us}: {}", path.display(), match us {
        0 => format!("chown 0 {}", path.display()),
        _ => format!("run this as uid {owner}, for it is not yours to take over"),
    })]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// A link, a device, a directory where a file should be, or the like.
    #[error("{}: not a plain {wanted}", path.display())]
    Kind {
        /// What is there.
        path: PathBuf,
        /// `file` or `directory`.
        wanted: &'static str,
    },
    /// The file system refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, in the progressive.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        why: std::io::Error,
    },
    /// keyring.json does not parse.
    #[error("{}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        why: BadJwkSet,
    },
    /// keyring.json says something impossible.
    #[error("{}: {why}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// What.
        why: &'static str,
    },
    /// A private half is no PKCS#8 Ed25519 key, or not the one keyring.json speaks of.
    #[error("{}: not the private half of key {version}: restore it, or rotate the keys", path.display())]
    Private {
        /// The file.
        path: PathBuf,
        /// Of which key.
        version: KeyVersion,
    },
    /// The active key cannot be deprecated: nothing would sign.
    #[error("key {0} is the active one: rotate instead")]
    IsActive(KeyVersion),
    /// No such key.
    #[error("there is no key {0}")]
    Unknown(KeyVersion),
    /// The system has no random numbers to give.
    #[error("no random numbers from the system: {0}")]
    Random(String),
    /// A key could not be written down.
    #[error("encoding a key: {0}")]
    Encoding(String),
}

/// The node's keys. A handle: it holds no key.
#[derive(Clone, Debug)]
pub struct Keyring {
    store: Store,
}

impl Keyring {
    /// Opens the keys below `root` (`/var/lib/creto`); where there are none yet, makes the first. Any number of processes may
    /// come at once, and each may be killed at any point.
    pub fn open(root: &Path, clock: &dyn Clock) -> Result<Self, KeyError> {
        let keyring = Self { store: Store::prepare(root)? };
        match keyring.read()? {
            Some(ring) if keyring.store.published()?.as_deref() == Some(ring.to_json()?.as_bytes()) => {}
            _ => keyring.mend(clock)?,
        }
        Ok(keyring)
    }

    /// Makes the first key, or publishes again what a killed writer left half published.
    fn mend(&self, clock: &dyn Clock) -> Result<(), KeyError> {
        let _alone = self.store.lock()?;
        self.store.sweep()?;
        match self.read()? {
            Some(ring) => self.store.publish(ring.to_json()?.as_bytes()),
            None => {
                let (secret, key) = generate()?;
                self.commit(&Ring::first(key, clock.timestamp()), Some(&secret))
            }
        }
    }

    /// All keys, oldest first.
    pub fn list(&self) -> Result<Vec<Entry>, KeyError> {
        Ok(self.ring()?.into_entries())
    }

    /// The public keys, as jwks.json has them.
    pub fn jwks(&self) -> Result<String, KeyError> {
        self.ring()?.to_json()
    }

    /// The active key, ready to sign. Keep it no longer than needed: dropped, it is wiped.
    pub fn signer(&self) -> Result<Signer, KeyError> {
        let mut tries = 0;
        loop {
            let ring = self.ring()?;
            let active = ring.active();
            let name = private_name(active.version);
            // Gone: rotated away between the two reads.
            let Some(pem) = self.store.read(&name)? else {
                tries += 1;
                if tries < TRIES {
                    continue;
                }
                return Err(KeyError::Private { path: self.store.path(&name), version: active.version });
            };
            let key = std::str::from_utf8(&pem).ok().and_then(|pem| SigningKey::from_pkcs8_pem(pem).ok());
            return match key {
                Some(key) if key.verifying_key().as_bytes() == active.key.as_bytes() => {
                    Ok(Signer { key, id: active.key.id().clone(), version: active.version })
                }
                _ => Err(KeyError::Private { path: self.store.path(&name), version: active.version }),
            };
        }
    }

    /// Makes a new key the active one and deprecates the one before, which goes on counting for `overlap`: at least as long
    /// as statements and tokens live, if those out there are to stay valid.
    pub fn rotate(&self, clock: &dyn Clock, overlap: Duration) -> Result<Entry, KeyError> {
        let _alone = self.store.lock()?;
        let (secret, key) = generate()?;
        let ring = self.ring()?.rotated(key, clock.timestamp(), overlap);
        self.commit(&ring, Some(&secret))?;
        Ok(ring.active().clone())
    }

    /// Ends a deprecated key's overlap now.
    pub fn deprecate(&self, clock: &dyn Clock, version: KeyVersion) -> Result<(), KeyError> {
        let _alone = self.store.lock()?;
        self.commit(&self.ring()?.deprecated(version, clock.timestamp())?, None)
    }

    /// The order keeps every state in between whole: the key is there before it is the active one, and known to verifiers
    /// before it signs. Private halves that sign no more go last.
    fn commit(&self, ring: &Ring, secret: Option<&SigningKey>) -> Result<(), KeyError> {
        let active = private_name(ring.active().version);
        if let Some(secret) = secret {
            let pem = private_pem(secret).map_err(|e| KeyError::Encoding(e.to_string()))?;
            self.store.put(&active, pem.as_bytes())?;
        }
        let json = ring.to_json()?;
        self.store.publish(json.as_bytes())?;
        self.store.put(KEYRING, json.as_bytes())?;
        for entry in ring.deprecated_entries() {
            self.store.remove(&private_name(entry.version))?;
        }
        Ok(())
    }

    fn ring(&self) -> Result<Ring, KeyError> {
        let path = self.store.path(KEYRING);
        self.read()?.ok_or(KeyError::Contradiction { path, why: "is gone: restore it, or remove the directory" })
    }

    fn read(&self) -> Result<Option<Ring>, KeyError> {
        let Some(bytes) = self.store.read(KEYRING)? else { return Ok(None) };
        let path = self.store.path(KEYRING);
        let set = JwkSet::parse(&bytes).map_err(|why| KeyError::Keyring { path: path.clone(), why })?;
        Ring::from_set(&set, &path).map(Some)
    }
}

const KEYRING: &str = "keyring.json";

fn private_name(version: KeyVersion) -> String {
    format!("{version}.pem")
}

/// A new key from the system's random numbers.
fn generate() -> Result<(SigningKey, PublicKey), KeyError> {
    let secret = fresh_key().map_err(|e| KeyError::Random(e.to_string()))?;
    let public = public_half(&secret).map_err(|e| KeyError::Encoding(e.to_string()))?;
    Ok((secret, public))
}

/// A new private key; dropped, it is wiped.
pub(crate) fn fresh_key() -> Result<SigningKey, getrandom::Error> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The private half as PKCS#8 version 1 (RFC 8410 §7): version 2, with the public half in it, OpenSSL does not read.
pub(crate) fn private_pem(secret: &SigningKey) -> Result<Zeroizing<String>, ed25519_dalek::pkcs8::Error> {
    KeypairBytes { secret_key: secret.to_bytes(), public_key: None }.to_pkcs8_pem(LineEnding::LF)
}

pub(crate) fn public_half(secret: &SigningKey) -> Result<PublicKey, jwks::BadJwk> {
    PublicKey::from_bytes(secret.verifying_key().as_bytes())
}

/// The active key with its private half, which is wiped on drop.
pub struct Signer {
    key: SigningKey,
    id: KeyId,
    version: KeyVersion,
}

impl Signer {
    /// The signature (RFC 8032) over exactly these bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(&self.key, message).to_bytes()
    }

    /// The key's thumbprint.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// What people call the key.
    pub fn version(&self) -> KeyVersion {
        self.version
    }

    pub(crate) fn secret(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({}, {})", self.version, self.id)
    }
}

#[cfg(test)]
mod tests;
