//! What is read and written inside one transaction.

use rusqlite::{OptionalExtension, Transaction, params};
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};

use crate::pool::member::{self, Change, Input};
use crate::pool::target::{self, Minute};
use crate::pool::template::Pool;
use crate::sandbox::{Phase, Sandbox};
use crate::spec::Backend;
use crate::store::{
    Drain, FAILURES_KEPT, Failure, Filter, MINUTES_KEPT, StoreError, TakeRequest, Taken, from_text, take as rules,
    to_text,
};

type Done<T> = Result<T, StoreError>;

/// A record's revision and its JSON.
type Row = (i64, String);

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok((row.get(0)?, row.get(1)?))
}

/// The next revision.
pub fn revision(tx: &Transaction<'_>) -> Done<i64> {
    let mut next = tx.prepare_cached("UPDATE revision SET last = last + 1 RETURNING last")?;
    Ok(next.query_row([], |row| row.get(0))?)
}

pub fn put_pool(tx: &Transaction<'_>, mut pool: Pool) -> Done<Pool> {
    let before: Option<i64> = tx
        .query_row("SELECT revision FROM pool WHERE name = ?", params![pool.name.to_string()], |row| row.get(0))
        .optional()?;
    if before.map_or(0, i64::cast_unsigned) != pool.revision {
        return Err(StoreError::Conflict(format!("pool {}", pool.name)));
    }
    let next = revision(tx)?;
    pool.revision = next.cast_unsigned();
    let values = params![pool.name.to_string(), next, to_text(&pool)?];
    tx.execute("INSERT OR REPLACE INTO pool VALUES (?, ?, ?)", values)?;
    Ok(pool)
}

pub fn pool(tx: &Transaction<'_>, name: &PoolName) -> Done<Option<Pool>> {
    let mut find = tx.prepare_cached("SELECT revision, body FROM pool WHERE name = ?")?;
    find.query_row(params![name.to_string()], row).optional()?.map(read_pool).transpose()
}

pub fn pools(tx: &Transaction<'_>) -> Done<Vec<Pool>> {
    let mut all = tx.prepare_cached("SELECT revision, body FROM pool ORDER BY name")?;
    all.query_map([], row)?.map(|row| read_pool(row?)).collect()
}

fn read_pool((revision, body): Row) -> Done<Pool> {
    let pool: Pool = from_text("a pool", body.as_bytes())?;
    Ok(Pool { revision: revision.cast_unsigned(), ..pool })
}

pub fn delete_pool(tx: &Transaction<'_>, name: &PoolName, revision: Option<u64>) -> Done<bool> {
    let Some(pool) = pool(tx, name)? else { return Ok(false) };
    if revision.is_some_and(|revision| revision != pool.revision) {
        return Err(StoreError::Conflict(format!("pool {name}")));
    }
    let name = name.to_string();
    tx.execute("DELETE FROM pool WHERE name = ?", params![name])?;
    tx.execute("DELETE FROM failure WHERE pool = ?", params![name])?;
    tx.execute("DELETE FROM claims WHERE pool = ?", params![name])?;
    Ok(true)
}

pub fn insert(tx: &Transaction<'_>, sandbox: Sandbox) -> Done<Sandbox> {
    let there = tx.query_row("SELECT 1 FROM sandbox WHERE id = ?", params![sandbox.id.to_string()], |_| Ok(()));
    if there.optional()?.is_some() {
        return Err(StoreError::Exists(sandbox.id));
    }
    match earlier(tx, rules::repeat_of_sandbox(&sandbox))? {
        Some(earlier) => Err(StoreError::AlreadyClaimed(earlier.id)),
        None => write(tx, sandbox),
    }
}

/// Whom a claim has that was made before.
fn earlier(tx: &Transaction<'_>, repeat: Option<String>) -> Done<Option<Sandbox>> {
    let Some(repeat) = repeat else { return Ok(None) };
    let mut find = tx.prepare_cached("SELECT revision, body FROM sandbox WHERE repeat = ?")?;
    find.query_row(params![repeat], row).optional()?.map(read_sandbox).transpose()
}

