//! Is the ledger still what it was? Everything is computed anew from the records' bytes and held against the stored
//! hashes, the signed heads and heads that were kept elsewhere. What differs is named by its place, as narrowly as what is
//! still intact allows: a record where its own hash is still there, the records under a node where that is, else those
//! between two signed heads.

use std::collections::{BTreeMap, HashMap};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Rows, params};

use super::{Ledger, LedgerError};
use crate::audit::log::{Frontier, Hash, Node, empty_root, leaf_hash};
use crate::audit::record::{AuditRecord, Event, Text};
use crate::audit::tree_head::{NoteError, NoteKey, SignedTreeHead, TreeHead};

/// After so many findings the rest is not written down.
const MAX_DAMAGE: usize = 1000;
/// After so many missing records nothing more can be said about those behind them.
const MAX_STAND_INS: u64 = 1 << 20;

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub size: u64,
    /// The root over them, computed anew.
    pub root: Hash,
    /// How many records the newest good head covers. Those after it are only as safe as the file.
    pub sealed: u64,
    /// How many heads were good, those kept elsewhere included.
    pub good_heads: u64,
    /// What was changed; empty if nothing was.
    pub damage: Vec<Damage>,
    /// Numbers that a producer has given and the ledger never saw, though later ones: lost in an unclosed gap, removed from
    /// the spool, or still in it.
    pub holes: Vec<Hole>,
}

impl Report {
    /// Whether nothing was changed.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Records `first` to `last` of a producer that never arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said above")]
pub struct Hole {
    pub producer: String,
    pub first: u64,
    pub last: u64,
}

/// One change, by place. Positions count from 0; ranges include both ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Damage {
    #[error("record {position} was altered: it does not have the hash stored beside it")]
    RecordAltered { position: u64 },
    #[error("the search columns of record {position} do not say what the record says")]
    ColumnsAltered { position: u64 },
    #[error("records {first} to {last} are missing")]
    RecordsMissing { first: u64, last: u64 },
    #[error("a record stands at {position}, which is no place in the log")]
    RecordMisplaced { position: i64 },
    #[error(
        "one of the records {first} to {last} was altered, removed, inserted or moved: the tree's node over them differs"
    )]
    NodeDiffers { first: u64, last: u64 },
    #[error("one of the records {first} to {last} was altered, removed, inserted or moved: the tree head of size {} differs", last + 1)]
    RootDiffers { first: u64, last: u64 },
    #[error(
        "the log was cut, at its end or anywhere after its first {first} records: a tree head was signed over {signed}, only {size} are there"
    )]
    Truncated { first: u64, size: u64, signed: u64 },
    #[error("the stored tree head of size {size}: {error}")]
    HeadBad { size: u64, error: NoteError },
    #[error("the tree head kept elsewhere: {error}")]
    KeptHeadBad { error: NoteError },
}

impl Ledger {
    /// Checks everything. `trusted` are the keys that may sign heads, past ones included; `kept` are heads that someone
    /// kept outside this node, without which a log rewritten or cut by whoever owns file and key looks whole.
    pub fn verify(&self, trusted: &[NoteKey], kept: &[SignedTreeHead]) -> Result<Report, LedgerError> {
        let snapshot = self.db.unchecked_transaction()?; // a drain may go on beside us
        let mut check = Check::new(&snapshot);
        let mut expected = check.kept_heads(trusted, kept);
        let mut statement = snapshot.prepare("SELECT size, note FROM tree_head ORDER BY size")?;
        let mut heads = Heads { rows: statement.query([])?, trusted };
        let mut next = check.next_head(&mut heads)?;

        let columns = "position, producer, sequence, time, event, sandbox, agent, destination, body, leaf";
        let mut statement = snapshot.prepare(&format!("SELECT {columns} FROM record ORDER BY position"))?;
        let mut rows = statement.query([])?;
        check.held_against(expected.remove(&0).unwrap_or_default());
        while let Some(row) = rows.next()? {
            check.record(row)?;
            let size = check.frontier.size();
            check.held_against(expected.remove(&size).unwrap_or_default());
            while let Some(head) = next.take_if(|head| head.size <= size) {
                if head.size == size {
                    check.held_against(vec![head.root]);
                }
                next = check.next_head(&mut heads)?;
            }
        }
        let size = check.frontier.size();
        let signed = expected.last_key_value().map(|(signed, _)| *signed);
        let mut longest = signed;
        while let Some(head) = next {
            longest = longest.max(Some(head.size));
            next = check.next_head(&mut heads)?;
        }
        if let Some(signed) = longest {
            check.found(Damage::Truncated { first: check.sealed, size, signed });
        }
        Ok(check.report())
    }
}

