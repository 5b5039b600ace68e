//! The signed tree head: what the log was, said in a form that stock tools verify.
//!
//! A C2SP tlog-checkpoint (origin, size, root) in a C2SP signed note with Ed25519 signatures. Pure; parsing is strict and
//! bounded, and what is accepted prints back byte for byte. Not called checkpoint here: that is a sandbox's saved state.
//! Source: <https://c2sp.org/tlog-checkpoint>, <https://c2sp.org/signed-note>.

#[cfg(test)]
pub(crate) mod tests;

use std::fmt::{self, Write};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::log::Hash;

/// The longest note, in bytes: well above 16 signatures of 5 kB, which the specification wants accepted.
pub const MAX_NOTE: usize = 256 * 1024;
/// The most signatures of a note; the specification wants at least 16.
pub const MAX_SIGNATURES: usize = 64;

const ED25519: u8 = 1;
const DASH: &str = "\u{2014} ";

/// The key that signs tree heads, wherever it is kept.
pub trait TreeHeadSigner {
    /// The log's name, which is also the key's: a URL without a scheme, such as `creto.dev/audit/node-1`.
    fn name(&self) -> &str;
    /// The Ed25519 public key.
    fn public_key(&self) -> [u8; 32];
    /// The Ed25519 signature over exactly these bytes.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// What is wrong with a note, a key or a head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note as such.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// The signed text is no tree head.
    #[error("not a tree head: {0}")]
    NotATreeHead(&'static str),
    /// The verifier's key.
    #[error("not a verifier key: {0}; it is written name+id+base64")]
    BadKey(&'static str),
    /// A trusted key has signed something else.
    #[error("the signature by {0} does not verify")]
    Forged(String),
    /// No trusted key has signed it.
    #[error("not signed by a trusted key, only by {0}")]
    Untrusted(String),
}

/// A public key that is trusted to sign heads. Its text form, `name+id+base64`, is the one Go's `note` package reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    key: VerifyingKey,
}

impl NoteKey {
    /// A key by its name and its 32 bytes.
    pub fn new(name: &str, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        if !is_key_name(name) {
            return Err(NoteError::BadKey("its name is empty or has a space, a control character or a +"));
        }
        let key = VerifyingKey::from_bytes(public_key).ok().filter(|key| !key.is_weak());
        let key = key.ok_or(NoteError::BadKey("these 32 bytes are no Ed25519 public key"))?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The key with which `signer` signs.
    pub fn of(signer: &dyn TreeHeadSigner) -> Result<Self, NoteError> {
        Self::new(signer.name(), &signer.public_key())
    }

    /// The key's name, which is its log's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The short id that stands in a signature.
    fn id(&self) -> [u8; 4] {
        let hash =
            Sha256::new().chain_update(&self.name).chain_update([b'\n', ED25519]).chain_update(self.key.as_bytes());
        let hash: Hash = hash.finalize().into();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Display for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        write!(f, "{}+{:08x}+{key}", self.name, u32::from_be_bytes(self.id()))
    }
}

impl FromStr for NoteKey {
    type Err = NoteError;
    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+'); // base64 has a + too
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::BadKey("it has no three parts"));
        };
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::BadKey("its last part is not base64"))?;
        let key: [u8; 32] = match bytes.split_first() {
            Some((&ED25519, key)) => key.try_into().map_err(|_| NoteError::BadKey("an Ed25519 key has 32 bytes"))?,
            _ => return Err(NoteError::BadKey("it is not of type 1, Ed25519")),
        };
        let key = Self::new(name, &key)?;
        if key.to_string() == text { Ok(key) } else { Err(NoteError::BadKey("its id is not that of its name and key")) }
    }
}

/// What a log was at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// The log.
    pub origin: String,
    /// How many records it had.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// Further lines under the signature; ours has none.
    pub extensions: Vec<String>,
}