fn write(tx: &Transaction<'_>, mut sandbox: Sandbox) -> Done<Sandbox> {
    let revision = revision(tx)?;
    sandbox.revision = revision.cast_unsigned();
    let pool = sandbox.pool.as_ref();
    // Not `OR REPLACE`: that would remove another sandbox that has the same key, too.
    let mut put = tx.prepare_cached(
        "INSERT INTO sandbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
         revision = excluded.revision, body = excluded.body, node = excluded.node, phase = excluded.phase,
         created_at = excluded.created_at, pool = excluded.pool, generation = excluded.generation,
         ready_at = excluded.ready_at, repeat = excluded.repeat",
    )?;
    put.execute(params![
        sandbox.id.to_string(),
        revision,
        to_text(&sandbox)?,
        sandbox.node.to_string(),
        sandbox.phase.name(),
        sandbox.created_at.unix().cast_signed(),
        pool.map(|member| member.pool.to_string()),
        pool.map(|member| member.generation.as_str()),
        sandbox.ready_at.map(|at| at.unix().cast_signed()),
        rules::repeat_of_sandbox(&sandbox),
    ])?;
    Ok(sandbox)
}

pub fn sandbox(tx: &Transaction<'_>, id: &SandboxId) -> Done<Option<Sandbox>> {
    let mut find = tx.prepare_cached("SELECT revision, body FROM sandbox WHERE id = ?")?;
    find.query_row(params![id.to_string()], row).optional()?.map(read_sandbox).transpose()
}

fn read_sandbox((revision, body): Row) -> Done<Sandbox> {
    let sandbox: Sandbox = from_text("a sandbox", body.as_bytes())?;
    Ok(Sandbox { revision: revision.cast_unsigned(), ..sandbox })
}

pub fn sandboxes(tx: &Transaction<'_>, filter: &Filter) -> Done<Vec<Sandbox>> {
    let mut some = tx.prepare_cached(
        "SELECT revision, body FROM sandbox WHERE (?1 IS NULL OR pool = ?1) AND (?2 IS NULL OR node = ?2)
         AND (?3 IS NULL OR phase = ?3) ORDER BY created_at, id",
    )?;
    let values = params![
        filter.pool.as_ref().map(ToString::to_string),
        filter.node.as_ref().map(ToString::to_string),
        filter.phase.map(Phase::name),
    ];
    let found = some.query_map(values, row)?.map(|row| read_sandbox(row?));
    found.filter(|sandbox| sandbox.as_ref().map_or(true, |sandbox| filter.fits(sandbox))).collect()
}

pub fn advance(tx: &Transaction<'_>, id: &SandboxId, input: Input, change: Change, now: Timestamp) -> Done<Sandbox> {
    let before = sandbox(tx, id)?.ok_or_else(|| StoreError::NotFound(id.clone()))?;
    write(tx, member::advance(&before, input, change, now)?)
}

pub fn remove(tx: &Transaction<'_>, id: &SandboxId) -> Done<bool> {
    let Some(sandbox) = sandbox(tx, id)? else { return Ok(false) };
    rules::removable(&sandbox)?;
    tx.execute("DELETE FROM sandbox WHERE id = ?", params![id.to_string()])?;
    Ok(true)
}

pub fn take(tx: &Transaction<'_>, request: &TakeRequest) -> Done<Taken> {
    if let Some(earlier) = earlier(tx, rules::repeat_of(request))? {
        return Ok(Taken::AlreadyTaken(Box::new(earlier)));
    }
    let Some(pool) = pool(tx, &request.pool)? else { return Ok(Taken::NoSuchPool) };
    if rules::is_draining(&pool, &drained(tx, &request.node)?) {
        return Ok(Taken::Draining);
    }
    let mut waiting = tx.prepare_cached(
        "SELECT revision, body FROM sandbox WHERE pool = ? AND node = ? AND generation = ? AND phase = 'Ready'
         ORDER BY ready_at, id",
    )?;
    let (name, node) = (request.pool.to_string(), request.node.to_string());
    let mut rows = waiting.query(params![name, node, pool.generation().as_str()])?;
    let mut ready = 0;
    while let Some(found) = rows.next()? {
        let member = read_sandbox(row(found)?)?;
        if rules::fits(request, &member) {
            drop(rows);
            return Ok(Taken::Taken(Box::new(write(tx, rules::taken(request, &member)?)?)));
        }
        ready += 1;
    }
    Ok(Taken::Empty { ready })
}