struct Heads<'a> {
    rows: Rows<'a>,
    trusted: &'a [NoteKey],
}

struct Check<'a> {
    db: &'a Connection,
    frontier: Frontier,
    /// The last position that is known to be damaged, or over which a hash is.
    damaged: Option<u64>,
    sealed: u64,
    good_heads: u64,
    damage: Vec<Damage>,
    /// How many missing records may still be stood in for.
    stand_ins: u64,
    producers: HashMap<String, Numbers>,
}

impl<'a> Check<'a> {
    fn new(db: &'a Connection) -> Self {
        let (frontier, damage, producers) = Default::default();
        Self { db, frontier, damaged: None, sealed: 0, good_heads: 0, damage, stand_ins: MAX_STAND_INS, producers }
    }

    fn found(&mut self, damage: Damage) {
        if self.damage.len() < MAX_DAMAGE {
            self.damage.push(damage);
        }
    }

    /// Roots that a size must have, by heads kept elsewhere.
    fn kept_heads(&mut self, trusted: &[NoteKey], kept: &[SignedTreeHead]) -> BTreeMap<u64, Vec<Hash>> {
        let mut expected: BTreeMap<u64, Vec<Hash>> = BTreeMap::new();
        for note in kept {
            match note.verify(trusted) {
                Ok(head) => expected.entry(head.size).or_default().push(head.root),
                Err(error) => self.found(Damage::KeptHeadBad { error }),
            }
        }
        expected
    }

    /// The next stored head that is what it should be.
    fn next_head(&mut self, heads: &mut Heads<'_>) -> Result<Option<TreeHead>, LedgerError> {
        while let Some(row) = heads.rows.next()? {
            let size = row.get::<_, i64>(0)?.cast_unsigned();
            let note = String::from_utf8_lossy(bytes(row, 1)?).into_owned();
            let head = SignedTreeHead::parse(&note).and_then(|note| note.verify(heads.trusted).cloned());
            match head {
                Ok(head) if head.size == size => return Ok(Some(head)),
                Ok(_) => self.found(Damage::HeadBad { size, error: NoteError::NotATreeHead("it is of another size") }),
                Err(error) => self.found(Damage::HeadBad { size, error }),
            }
        }
        Ok(None)
    }

    /// The log up to here must have these roots.
    fn held_against(&mut self, roots: Vec<Hash>) {
        let (size, computed) = (self.frontier.size(), self.frontier.root());
        for root in roots {
            if root == computed {
                self.good_heads += 1;
                self.sealed = size;
            } else if size == 0 || self.damaged.is_none_or(|position| position < self.sealed) {
                // Nothing narrower has been found since the last good head.
                let last = size.saturating_sub(1);
                self.found(Damage::RootDiffers { first: self.sealed.min(last), last });
                self.damaged = Some(last);
            }
        }
    }

