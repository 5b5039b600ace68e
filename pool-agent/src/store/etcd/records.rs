//! What is read and written: keys, values, and which transaction holds when.

use etcd_client::{DeleteOptions, GetOptions, KeyValue, SortOrder, SortTarget, TxnOp, TxnOpResponse};
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};

use super::{ATTEMPTS, Etcd, Wanted, unchanged};
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

/// Asked for by `health`, and never there.
pub const HEALTH: &str = "/creto/v1/health";
/// Of members that wait a claim looks at so many at once.
const LOOK: i64 = 32;

fn pool_key(name: &PoolName) -> String {
    format!("/creto/v1/pools/{name}")
}

fn sandbox_key(id: &SandboxId) -> String {
    format!("/creto/v1/sandboxes/{id}")
}

fn repeat_key(repeat: &str) -> String {
    format!("/creto/v1/repeats/{repeat}")
}

fn failures_prefix(pool: &PoolName) -> String {
    format!("/creto/v1/failures/{pool}/")
}

fn drained_prefix(node: &NodeId) -> String {
    format!("/creto/v1/drained/{node}/")
}

fn claims_key(pool: &PoolName, node: &NodeId, minute: u64) -> String {
    format!("/creto/v1/claims/{pool}/{node}/{minute:012}")
}

/// Where a member that is Ready stands a second time.
fn ready_key(sandbox: &Sandbox) -> Option<String> {
    let (member, at) = (sandbox.pool.as_ref()?, sandbox.ready_at?);
    let Sandbox { node, id, .. } = sandbox;
    let at = at.unix();
    Some(format!("/creto/v1/ready/{}/{node}/{}/{at:012}/{id}", member.pool, member.generation))
}

fn revision_of(kv: &KeyValue) -> u64 {
    kv.mod_revision().cast_unsigned()
}

fn read_pool(kv: &KeyValue) -> Done<Pool> {
    let pool: Pool = from_text(kv.key_str().unwrap_or("a pool"), kv.value())?;
    Ok(Pool { revision: revision_of(kv), ..pool })
}

fn read_sandbox(kv: &KeyValue) -> Done<Sandbox> {
    let sandbox: Sandbox = from_text(kv.key_str().unwrap_or("a sandbox"), kv.value())?;
    Ok(Sandbox { revision: revision_of(kv), ..sandbox })
}

/// The revision that a transaction gave to what it put; it has put something.
fn written(responses: &[TxnOpResponse]) -> Done<u64> {
    let put = responses.iter().find_map(|response| match response {
        TxnOpResponse::Put(put) => put.header().map(etcd_client::ResponseHeader::revision),
        _ => None,
    });
    put.map(i64::cast_unsigned).ok_or_else(|| StoreError::Unavailable("etcd did not say at which revision".into()))
}

fn busy(what: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{what} is changed by others all the time"))
}

pub async fn put_pool(etcd: &Etcd, pool: &Pool) -> Done<Pool> {
    let key = pool_key(&pool.name);
    let put = TxnOp::put(key.clone(), to_text(pool)?, None);
    match etcd.txn(vec![unchanged(key, pool.revision)], vec![put]).await? {
        Some(done) => Ok(Pool { revision: written(&done)?, ..pool.clone() }),
        None => Err(StoreError::Conflict(format!("pool {}", pool.name))),
    }
}

pub async fn pool(etcd: &Etcd, name: &PoolName) -> Done<Option<Pool>> {
    etcd.get(pool_key(name)).await?.as_ref().map(read_pool).transpose()
}

pub async fn pools(etcd: &Etcd) -> Done<Vec<Pool>> {
    let prefix = "/creto/v1/pools/";
    etcd.range(prefix, prefix).await?.iter().map(read_pool).collect()
}

pub async fn delete_pool(etcd: &Etcd, name: &PoolName, revision: Option<u64>) -> Done<bool> {
    let there = pool(etcd, name).await?;
    let Some(there) = there else { return Ok(false) };
    let conflict = || StoreError::Conflict(format!("pool {name}"));
    if revision.is_some_and(|revision| revision != there.revision) {
        return Err(conflict());
    }
    let all = || Some(DeleteOptions::new().with_prefix());
    let deletes = vec![
        TxnOp::delete(pool_key(name), None),
        TxnOp::delete(failures_prefix(name), all()),
        TxnOp::delete(format!("/creto/v1/claims/{name}/"), all()),
    ];
    let done = etcd.txn(vec![unchanged(pool_key(name), there.revision)], deletes).await?;
    done.map(|_| true).ok_or_else(conflict)
}

