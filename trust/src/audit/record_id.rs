//! A record's name: which process wrote it, and as its how-manieth. It makes "exactly once" and "none is missing" decidable.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A record's id: its producer and the number that producer gave it, from 0 without a hole. Written `producer/number`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(missing_docs, reason = "said above")]
pub struct RecordId {
    pub producer: Producer,
    pub sequence: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.producer, self.sequence)
    }
}

impl From<RecordId> for String {
    fn from(id: RecordId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RecordId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        let parts = text.split_once('/').and_then(|(producer, number)| {
            Some(Self { producer: Producer::parse(producer)?, sequence: number.parse().ok()? })
        });
        parts.filter(|id| id.to_string() == text).ok_or(BadId(text)) // `+7` and `007` are numbers too, but not ours
    }
}

/// Not a record's id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no record id; a record id is producer/number")]
pub struct BadId(String);

/// The process that wrote a record. It names a directory: only `a`–`z`, digits and `-`, at most 64 bytes, no leading `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Producer(String);

impl Producer {
    /// A producer's name, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=64).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(known);
        valid.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