    fn record(&mut self, row: &Row<'_>) -> Result<(), LedgerError> {
        let (expected, place) = (self.frontier.size(), row.get::<_, i64>(0)?);
        let Some(position) = u64::try_from(place).ok().filter(|position| *position >= expected) else {
            self.found(Damage::RecordMisplaced { position: place });
            return Ok(());
        };
        if position > expected {
            self.found(Damage::RecordsMissing { first: expected, last: position - 1 });
            self.damaged = Some(position - 1);
            // Stand-ins keep the later records at their places; their number is bounded, a position is anyone's to choose.
            let stand_ins = (position - expected).min(self.stand_ins);
            self.stand_ins -= stand_ins;
            for _ in 0..stand_ins {
                self.frontier.push(empty_root());
            }
            if self.frontier.size() != position {
                self.found(Damage::RecordMisplaced { position: place });
                return Ok(());
            }
        }
        let body = bytes(row, 8)?;
        let computed = leaf_hash(body);
        let stored: Option<Hash> = bytes(row, 9)?.try_into().ok();
        let record = AuditRecord::parse(body).ok();
        if stored != Some(computed) {
            self.found(Damage::RecordAltered { position });
            self.damaged = Some(position);
        } else if !record.as_ref().is_some_and(|record| copies(record, row)) {
            self.found(Damage::ColumnsAltered { position });
        }
        if let Some(record) = &record {
            self.producers.entry(record.id.producer.to_string()).or_default().saw(record);
        }
        // With the stored hash the tree stays as it was, and what is after an altered record can still be judged.
        for node in self.frontier.push(stored.unwrap_or(computed)) {
            self.node(node)?;
        }
        Ok(())
    }

    fn node(&mut self, node: Node) -> Result<(), LedgerError> {
        let first = node.position << node.level;
        let last = first + (1 << node.level) - 1;
        let mut statement = self.db.prepare_cached("SELECT hash FROM node WHERE level = ? AND position = ?")?;
        let at = params![node.level, node.position.cast_signed()];
        let same = statement.query_row(at, |row| Ok(bytes(row, 0)? == node.hash)).optional()?;
        if same != Some(true) && self.damaged.is_none_or(|position| position < first) {
            self.found(Damage::NodeDiffers { first, last });
            self.damaged = Some(last);
        }
        Ok(())
    }

    fn report(self) -> Report {
        let holes = self.producers.into_iter().flat_map(|(producer, numbers)| numbers.holes(producer));
        let mut holes: Vec<_> = holes.collect();
        holes.sort_by(|a, b| (&a.producer, a.first).cmp(&(&b.producer, b.first)));
        Report {
            size: self.frontier.size(),
            root: self.frontier.root(),
            sealed: self.sealed,
            good_heads: self.good_heads,
            damage: self.damage,
            holes,
        }
    }
}

/// A column's bytes, whatever type someone has given it.
fn bytes<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(match row.get_ref(column)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
        _ => &[],
    })
}

/// Whether the columns to search by say what the record says.
fn copies(record: &AuditRecord, row: &Row<'_>) -> bool {
    let number = |column| row.get_ref(column).ok().and_then(|value| value.as_i64().ok());
    let text =
        |column| row.get_ref(column).ok().and_then(|value| value.as_str_or_null().ok().flatten().map(str::to_owned));
    let about = &record.about;
    text(1).as_deref() == Some(record.id.producer.as_str())
        && number(2) == Some(record.id.sequence.cast_signed())
        && number(3) == Some(record.time.cast_signed())
        && text(4).as_deref() == Some(record.event.name())
        && text(5).as_deref() == about.sandbox.as_ref().map(Text::as_str)
        && text(6).as_deref() == about.agent.as_ref().map(Text::as_str)
        && text(7).as_deref() == record.event.destination()
}

/// The numbers of one producer's records: those below `next` are accounted for, `later` are ranges beyond a hole.
#[derive(Default)]
struct Numbers {
    next: u64,
    later: BTreeMap<u64, u64>,
}

impl Numbers {
    fn saw(&mut self, record: &AuditRecord) {
        self.range(record.id.sequence, record.id.sequence.saturating_add(1));
        if let Event::GapClosed { first, lost, .. } = record.event {
            self.range(first, first.saturating_add(lost)); // said to be lost, so no hole
        }
    }

    fn range(&mut self, from: u64, to: u64) {
        let end = self.later.entry(from).or_default();
        *end = to.max(*end);
        while let Some(range) = self.later.first_entry().filter(|range| *range.key() <= self.next) {
            self.next = range.remove().max(self.next);
        }
    }

    fn holes(self, producer: String) -> Vec<Hole> {
        let mut next = self.next;
        let mut holes = Vec::new();
        for (from, to) in self.later {
            if from > next {
                holes.push(Hole { producer: producer.clone(), first: next, last: from - 1 });
            }
            next = to.max(next);
        }
        holes
    }
}
