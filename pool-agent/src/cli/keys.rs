//! `keys`: the node's signing keys. Looking at them needs jwks.json alone, which everybody may read; changing them is root's.

use std::io::{self, Write};
use std::time::Duration;

use clap::Subcommand;
use trust::audit::Event;
use trust::audit::node_key::log_name;
use trust::audit::record::Text;
use trust::audit::tree_head::{NoteError, NoteKey};
use trust::clock::{Clock, SystemClock};
use trust::keys::jwks::BadJwk;
use trust::keys::{Entry, KeyError, KeyVersion, Keyring, Status};

use super::output;
use crate::keys::{KeyStatus, KeyView, PublishedError, published, views};
use crate::node::{Node, NodeError, Root};
use crate::record;

/// What the record says that the keys are for.
const PURPOSE: &str = "node";

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the keys: which one signs, and how far the earlier ones still count
    List {
        /// Print the JWK Set
        #[arg(long)]
        json: bool,
    },
    /// Make a new key that signs from now on; the one before counts for the overlap
    Rotate {
        /// How long statements of the key before stay valid without --key-version: as long as statements live, or longer
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = humantime::parse_duration)]
        overlap: Duration,
    },
    /// End the overlap of an earlier key now
    Deprecate {
        /// Which key, such as v1
        #[arg(value_name = "VERSION")]
        key: KeyVersion,
    },
    /// Print public keys: the JWK Set, or one key
    Export {
        /// Which key, such as v1; without: all of them, with --pem or --note the one that signs
        #[arg(value_name = "VERSION")]
        key: Option<KeyVersion>,
        /// As PEM, which cosign and OpenSSL read
        #[arg(long)]
        pem: bool,
        /// As name+id+base64, with which note verifiers check the audit ledger's tree heads
        #[arg(long, conflicts_with = "pem")]
        note: bool,
    },
}

/// Why keys could not be shown or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum KeysError {
    #[error(transparent)]
    Published(#[from] PublishedError),
    #[error("there is no key {0}: `creto-runtime-cli keys list` shows those that are")]
    Unknown(KeyVersion),
    #[error("no key of the set signs: it is not a node's own")]
    NoneActive,
    #[error("the node's keys, which only their owner may use, most often root")]
    Keyring(#[from] KeyError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("writing the key down")]
    Pem(#[from] BadJwk),
    #[error("writing the key down")]
    Note(#[from] NoteError),
    #[error("writing the answer")]
    Output(#[source] io::Error),
}

impl From<io::Error> for KeysError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

pub(super) fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), KeysError> {
    match verb {
        Verb::List { json } => list(root, json, out),
        Verb::Rotate { overlap } => rotate(root, overlap, out),
        Verb::Deprecate { key } => deprecate(root, key, out),
        Verb::Export { key, pem, note } => export(root, key, pem, note, out),
    }
}

fn list(root: &Root, json: bool, out: &mut dyn Write) -> Result<(), KeysError> {
    let (set, trusted) = published(&root.jwks())?;
    if json {
        return Ok(output::json(out, &set)?);
    }
    let rows = views(&set, &trusted, SystemClock.timestamp()).into_iter().map(row);
    Ok(output::table(out, &["VERSION", "STATUS", "CREATED", "COUNTS UNTIL", "KEY ID"], rows)?)
}

fn row(key: KeyView) -> Vec<String> {
    let status = match key.status {
        KeyStatus::Active => "active",
        KeyStatus::Overlapping => "deprecated, still counts",
        KeyStatus::Deprecated => "deprecated",
    };
    vec![
        output::or_dash(key.version),
        status.into(),
        output::or_dash(key.created),
        output::or_dash(key.counts_until),
        key.key_id.to_string(),
    ]
}

fn rotate(root: &Root, overlap: Duration, out: &mut dyn Write) -> Result<(), KeysError> {
    let node = Node::read(root)?; // before anything changes: the record needs it
    let keyring = Keyring::open(root.lib(), &SystemClock)?;
    let new = keyring.rotate(&SystemClock, overlap)?;
    let previous = keyring.list()?.into_iter().rev().find(|entry| entry.version < new.version);
    let event = Event::KeyRotated { purpose: PURPOSE.into(), key: id(&new), previous: previous.as_ref().map(id) };
    record::changed(root, &node, None, event);
    writeln!(out, "key {} signs now ({})", new.version, new.key.id())?;
    if let Some(Entry { version, status: Status::Deprecated { after }, .. }) = previous {
        writeln!(out, "key {version} counts until {after}, then only where its version is named")?;
    }
    Ok(())
}

fn deprecate(root: &Root, key: KeyVersion, out: &mut dyn Write) -> Result<(), KeysError> {
    let node = Node::read(root)?;
    let keyring = Keyring::open(root.lib(), &SystemClock)?;
    keyring.deprecate(&SystemClock, key)?;
    if let Some(entry) = keyring.list()?.iter().find(|entry| entry.version == key) {
        record::changed(root, &node, None, Event::KeyDeprecated { purpose: PURPOSE.into(), key: id(entry) });
    }
    Ok(writeln!(out, "key {key} counts only where its version is named (--key-version {key})")?)
}

/// What the record calls a key.
fn id(entry: &Entry) -> Text {
    entry.key.id().to_string().as_str().into()
}

fn export(
    root: &Root,
    version: Option<KeyVersion>,
    pem: bool,
    note: bool,
    out: &mut dyn Write,
) -> Result<(), KeysError> {
    let (set, trusted) = published(&root.jwks())?;
    let keys = || set.keys.iter().zip(trusted.keys());
    let (jwk, key) = match version {
        Some(version) => keys().find(|(_, key)| key.version == Some(version)).ok_or(KeysError::Unknown(version))?,
        None if pem || note => keys().find(|(_, key)| key.status == Status::Active).ok_or(KeysError::NoneActive)?,
        None => return Ok(output::json(out, &set)?),
    };
    if pem {
        return Ok(write!(out, "{}", key.key.to_pem()?)?);
    }
    if note {
        let name = log_name(&Node::read(root)?.id);
        return Ok(writeln!(out, "{}", NoteKey::new(&name, key.key.as_bytes())?)?);
    }
    Ok(output::json(out, jwk)?)
}
