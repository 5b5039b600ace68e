//! `audit`: the record of what happened. Each verb drains the spools first, as the node agent does where one runs, under the ledger's own
//! lock. A ledger that was tampered with takes nothing more, and can still be searched and verified.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use trust::audit::Event;
use trust::audit::ledger::{Entry, Found, Ledger, LedgerError, Query, Report, Unreadable};
use trust::audit::log::Hash;
use trust::audit::node_key::{NodeKey, note_keys};
use trust::audit::record::BadRecord;
use trust::audit::tree_head::{NoteError, SignedTreeHead};
use trust::id::AgentId;
use trust::keys::KeyError;
use trust::keys::jwks::{BadJwkSet, TrustRoot};

use super::output;
use crate::ledger::{OpenError, Opened, Placed, When, open};
use crate::node::Root;

/// What can be done with the record.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Find events; all that is given must fit
    Search(Search),
    /// Check that nothing was altered, removed, inserted or moved, and say where if it was
    Verify {
        /// A tree head that was kept elsewhere (`audit head`); may be given several times
        #[arg(long = "head", value_name = "FILE")]
        heads: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the record for a log collector, one line of JSON an event
    Export {
        /// In which form
        #[arg(long, value_enum)]
        format: Format,
        /// The position of the first event; without: from the beginning
        #[arg(long, default_value_t = 0, value_name = "POSITION")]
        from: u64,
    },
    /// Prove that an event is in the record, for someone who trusts the tree head's key alone (RFC 9162)
    Prove {
        /// The event's position, as search prints it
        #[arg(value_name = "POSITION")]
        position: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Sign the tree head over all events, and print it: to be kept elsewhere, for `audit verify --head`
    Head,
}

/// What to look for.
#[derive(Debug, Args)]
pub struct Search {
    /// Events of this name; EgressAttempt: connections, whatever they came to
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Event::NAMES.into_iter().chain([Event::EGRESS_ATTEMPT.0])))]
    event: Option<String>,
    /// Connections to this address, or to this name and all names below it
    #[arg(long, value_name = "NAME|IP")]
    destination: Option<String>,
    /// Events of this sandbox
    #[arg(long, value_name = "ID")]
    sandbox_id: Option<String>,
    /// Events of this agent
    #[arg(long, value_name = "SPIFFE-ID")]
    agent_nhi: Option<AgentId>,
    /// Not before this: a time such as 2026-11-24T21:36:24Z, or how long ago, such as 1h
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Before this
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// No more than so many, the newest
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print JSON: an array of records, each with its position
    #[arg(long)]
    json: bool,
}

/// The forms in which the record can be had.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "the name says it")]
pub enum Format {
    Ocsf,
}