pub fn note_failure(tx: &Transaction<'_>, pool: &PoolName, failure: &Failure) -> Done<()> {
    let pool = pool.to_string();
    let values = params![pool, failure.phase.name(), to_text(failure)?];
    tx.execute("INSERT INTO failure (pool, phase, body) VALUES (?, ?, ?)", values)?;
    tx.execute(
        "DELETE FROM failure WHERE pool = ?1 AND number <=
         (SELECT number FROM failure WHERE pool = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        params![pool, FAILURES_KEPT as i64],
    )?;
    Ok(())
}

pub fn failures(tx: &Transaction<'_>, pool: &PoolName, phase: Option<Phase>, most: usize) -> Done<Vec<Failure>> {
    let mut newest = tx.prepare_cached(
        "SELECT body FROM failure WHERE pool = ?1 AND (?2 IS NULL OR phase = ?2) ORDER BY number DESC LIMIT ?3",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let found =
        newest.query_map(params![pool.to_string(), phase.map(Phase::name), most], |row| row.get::<_, String>(0))?;
    found.map(|body| from_text("a failure", body?.as_bytes())).collect()
}

pub fn set_drained(tx: &Transaction<'_>, drain: &Drain, drained: bool) -> Done<()> {
    let change = match drained {
        true => "INSERT OR IGNORE INTO drained VALUES (?, ?)",
        false => "DELETE FROM drained WHERE node = ? AND backend = ?",
    };
    tx.execute(change, params![drain.node.to_string(), drain.backend.map_or("", Backend::name)])?;
    Ok(())
}

pub fn drained(tx: &Transaction<'_>, node: &NodeId) -> Done<Vec<Drain>> {
    let mut all = tx.prepare_cached("SELECT backend FROM drained WHERE node = ? ORDER BY backend")?;
    let found = all.query_map(params![node.to_string()], |row| row.get::<_, String>(0))?;
    let drain = |backend: String| {
        let backend = match &*backend {
            "" => None,
            name => Some(name.parse().map_err(|e| StoreError::Damaged(format!("a drained backend: {e}")))?),
        };
        Ok(Drain { node: node.clone(), backend })
    };
    found.map(|backend| drain(backend?)).collect()
}

pub fn count_claims(tx: &Transaction<'_>, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Done<()> {
    let (pool, node, minute) = (pool.to_string(), node.to_string(), target::minute(at));
    tx.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET claims = claims + excluded.claims",
        params![pool, node, minute.cast_signed(), claims.cast_signed()],
    )?;
    let oldest = minute.saturating_sub(MINUTES_KEPT).cast_signed();
    tx.execute("DELETE FROM claims WHERE pool = ? AND node = ? AND minute < ?", params![pool, node, oldest])?;
    Ok(())
}

pub fn claims(tx: &Transaction<'_>, pool: &PoolName, node: &NodeId, from_minute: u64) -> Done<Vec<Minute>> {
    let mut some = tx.prepare_cached(
        "SELECT minute, claims FROM claims WHERE pool = ? AND node = ? AND minute >= ? ORDER BY minute",
    )?;
    let values = params![pool.to_string(), node.to_string(), from_minute.cast_signed()];
    let found = some.query_map(values, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    let minute =
        |(minute, claims): (i64, i64)| Minute { minute: minute.cast_unsigned(), claims: claims.cast_unsigned() };
    found.map(|row| Ok(minute(row?))).collect()
}