/// What keeps a sandbox: its record, and its place among those that wait.
fn puts(sandbox: &Sandbox) -> Done<Vec<TxnOp>> {
    let text = to_text(sandbox)?;
    let mut ops = vec![TxnOp::put(sandbox_key(&sandbox.id), text.clone(), None)];
    match (ready_key(sandbox), sandbox.phase) {
        (Some(key), Phase::Ready) => ops.push(TxnOp::put(key, text, None)),
        (Some(key), _) => ops.push(TxnOp::delete(key, None)),
        (None, _) => {}
    }
    Ok(ops)
}

pub async fn insert(etcd: &Etcd, sandbox: &Sandbox) -> Done<Sandbox> {
    let mut compares = vec![unchanged(sandbox_key(&sandbox.id), 0)];
    let mut ops = puts(sandbox)?;
    let repeat = rules::repeat_of_sandbox(sandbox).map(|repeat| repeat_key(&repeat));
    if let Some(key) = &repeat {
        compares.push(unchanged(key.clone(), 0));
        ops.push(TxnOp::put(key.clone(), sandbox.id.to_string(), None));
    }
    if let Some(done) = etcd.txn(compares, ops).await? {
        return Ok(Sandbox { revision: written(&done)?, ..sandbox.clone() });
    }
    let earlier = match repeat {
        Some(key) if etcd.get(sandbox_key(&sandbox.id)).await?.is_none() => etcd.get(key).await?,
        _ => None,
    };
    match earlier {
        Some(earlier) => Err(StoreError::AlreadyClaimed(id_in(&earlier)?)),
        None => Err(StoreError::Exists(sandbox.id.clone())),
    }
}

fn id_in(kv: &KeyValue) -> Done<SandboxId> {
    let id = kv.value_str().ok().and_then(|id| id.parse().ok());
    id.ok_or_else(|| StoreError::Damaged(format!("{}: no sandbox's id", kv.key_str().unwrap_or("a repeat"))))
}

pub async fn sandbox(etcd: &Etcd, id: &SandboxId) -> Done<Option<Sandbox>> {
    etcd.get(sandbox_key(id)).await?.as_ref().map(read_sandbox).transpose()
}

pub async fn sandboxes(etcd: &Etcd, filter: &Filter) -> Done<Vec<Sandbox>> {
    let prefix = "/creto/v1/sandboxes/";
    let all: Vec<_> = etcd.range(prefix, prefix).await?.iter().map(read_sandbox).collect::<Done<_>>()?;
    let mut found: Vec<_> = all.into_iter().filter(|sandbox| filter.fits(sandbox)).collect();
    found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(found)
}

pub async fn advance(etcd: &Etcd, id: &SandboxId, input: &Input, change: &Change, now: Timestamp) -> Done<Sandbox> {
    for _ in 0..ATTEMPTS {
        let before = sandbox(etcd, id).await?.ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let after = member::advance(&before, input.clone(), change.clone(), now)?;
        if let Some(done) = etcd.txn(vec![unchanged(sandbox_key(id), before.revision)], puts(&after)?).await? {
            return Ok(Sandbox { revision: written(&done)?, ..after });
        }
    }
    Err(busy(format!("sandbox {id}")))
}

pub async fn remove(etcd: &Etcd, id: &SandboxId) -> Done<bool> {
    for _ in 0..ATTEMPTS {
        let Some(sandbox) = sandbox(etcd, id).await? else { return Ok(false) };
        rules::removable(&sandbox)?;
        let mut deletes = vec![TxnOp::delete(sandbox_key(id), None)];
        deletes.extend(rules::repeat_of_sandbox(&sandbox).map(|repeat| TxnOp::delete(repeat_key(&repeat), None)));
        if etcd.txn(vec![unchanged(sandbox_key(id), sandbox.revision)], deletes).await?.is_some() {
            return Ok(true);
        }
    }
    Err(busy(format!("sandbox {id}")))
}

/// What a claim reads, of one moment.
struct View {
    pool: Option<KeyValue>,
    drained: Vec<KeyValue>,
    repeat: Option<KeyValue>,
}

