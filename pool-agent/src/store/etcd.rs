//! Records in etcd, for nodes that share them. Below `/creto/v1/`:
//!
//! ```text
//! pools/POOL                                      a pool
//! sandboxes/ID                                    a sandbox
//! ready/POOL/NODE/GENERATION/READY_AT/ID          the same once more, as long as it is Ready: in the order of claims
//! repeats/HASH                                    the id of the sandbox that a claim with this idempotency key has
//! failures/POOL/NUMBER                            what failed, the newest number last
//! drained/NODE/BACKEND                            `-` for the whole node
//! claims/POOL/NODE/MINUTE                         how many
//! ```
//!
//! A revision is etcd's own (`mod_revision`). A change is one read and one transaction that holds only if nothing it was made of has
//! changed; else it is made anew. A claim: one transaction that reads, one that takes. Several nodes may share all of it:
//! each record says whose it is, and only claims across nodes are not made yet.

mod records;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, KvClient, Txn, TxnOp, TxnOpResponse,
};
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};

use super::{Drain, Failure, Filter, Store, StoreError, TakeRequest, Taken};
use crate::pool::member::{Change, Input};
use crate::pool::target::Minute;
use crate::pool::template::Pool;
use crate::sandbox::{Phase, Sandbox};

/// How long one call may take; a claim has at most a few.
const PATIENCE: Duration = Duration::from_secs(2);
/// A change that others were faster with is made anew so often.
const ATTEMPTS: usize = 64;
/// Of a long range so many keys are read at once: a message of etcd's holds 4 MiB.
const PAGE: i64 = 500;

/// A cluster, or one server.
#[derive(Clone)]
pub struct Etcd {
    kv: KvClient,
    endpoints: String,
    wanted: Arc<Mutex<HashSet<SandboxId>>>,
}

/// A member that a taker of this process is after, until this is dropped: others are after the next one, for of two that want the same
/// one has to begin anew.
struct Wanted {
    all: Arc<Mutex<HashSet<SandboxId>>>,
    member: Sandbox,
    /// Whether nobody else was after it.
    alone: bool,
}

impl Wanted {
    fn all(all: &Mutex<HashSet<SandboxId>>) -> MutexGuard<'_, HashSet<SandboxId>> {
        all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if self.alone {
            Self::all(&self.all).remove(&self.member.id);
        }
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// What a transaction found, if it held.
type Found = Option<Vec<TxnOpResponse>>;

impl Etcd {
    /// Connects to one of `endpoints`, such as `http://127.0.0.1:2379`.
    pub async fn connect(endpoints: &[String]) -> Result<Self, StoreError> {
        let place = endpoints.join(", ");
        let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
        let failed = |why: String| StoreError::Open { place: place.clone(), why };
        let connecting = tokio::time::timeout(PATIENCE, Client::connect(endpoints, Some(options)));
        let client = connecting.await.map_err(|_| failed("it does not answer".into()))?;
        let kv = client.map_err(|e| failed(e.to_string()))?.kv_client();
        let etcd = Self { kv, endpoints: place.clone(), wanted: Arc::default() };
        etcd.health().await.map_err(|e| failed(format!("{e}; check it: etcdctl endpoint health")))?;
        Ok(etcd)
    }

    /// The first of these that nobody of this process is after; else the first, which may be gone soon.
    fn want(&self, mut members: Vec<Sandbox>) -> Option<Wanted> {
        let mut all = Wanted::all(&self.wanted);
        let free = members.iter().position(|member| !all.contains(&member.id));
        let member = if members.is_empty() { return None } else { members.swap_remove(free.unwrap_or_default()) };
        let alone = all.insert(member.id.clone());
        Some(Wanted { all: self.wanted.clone(), member, alone })
    }

    async fn get(&self, key: String) -> Result<Option<KeyValue>, StoreError> {
        let mut kv = self.kv.clone();
        let found = in_time(kv.get(key, None)).await?;
        Ok(found.kvs().first().cloned())
    }

    /// All keys that begin with `prefix`, from `from` on (which begins with it, too), in order.
    async fn range(&self, prefix: &str, from: &str) -> Result<Vec<KeyValue>, StoreError> {
        let (mut kv, end) = (self.kv.clone(), after(prefix));
        let (mut all, mut from, mut revision) = (Vec::new(), from.as_bytes().to_vec(), 0);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let mut page = in_time(kv.get(from, Some(options))).await?;
            // The further pages are of the same moment as the first.
            revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            let more = page.more();
            all.append(&mut page.take_kvs());
            match all.last() {
                Some(last) if more => from = [last.key(), b"\0"].concat(),
                _ => return Ok(all),
            }
        }
    }

    /// `ops`, if all of `compares` hold.
    async fn txn(&self, compares: Vec<Compare>, ops: Vec<TxnOp>) -> Result<Found, StoreError> {
        let mut kv = self.kv.clone();
        let done = in_time(kv.txn(Txn::new().when(compares).and_then(ops))).await?;
        Ok(done.succeeded().then(|| done.op_responses()))
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(done) => done.map_err(|e| StoreError::Unavailable(format!("etcd: {e}"))),
        Err(_) => Err(StoreError::Unavailable(format!("etcd has not answered for {} s", PATIENCE.as_secs()))),
    }
}

/// The first key that does not begin with `prefix`, which ends in `/`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Nobody has changed it since; 0 for what is not there.
fn unchanged(key: impl Into<Vec<u8>>, revision: u64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision.cast_signed())
}

#[async_trait]
impl Store for Etcd {
    async fn put_pool(&self, pool: &Pool) -> Result<Pool, StoreError> {
        records::put_pool(self, pool).await
    }

    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        records::pool(self, name).await
    }

    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        records::pools(self).await
    }

    async fn delete_pool(&self, name: &PoolName, revision: Option<u64>) -> Result<bool, StoreError> {
        records::delete_pool(self, name, revision).await
    }

    async fn insert(&self, sandbox: &Sandbox) -> Result<Sandbox, StoreError> {
        records::insert(self, sandbox).await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        records::sandbox(self, id).await
    }

    async fn sandboxes(&self, filter: &Filter) -> Result<Vec<Sandbox>, StoreError> {
        records::sandboxes(self, filter).await
    }

    async fn advance(
        &self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError> {
        records::advance(self, id, &input, &change, now).await
    }

    async fn remove(&self, id: &SandboxId) -> Result<bool, StoreError> {
        records::remove(self, id).await
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken, StoreError> {
        records::take(self, request).await
    }

    async fn note_failure(&self, pool: &PoolName, failure: &Failure) -> Result<(), StoreError> {
        records::note_failure(self, pool, failure).await
    }

    async fn failures(&self, pool: &PoolName, phase: Option<Phase>, most: usize) -> Result<Vec<Failure>, StoreError> {
        records::failures(self, pool, phase, most).await
    }

    async fn set_drained(&self, drain: &Drain, drained: bool) -> Result<(), StoreError> {
        records::set_drained(self, drain, drained).await
    }

    async fn drained(&self, node: &NodeId) -> Result<Vec<Drain>, StoreError> {
        records::drained(self, node).await
    }

    async fn count_claims(&self, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Result<(), StoreError> {
        records::count_claims(self, pool, node, at, claims).await
    }

    async fn claims(&self, pool: &PoolName, node: &NodeId, from_minute: u64) -> Result<Vec<Minute>, StoreError> {
        records::claims(self, pool, node, from_minute).await
    }

    /// A read that needs a majority.
    async fn health(&self) -> Result<(), StoreError> {
        self.get(records::HEALTH.to_owned()).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