/// Why the record could not be searched, or is not whole.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AuditError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the node's keys, which only their owner may use, most often root")]
    Keyring(#[from] KeyError),
    #[error("the node's public keys")]
    Jwks(#[from] BadJwkSet),
    #[error("the names of the node's keys")]
    Keys(#[source] NoteError),
    #[error("the audit ledger")]
    Ledger(#[from] LedgerError),
    #[error("what still waits in the spools is not in this answer")]
    NotDrained(#[source] LedgerError),
    #[error("reading {}", path.display())]
    ReadHead {
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("{}: not a tree head as `audit head` prints it", path.display())]
    Head {
        path: PathBuf,
        #[source]
        why: NoteError,
    },
    #[error("the record is empty: there is nothing to sign")]
    Empty,
    #[error("there is no event at position {position}: the record has {size}")]
    NoSuchEvent { position: u64, size: u64 },
    #[error(
        "the record was tampered with: {count} of the events that were asked for cannot be read and are not in this answer, the first at position {position}; `audit verify` finds all damage"
    )]
    Unreadable {
        count: usize,
        position: u64,
        #[source]
        why: BadRecord,
    },
    #[error("the record was tampered with: {0} findings")]
    Damaged(usize),
    #[error("writing the answer")]
    Output(#[source] io::Error),
}

impl From<io::Error> for AuditError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn seal(opened: &mut Opened, now: SystemTime) -> Result<Option<SignedTreeHead>, AuditError> {
    let signer = NodeKey::new(&opened.node.id, opened.keyring.signer()?);
    Ok(opened.ledger.seal(&signer, now)?)
}

pub(super) fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), AuditError> {
    let now = SystemTime::now();
    let mut opened = open(root, now)?;
    let mut unreadable = Vec::new();
    match verb {
        Verb::Search(asked) => unreadable = search(&opened.ledger, asked, now, out)?,
        Verb::Verify { heads, json } => return verify(opened, &heads, json, out),
        Verb::Export { format: Format::Ocsf, from } => unreadable = opened.ledger.export(from, out)?.1,
        Verb::Prove { position, json } => prove(&mut opened, position, json, now, out)?,
        Verb::Head => {
            let head = seal(&mut opened, now)?.ok_or(AuditError::Empty)?;
            write!(out, "{head}")?;
        }
    }
    // Whoever investigates gets what there is, and is told what there is not.
    let count = unreadable.len();
    match unreadable.into_iter().next() {
        Some(Unreadable { position, why }) => Err(AuditError::Unreadable { count, position, why }),
        None => opened.drained.map_err(AuditError::NotDrained),
    }
}

/// Prints what was found; gives what could not be read.
fn search(ledger: &Ledger, asked: Search, now: SystemTime, out: &mut dyn Write) -> Result<Vec<Unreadable>, AuditError> {
    let Found { entries, unreadable } = ledger.search(&Query {
        event: asked.event,
        sandbox: asked.sandbox_id,
        agent: asked.agent_nhi.map(|agent| agent.to_string()),
        destination: asked.destination,
        since: asked.since.map(|when| when.millis(now)),
        until: asked.until.map(|when| when.millis(now)),
        before: None,
        limit: asked.limit,
    })?;
    if asked.json {
        output::json(out, &entries.into_iter().map(Placed::from).collect::<Vec<_>>())?;
        return Ok(unreadable);
    }
    let rows = entries.iter().map(|Entry { position, record }| {
        vec![
            position.to_string(),
            time(record.time),
            record.event.name().into(),
            output::or_dash(record.about.sandbox.as_ref()),
            output::or_dash(record.about.agent.as_ref()),
            output::or_dash(record.event.destination()),
            details(&record.event),
        ]
    });
    output::table(out, &["POSITION", "TIME", "EVENT", "SANDBOX", "AGENT", "DESTINATION", "DETAILS"], rows)?;
    Ok(unreadable)
}

fn time(millis: u64) -> String {
    let longest = Duration::from_millis(millis.min(253_402_300_799_999)); // the end of 9999: RFC 3339 ends there
    humantime::format_rfc3339_millis(UNIX_EPOCH + longest).to_string()
}

/// The event's own fields, without its name and what has a column.
fn details(event: &Event) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(event) else { return String::new() };
    if let Some(serde_json::Value::Object(connection)) = fields.remove("connection") {
        fields.extend(connection);
    }
    let shown =
        fields.iter().filter(|(name, value)| !value.is_null() && !["type", "destination"].contains(&name.as_str()));
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    shown.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
}

fn verify(opened: Opened, heads: &[PathBuf], json: bool, out: &mut dyn Write) -> Result<(), AuditError> {
    let kept = heads.iter().map(|path| {
        let note = fs::read_to_string(path).map_err(|why| AuditError::ReadHead { path: path.clone(), why })?;
        SignedTreeHead::parse(&note).map_err(|why| AuditError::Head { path: path.clone(), why })
    });
    let kept = kept.collect::<Result<Vec<_>, _>>()?;
    let trusted = TrustRoot::parse(opened.keyring.jwks()?.as_bytes())?;
    let trusted = note_keys(&opened.node.id, &trusted).map_err(AuditError::Keys)?;
    let report = opened.ledger.verify(&trusted, &kept)?;
    print(&report, kept.len(), json, out)?;
    match report.damage.len() {
        0 => opened.drained.map_err(AuditError::NotDrained),
        findings => Err(AuditError::Damaged(findings)),
    }
}

fn print(report: &Report, kept: usize, json: bool, out: &mut dyn Write) -> io::Result<()> {
    if json {
        let holes = report.holes.iter();
        let holes = holes.map(|hole| json!({"producer": hole.producer, "first": hole.first, "last": hole.last}));
        let damage = report.damage.iter().map(ToString::to_string).collect::<Vec<_>>();
        return output::json(
            out,
            &json!({"intact": report.is_intact(), "size": report.size, "root": hex(&report.root), "sealed": report.sealed,
                "goodHeads": report.good_heads, "damage": damage, "holes": holes.collect::<Vec<_>>()}),
        );
    }
    writeln!(out, "{}: {} events", if report.is_intact() { "Intact" } else { "DAMAGED" }, report.size)?;
    for damage in &report.damage {
        writeln!(out, "  ! {}", output::plain(&damage.to_string()))?;
    }
    writeln!(out, "  + the first {} are under {} good tree heads", report.sealed, report.good_heads)?;
    for hole in &report.holes {
        let producer = output::plain(&hole.producer);
        writeln!(out, "  ? events {} to {} of {producer} never arrived", hole.first, hole.last)?;
    }
    let unsealed = report.size.saturating_sub(report.sealed);
    if unsealed > 0 {
        writeln!(out, "  - the last {unsealed} are only as safe as the file: no tree head is over them yet")?;
    }
    if kept == 0 {
        writeln!(
            out,
            "  - root on this node could have rewritten it all: give --head with one that was kept elsewhere"
        )?;
    }
    Ok(())
}

fn prove(
    opened: &mut Opened,
    position: u64,
    json: bool,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<(), AuditError> {
    seal(opened, now)?;
    let size = opened.ledger.size()?;
    let proof = opened.ledger.prove(position)?.ok_or(AuditError::NoSuchEvent { position, size })?;
    let record = String::from_utf8_lossy(&proof.body);
    let hashes: Vec<_> = proof.proof.iter().map(hex).collect();
    let head = proof.head.to_string();
    if json {
        let all = json!({"position": position, "record": record, "proof": hashes, "head": head});
        return Ok(output::json(out, &all)?);
    }
    writeln!(
        out,
        "Position {position}, the record:\n{}\n\nThe hashes from its leaf to the root:",
        output::plain(&record)
    )?;
    for hash in hashes {
        writeln!(out, "{hash}")?;
    }
    Ok(write!(out, "\nThe tree head:\n{head}")?)
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use trust::audit::{Connection, Protocol};

    use super::*;

    #[test]
    fn details_are_what_no_column_says() {
        let event = Event::EgressDenied {
            connection: Connection {
                destination: "evil.example".into(),
                port: 443,
                protocol: Protocol::Tcp,
                rule: None,
                generation: 2,
                count: 3,
                attestation: None,
            },
            reason: "no rule allows it".into(),
        };
        assert_eq!(details(&event), "count=3 generation=2 port=443 protocol=tcp reason=no rule allows it");
        assert_eq!(details(&Event::SandboxDeleted {}), "");
        assert_eq!(time(1_800_000_000_005), "2027-01-15T08:00:00.005Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