impl TreeHead {
    /// The signed text.
    fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    fn parse(text: &str) -> Result<Self, NoteError> {
        let bad = NoteError::NotATreeHead;
        let mut lines = text.strip_suffix('\n').ok_or(bad("the last line has no end"))?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(bad("it has fewer than three lines"));
        };
        let extensions: Vec<_> = lines.map(str::to_owned).collect();
        if origin.is_empty() || extensions.iter().any(String::is_empty) {
            return Err(bad("a line is empty"));
        }
        let number: u64 = size.parse().map_err(|_| bad("the second line is no number"))?;
        if number.to_string() != size {
            return Err(bad("the size is not written as a plain decimal number"));
        }
        let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let root = root.ok_or(bad("the third line is not the base64 of 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), size: number, root, extensions })
    }
}

/// A tree head with its signatures. Nothing in it is proven before [`SignedTreeHead::verify`] has said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTreeHead {
    head: TreeHead,
    signatures: Vec<NoteSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NoteSignature {
    name: String,
    key_id: [u8; 4],
    signature: Vec<u8>,
}

impl SignedTreeHead {
    /// Signs the head of the signer's log.
    pub fn sign(size: u64, root: Hash, signer: &dyn TreeHeadSigner) -> Result<Self, NoteError> {
        let key = NoteKey::of(signer)?;
        let head = TreeHead { origin: key.name.clone(), size, root, extensions: Vec::new() };
        let signature = signer.sign(head.text().as_bytes()).to_vec();
        let signed =
            Self { head, signatures: vec![NoteSignature { key_id: key.id(), name: key.name.clone(), signature }] };
        signed.verify(&[key])?; // a signer that signs with another key than it names is found here, not by an auditor
        Ok(signed)
    }

    /// Reads a note; no signature is looked at yet.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        let bad = NoteError::Malformed;
        if note.len() > MAX_NOTE {
            return Err(bad("it is too long"));
        }
        if note.bytes().any(|b| b < b' ' && b != b'\n') {
            return Err(bad("it has a control character"));
        }
        let end = note.rfind("\n\n").ok_or(bad("no empty line parts text and signatures"))?;
        let (text, signatures) = (&note[..=end], &note[end + 2..]);
        let lines = signatures.strip_suffix('\n').ok_or(bad("the last line has no end"))?.split('\n');
        let signatures: Vec<_> = lines.take(MAX_SIGNATURES + 1).map(NoteSignature::parse).collect::<Result<_, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(bad("it has too many signatures"));
        }
        Ok(Self { head: TreeHead::parse(text)?, signatures })
    }

    /// The head, once a trusted key has signed it. A signature by a trusted key that is wrong refuses the note, whoever
    /// else signed; signatures of others say nothing. The origin must be the name of a key that has signed.
    pub fn verify(&self, trusted: &[NoteKey]) -> Result<&TreeHead, NoteError> {
        let (text, mut signed) = (self.head.text(), false);
        for signature in &self.signatures {
            for key in trusted.iter().filter(|key| key.name == signature.name && key.id() == signature.key_id) {
                let found = Signature::from_slice(&signature.signature);
                let verified = found.and_then(|found| key.key.verify_strict(text.as_bytes(), &found));
                verified.map_err(|_| NoteError::Forged(key.name.clone()))?;
                signed |= key.name == self.head.origin;
            }
        }
        let names = || self.signatures.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        if signed { Ok(&self.head) } else { Err(NoteError::Untrusted(names())) }
    }

    /// What the note says, proven or not.
    pub fn unverified(&self) -> &TreeHead {
        &self.head
    }
}

impl fmt::Display for SignedTreeHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head.text())?;
        f.write_char('\n')?;
        for NoteSignature { name, key_id, signature } in &self.signatures {
            writeln!(f, "{DASH}{name} {}", STANDARD.encode([key_id.as_slice(), signature].concat()))?;
        }
        Ok(())
    }
}

impl NoteSignature {
    fn parse(line: &str) -> Result<Self, NoteError> {
        let bad = NoteError::Malformed;
        let (name, base64) =
            line.strip_prefix(DASH).and_then(|line| line.split_once(' ')).ok_or(bad("no signature line"))?;
        if !is_key_name(name) {
            return Err(bad("a signature's key name is empty or has a space or a +"));
        }
        let bytes = STANDARD.decode(base64).map_err(|_| bad("a signature is not base64"))?;
        match bytes.split_first_chunk() {
            Some((key_id, signature)) if !signature.is_empty() => {
                Ok(Self { name: name.to_owned(), key_id: *key_id, signature: signature.to_vec() })
            }
            _ => Err(bad("a signature is too short")),
        }
    }
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}
