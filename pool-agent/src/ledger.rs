//! The node's audit record, for whoever reads it: opened with all that waits in the spools drained into it, under the ledger's own
//! lock, and searched. A ledger that was tampered with takes nothing more, and can still be searched.
//! Not here: what a record is and how it is proven (`trust::audit`); what the client itself records ([`crate::record`]).

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;
use trust::audit::AuditRecord;
use trust::audit::inbox::Inbox;
use trust::audit::ledger::{Entry, HeadSchedule, Ledger, LedgerError};
use trust::audit::node_key::NodeKey;
use trust::clock::SystemClock;
use trust::keys::{KeyError, Keyring};

use crate::node::{Node, NodeError, Root};
use crate::span;

/// Why the record cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum OpenError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("the node's keys, which only their owner may use, most often root")]
    Keyring(#[from] KeyError),
    #[error("the audit ledger")]
    Ledger(#[from] LedgerError),
}

/// The record, and what is needed to go on with it.
#[derive(Debug)]
pub struct Opened {
    /// Whose it is.
    pub node: Node,
    /// The node's keys.
    pub keyring: Keyring,
    /// The record.
    pub ledger: Ledger,
    /// Whether all that waited is in it now.
    pub drained: Result<(), LedgerError>,
}

/// Opens the record, and drains what waits into it. Blocks.
pub fn open(root: &Root, now: SystemTime) -> Result<Opened, OpenError> {
    let node = Node::read(root)?;
    let keyring = Keyring::open(root.lib(), &SystemClock)?;
    let mut ledger = Ledger::open(&root.ledger(), &node.id.to_string())?;
    let signer = NodeKey::new(&node.id, keyring.signer()?);
    let drained = ledger.drain(&Inbox::at(&root.spool()), &HeadSchedule::default(), &signer, now).map(drop);
    Ok(Opened { node, keyring, ledger, drained })
}

/// A record with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "AuditRecord")]
pub struct Placed {
    /// In the tree, from 0.
    pub position: u64,
    /// The record.
    #[serde(flatten)]
    pub record: AuditRecord,
}

impl From<Entry> for Placed {
    fn from(Entry { position, record }: Entry) -> Self {
        Self { position, record }
    }
}

/// A time as people give it: an instant, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Then.
    At(SystemTime),
    /// So long before it is asked.
    Ago(Duration),
}

/// Neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give a time such as 2026-11-24T21:36:24Z, or how long ago, such as 1h")]
pub struct BadWhen;

impl FromStr for When {
    type Err = BadWhen;

    fn from_str(text: &str) -> Result<Self, BadWhen> {
        if let Ok(at) = humantime::parse_rfc3339(text) {
            return Ok(Self::At(at));
        }
        span::parse(text.strip_suffix(" ago").unwrap_or(text)).map(Self::Ago).map_err(|_| BadWhen)
    }
}

impl When {
    /// In milliseconds since 1970.
    pub fn millis(self, now: SystemTime) -> u64 {
        let at = match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(UNIX_EPOCH),
        };
        at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().try_into().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_instant_or_how_long_ago() {
        let now = UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
        for (text, millis) in [
            ("2027-01-15T08:00:00Z", 1_800_000_000_000),
            ("2027-01-15T08:00:00.25Z", 1_800_000_000_250),
            ("1h", 1_799_996_400_500),
            ("90m ago", 1_799_994_600_500),
            ("2days 1h", 1_799_823_600_500),
            ("99y", 0),
        ] {
            assert_eq!(text.parse::<When>().unwrap().millis(now), millis, "{text}");
        }
        for bad in ["", "yesterday", "2027-01-15", "1700000000", "-1h"] {
            assert!(bad.parse::<When>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_made_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()));
        std::fs::create_dir_all(root.lib()).unwrap();
        let opened = open(&root, SystemTime::now()).unwrap();
        assert!(opened.drained.is_ok() && opened.ledger.size().unwrap() == 0);
    }
}