async fn view(etcd: &Etcd, request: &TakeRequest, repeat: Option<&String>) -> Done<View> {
    let prefix = Some(GetOptions::new().with_prefix());
    let mut gets = vec![TxnOp::get(pool_key(&request.pool), None), TxnOp::get(drained_prefix(&request.node), prefix)];
    gets.extend(repeat.map(|key| TxnOp::get(key.clone(), None)));
    let mut found = etcd.txn(Vec::new(), gets).await?.unwrap_or_default().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut found) => found.take_kvs(),
        _ => Vec::new(),
    });
    let mut next = || found.next().unwrap_or_default();
    Ok(View { pool: next().pop(), drained: next(), repeat: next().pop() })
}

pub async fn take(etcd: &Etcd, request: &TakeRequest) -> Done<Taken> {
    let repeat = rules::repeat_of(request).map(|repeat| repeat_key(&repeat));
    for _ in 0..ATTEMPTS {
        let View { pool, drained, repeat: earlier } = view(etcd, request, repeat.as_ref()).await?;
        if let Some(earlier) = earlier {
            match sandbox(etcd, &id_in(&earlier)?).await? {
                Some(earlier) => return Ok(Taken::AlreadyTaken(Box::new(earlier))),
                None => continue, // it has just been removed, and its key with it
            }
        }
        let Some(pool) = pool.as_ref().map(read_pool).transpose()? else { return Ok(Taken::NoSuchPool) };
        if rules::is_draining(&pool, &drained.iter().map(|kv| read_drain(&request.node, kv)).collect::<Done<Vec<_>>>()?)
        {
            return Ok(Taken::Draining);
        }
        let (wanted, ready) = waiting(etcd, request, &pool).await?;
        let Some(wanted) = wanted else { return Ok(Taken::Empty { ready }) };
        let member = &wanted.member;
        let mine = rules::taken(request, member)?;
        // Nothing that this was decided by has changed since: not the member, not the pool, not what is drained, not the key.
        let mut compares = vec![
            unchanged(sandbox_key(&member.id), member.revision),
            unchanged(pool_key(&pool.name), pool.revision),
            unchanged(drain_key(&request.node, None), 0),
            unchanged(drain_key(&request.node, Some(pool.template.spec.backend)), 0),
        ];
        let mut ops = puts(&mine)?;
        if let Some(key) = &repeat {
            compares.push(unchanged(key.clone(), 0));
            ops.push(TxnOp::put(key.clone(), mine.id.to_string(), None));
        }
        if let Some(done) = etcd.txn(compares, ops).await? {
            return Ok(Taken::Taken(Box::new(Sandbox { revision: written(&done)?, ..mine })));
        }
    }
    Err(busy(format!("pool {}", request.pool)))
}

/// The oldest member that fits and that nobody else of this process is after, and how many do not fit (if none does).
async fn waiting(etcd: &Etcd, request: &TakeRequest, pool: &Pool) -> Done<(Option<Wanted>, usize)> {
    let (mut kv, generation) = (etcd.kv.clone(), pool.generation());
    let prefix = format!("/creto/v1/ready/{}/{}/{generation}/", request.pool, request.node);
    let (mut from, end, mut ready) = (prefix.clone().into_bytes(), super::after(&prefix), 0);
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(LOOK);
        let page = super::in_time(kv.get(from, Some(options))).await?;
        let members = page.kvs().iter().map(read_sandbox).collect::<Done<Vec<_>>>()?;
        let count = members.len();
        let fitting = members.into_iter().filter(|member| rules::fits(request, member)).collect();
        if let Some(wanted) = etcd.want(fitting) {
            return Ok((Some(wanted), ready));
        }
        ready += count;
        match page.kvs().last() {
            Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
            _ => return Ok((None, ready)),
        }
    }
}

pub async fn note_failure(etcd: &Etcd, pool: &PoolName, failure: &Failure) -> Done<()> {
    let prefix = failures_prefix(pool);
    for _ in 0..ATTEMPTS {
        let newest = newest(etcd, &prefix, 1, true).await?;
        let number = newest.first().map_or(0, |kv| number_in(kv, &prefix) + 1);
        let key = format!("{prefix}{number:012}");
        let mut ops = vec![TxnOp::put(key.clone(), to_text(failure)?, None)];
        if let Some(last) = number.checked_sub(FAILURES_KEPT as u64) {
            let range = DeleteOptions::new().with_range(format!("{prefix}{:012}", last + 1));
            ops.push(TxnOp::delete(format!("{prefix}{:012}", 0), Some(range)));
        }
        if etcd.txn(vec![unchanged(key, 0)], ops).await?.is_some() {
            return Ok(());
        }
    }
    Err(busy(format!("the failures of pool {pool}")))
}

