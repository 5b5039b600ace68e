//! Looking things up: search, inclusion and consistency proofs, export.

use std::io::Write;

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::{Ledger, LedgerError, Stored, last_head};
use crate::audit::log::{Hash, consistency_proof, inclusion_proof};
use crate::audit::ocsf;
use crate::audit::record::{AuditRecord, BadRecord, Event};
use crate::audit::tree_head::SignedTreeHead;

/// What to look for; all that is given must fit.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// An event's name, one of [`Event::NAMES`], or [`Event::EGRESS_ATTEMPT`] for several.
    pub event: Option<String>,
    /// A sandbox's id.
    pub sandbox: Option<String>,
    /// An agent's SPIFFE ID.
    pub agent: Option<String>,
    /// A destination: an address, or a name together with all names below it.
    pub destination: Option<String>,
    /// Not before this, in milliseconds since 1970.
    pub since: Option<u64>,
    /// Before this, in milliseconds since 1970.
    pub until: Option<u64>,
    /// In front of this position: where an earlier answer to the same question began.
    pub before: Option<u64>,
    /// No more than so many; the newest are kept.
    pub limit: Option<u64>,
}

/// A record and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position in the tree.
    pub position: u64,
    /// The record.
    pub record: AuditRecord,
}

/// What a search has found.
#[derive(Debug, Default)]
pub struct Found {
    /// The records that fit, oldest first.
    pub entries: Vec<Entry>,
    /// The places that would fit but hold no record any more: they were tampered with, and `verify` says how.
    pub unreadable: Vec<Unreadable>,
}

/// A place in the log whose bytes are no record.
#[derive(Debug)]
pub struct Unreadable {
    /// The position in the tree.
    pub position: u64,
    /// What is wrong with the bytes.
    pub why: BadRecord,
}

/// That a record is in the log, for someone who trusts the head's key and nothing else: hash `body` as a leaf and follow
/// `proof` to the head's root (RFC 9162 §2.1.3.2).
#[derive(Clone, Debug)]
pub struct Inclusion {
    /// The record's position.
    pub position: u64,
    /// The record's bytes.
    pub body: Vec<u8>,
    /// The hashes from its leaf to the root.
    pub proof: Vec<Hash>,
    /// The signed head that has the root.
    pub head: SignedTreeHead,
}

impl Ledger {
    /// The records that fit. One that cannot be read hides no other.
    pub fn search(&self, query: &Query) -> Result<Found, LedgerError> {
        let (mut text, mut values) = ("SELECT position, body FROM record WHERE 1".to_owned(), Vec::new());
        let mut and = |clause: &str, value: Value| {
            text += clause;
            values.push(value);
        };
        let (several, [one, two, three]) = Event::EGRESS_ATTEMPT;
        let (clause, event) = match query.event.as_deref() {
            Some(name) if name == several => {
                and(" AND event IN (?", one.to_owned().into());
                and(", ?", two.to_owned().into());
                (", ?)", Some(three.to_owned()))
            }
            _ => (" AND event = ?", query.event.clone()),
        };
        for (clause, value) in [
            (clause, &event),
            (" AND sandbox = ?", &query.sandbox),
            (" AND agent = ?", &query.agent),
            (
                " AND ('.' || destination) LIKE ('%.' || replace(replace(replace(?, '\\', '\\\\'), '%', '\\%'), '_', '\\_')) ESCAPE '\\'",
                &query.destination,
            ),
        ] {
            if let Some(value) = value {
                and(clause, value.clone().into());
            }
        }
        for (clause, time) in [(" AND time >= ?", query.since), (" AND time < ?", query.until)] {
            if let Some(time) = time {
                and(clause, i64::try_from(time).unwrap_or(i64::MAX).into());
            }
        }
        if let Some(before) = query.before {
            and(" AND position < ?", i64::try_from(before).unwrap_or(i64::MAX).into());
        }
        and(
            " ORDER BY position DESC LIMIT ?",
            query.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1)).into(),
        );
        let mut statement = self.db.prepare(&text)?;
        let rows = statement
            .query_map(params_from_iter(values), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut found = Found::default();
        for row in rows {
            let (position, body) = row?;
            match entry(position, &body) {
                Ok(entry) => found.entries.push(entry),
                Err(unreadable) => found.unreadable.push(unreadable),
            }
        }
        found.entries.reverse();
        found.unreadable.reverse();
        Ok(found)
    }

    /// Proves that the record at `position` is under the newest head; none if no head covers it (yet).
    pub fn prove(&self, position: u64) -> Result<Option<Inclusion>, LedgerError> {
        let Some((size, _, head)) = last_head(&self.db)? else { return Ok(None) };
        let Some(proof) = inclusion_proof(&Stored(&self.db), position, size)? else { return Ok(None) };
        let body = "SELECT body FROM record WHERE position = ?";
        let body = self.db.query_row(body, params![position.cast_signed()], |row| row.get(0)).optional()?;
        let body = body.ok_or(LedgerError::NodeMissing { level: 0, position })?;
        Ok(Some(Inclusion { position, body, proof, head }))
    }

    /// Proves that the log that the newest head covers still begins with the first `old` records: what someone needs who
    /// kept the head of size `old`. None if there is no such pair.
    pub fn prove_consistency(&self, old: u64) -> Result<Option<(Vec<Hash>, SignedTreeHead)>, LedgerError> {
        let Some((size, _, head)) = last_head(&self.db)? else { return Ok(None) };
        Ok(consistency_proof(&Stored(&self.db), old, size)?.map(|proof| (proof, head)))
    }

    /// Writes the records from `position` on as OCSF events, one line of JSON each; gives the position after the last, and
    /// what could not be read.
    pub fn export(&self, position: u64, out: &mut dyn Write) -> Result<(u64, Vec<Unreadable>), LedgerError> {
        let mut statement =
            self.db.prepare("SELECT position, body FROM record WHERE position >= ? ORDER BY position")?;
        let mut rows = statement.query(params![i64::try_from(position).unwrap_or(i64::MAX)])?;
        let (mut next, mut unreadable) = (position, Vec::new());
        while let Some(row) = rows.next()? {
            let position: i64 = row.get(0)?;
            match entry(position, &row.get::<_, Vec<u8>>(1)?) {
                Ok(Entry { position, record }) => writeln!(out, "{}", ocsf::event(&record, position))?,
                Err(bad) => unreadable.push(bad),
            }
            next = position.cast_unsigned().saturating_add(1);
        }
        Ok((next, unreadable))
    }
}

fn entry(position: i64, body: &[u8]) -> Result<Entry, Unreadable> {
    let position = position.cast_unsigned();
    match AuditRecord::parse(body) {
        Ok(record) => Ok(Entry { position, record }),
        Err(why) => Err(Unreadable { position, why }),
    }
}