async fn newest(etcd: &Etcd, prefix: &str, most: i64, keys_only: bool) -> Done<Vec<KeyValue>> {
    let mut kv = etcd.kv.clone();
    let mut options = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(most);
    if keys_only {
        options = options.with_keys_only();
    }
    Ok(super::in_time(kv.get(prefix, Some(options))).await?.take_kvs())
}

fn number_in(kv: &KeyValue, prefix: &str) -> u64 {
    kv.key_str().ok().and_then(|key| key.strip_prefix(prefix)?.parse().ok()).unwrap_or_default()
}

pub async fn failures(etcd: &Etcd, pool: &PoolName, phase: Option<Phase>, most: usize) -> Done<Vec<Failure>> {
    let wanted = match phase {
        None => i64::try_from(most).unwrap_or(i64::MAX).min(FAILURES_KEPT as i64),
        Some(_) => FAILURES_KEPT as i64,
    };
    let found = newest(etcd, &failures_prefix(pool), wanted, false).await?;
    let read = found.iter().map(|kv| from_text::<Failure>("a failure", kv.value()));
    let fits = |failure: &Done<Failure>| {
        failure.as_ref().map_or(true, |failure| phase.is_none_or(|phase| failure.phase == phase))
    };
    read.filter(fits).take(most).collect()
}

fn drain_key(node: &NodeId, backend: Option<Backend>) -> String {
    format!("{}{}", drained_prefix(node), backend.map_or("-", Backend::name))
}

fn read_drain(node: &NodeId, kv: &KeyValue) -> Done<Drain> {
    let key = kv.key_str().unwrap_or_default();
    let backend = match key.strip_prefix(&*drained_prefix(node)) {
        Some("-") => None,
        Some(name) => Some(name.parse().map_err(|e| StoreError::Damaged(format!("{key}: {e}")))?),
        None => return Err(StoreError::Damaged(format!("{key}: not of node {node}"))),
    };
    Ok(Drain { node: node.clone(), backend })
}

pub async fn set_drained(etcd: &Etcd, drain: &Drain, drained: bool) -> Done<()> {
    let key = drain_key(&drain.node, drain.backend);
    let op = if drained { TxnOp::put(key, "drained", None) } else { TxnOp::delete(key, None) };
    etcd.txn(Vec::new(), vec![op]).await.map(drop)
}

pub async fn drained(etcd: &Etcd, node: &NodeId) -> Done<Vec<Drain>> {
    let prefix = drained_prefix(node);
    etcd.range(&prefix, &prefix).await?.iter().map(|kv| read_drain(node, kv)).collect()
}

pub async fn count_claims(etcd: &Etcd, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Done<()> {
    let minute = target::minute(at);
    let key = claims_key(pool, node, minute);
    for _ in 0..ATTEMPTS {
        let before = etcd.get(key.clone()).await?;
        let (count, revision) =
            before.as_ref().map_or(Ok((0, 0)), |kv| Ok::<_, StoreError>((count_in(kv)?, revision_of(kv))))?;
        let oldest = claims_key(pool, node, minute.saturating_sub(MINUTES_KEPT));
        let older = DeleteOptions::new().with_range(oldest);
        let ops = vec![
            TxnOp::put(key.clone(), (count + claims).to_string(), None),
            TxnOp::delete(claims_key(pool, node, 0), Some(older)),
        ];
        if etcd.txn(vec![unchanged(key.clone(), revision)], ops).await?.is_some() {
            return Ok(());
        }
    }
    Err(busy(format!("the count of pool {pool}")))
}

fn count_in(kv: &KeyValue) -> Done<u64> {
    let count = kv.value_str().ok().and_then(|count| count.parse().ok());
    count.ok_or_else(|| StoreError::Damaged(format!("{}: no number", kv.key_str().unwrap_or("a count"))))
}

pub async fn claims(etcd: &Etcd, pool: &PoolName, node: &NodeId, from_minute: u64) -> Done<Vec<Minute>> {
    let prefix = format!("/creto/v1/claims/{pool}/{node}/");
    let found = etcd.range(&prefix, &claims_key(pool, node, from_minute)).await?;
    found.iter().map(|kv| Ok(Minute { minute: number_in(kv, &prefix), claims: count_in(kv)? })).collect()
}
