//! Records in memory, for the model of pools: what a store promises, in its plainest form, which the same suite proves. In tests alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};

use super::{
    Drain, FAILURES_KEPT, Failure, Filter, MINUTES_KEPT, Store, StoreError, TakeRequest, Taken, take as rules,
};
use crate::pool::member::{self, Change, Input};
use crate::pool::target::{self, Minute};
use crate::pool::template::Pool;
use crate::sandbox::{Phase, Sandbox};

/// All records, behind one lock.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Records>);

/// The records themselves; each method is one transaction.
#[derive(Debug, Default)]
pub struct Records {
    revision: u64,
    pools: BTreeMap<String, Pool>,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    failures: BTreeMap<String, Vec<Failure>>,
    drained: BTreeSet<Drain>,
    claims: BTreeMap<(String, String, u64), u64>,
}

impl Records {
    fn next(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// See [`Store::put_pool`].
    pub fn put_pool(&mut self, pool: &Pool) -> Result<Pool, StoreError> {
        let name = pool.name.to_string();
        if self.pools.get(&name).map_or(0, |pool| pool.revision) != pool.revision {
            return Err(StoreError::Conflict(format!("pool {name}")));
        }
        let pool = Pool { revision: self.next(), ..pool.clone() };
        self.pools.insert(name, pool.clone());
        Ok(pool)
    }

    /// See [`Store::insert`].
    pub fn insert(&mut self, sandbox: &Sandbox) -> Result<Sandbox, StoreError> {
        if self.sandboxes.contains_key(&sandbox.id) {
            return Err(StoreError::Exists(sandbox.id.clone()));
        }
        match self.earlier(rules::repeat_of_sandbox(sandbox)) {
            Some(earlier) => Err(StoreError::AlreadyClaimed(earlier.id)),
            None => Ok(self.write(sandbox.clone())),
        }
    }

    fn write(&mut self, sandbox: Sandbox) -> Sandbox {
        let sandbox = Sandbox { revision: self.next(), ..sandbox };
        self.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        sandbox
    }

    fn earlier(&self, repeat: Option<String>) -> Option<Sandbox> {
        repeat.as_ref()?;
        self.sandboxes.values().find(|sandbox| rules::repeat_of_sandbox(sandbox) == repeat).cloned()
    }

    /// All sandboxes, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// See [`Store::sandboxes`].
    pub fn sandboxes(&self, filter: &Filter) -> Vec<Sandbox> {
        let mut found: Vec<_> = self.sandboxes.values().filter(|sandbox| filter.fits(sandbox)).cloned().collect();
        found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        found
    }

    /// See [`Store::advance`].
    pub fn advance(
        &mut self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError> {
        let before = self.sandboxes.get(id).ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let after = member::advance(before, input, change, now)?;
        Ok(self.write(after))
    }

    /// See [`Store::remove`].
    pub fn remove(&mut self, id: &SandboxId) -> Result<bool, StoreError> {
        let Some(sandbox) = self.sandboxes.get(id) else { return Ok(false) };
        rules::removable(sandbox)?;
        Ok(self.sandboxes.remove(id).is_some())
    }

    /// See [`Store::take`].
    pub fn take(&mut self, request: &TakeRequest) -> Result<Taken, StoreError> {
        if let Some(earlier) = self.earlier(rules::repeat_of(request)) {
            return Ok(Taken::AlreadyTaken(Box::new(earlier)));
        }
        let Some(pool) = self.pools.get(&request.pool.to_string()) else { return Ok(Taken::NoSuchPool) };
        if rules::is_draining(pool, &self.drained(&request.node)) {
            return Ok(Taken::Draining);
        }
        let generation = pool.generation();
        let filter = Filter { phase: Some(Phase::Ready), ..Filter::members(&request.pool, &request.node) };
        let mut ready = self.sandboxes(&filter);
        ready.retain(|member| member.pool.as_ref().is_some_and(|member| member.generation == generation));
        ready.sort_by(|a, b| (a.ready_at, &a.id).cmp(&(b.ready_at, &b.id)));
        match ready.iter().find(|member| rules::fits(request, member)) {
            Some(member) => Ok(Taken::Taken(Box::new(self.write(rules::taken(request, member)?)))),
            None => Ok(Taken::Empty { ready: ready.len() }),
        }
    }

    fn drained(&self, node: &NodeId) -> Vec<Drain> {
        self.drained.iter().filter(|drain| drain.node == *node).cloned().collect()
    }
}

impl Memory {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap()
    }
}

#[async_trait]
impl Store for Memory {
    async fn put_pool(&self, pool: &Pool) -> Result<Pool, StoreError> {
        self.records().put_pool(pool)
    }

    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        Ok(self.records().pools.get(&name.to_string()).cloned())
    }

    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        Ok(self.records().pools.values().cloned().collect())
    }

    async fn delete_pool(&self, name: &PoolName, revision: Option<u64>) -> Result<bool, StoreError> {
        let (mut records, name) = (self.records(), name.to_string());
        let Some(pool) = records.pools.get(&name) else { return Ok(false) };
        if revision.is_some_and(|revision| revision != pool.revision) {
            return Err(StoreError::Conflict(format!("pool {name}")));
        }
        records.failures.remove(&name);
        records.claims.retain(|(pool, ..), _| *pool != name);
        Ok(records.pools.remove(&name).is_some())
    }

    async fn insert(&self, sandbox: &Sandbox) -> Result<Sandbox, StoreError> {
        self.records().insert(sandbox)
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        Ok(self.records().sandboxes.get(id).cloned())
    }

    async fn sandboxes(&self, filter: &Filter) -> Result<Vec<Sandbox>, StoreError> {
        Ok(self.records().sandboxes(filter))
    }

    async fn advance(
        &self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError> {
        self.records().advance(id, input, change, now)
    }

    async fn remove(&self, id: &SandboxId) -> Result<bool, StoreError> {
        self.records().remove(id)
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken, StoreError> {
        self.records().take(request)
    }

    async fn note_failure(&self, pool: &PoolName, failure: &Failure) -> Result<(), StoreError> {
        let mut records = self.records();
        let failures = records.failures.entry(pool.to_string()).or_default();
        failures.push(failure.clone());
        let beyond = failures.len().saturating_sub(FAILURES_KEPT);
        failures.drain(..beyond);
        Ok(())
    }

    async fn failures(&self, pool: &PoolName, phase: Option<Phase>, most: usize) -> Result<Vec<Failure>, StoreError> {
        let records = self.records();
        let newest = records.failures.get(&pool.to_string()).into_iter().flatten().rev();
        Ok(newest.filter(|failure| phase.is_none_or(|phase| failure.phase == phase)).take(most).cloned().collect())
    }

    async fn set_drained(&self, drain: &Drain, drained: bool) -> Result<(), StoreError> {
        let mut records = self.records();
        match drained {
            true => records.drained.insert(drain.clone()),
            false => records.drained.remove(drain),
        };
        Ok(())
    }

    async fn drained(&self, node: &NodeId) -> Result<Vec<Drain>, StoreError> {
        Ok(self.records().drained(node))
    }

    async fn count_claims(&self, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Result<(), StoreError> {
        let (mut records, minute) = (self.records(), target::minute(at));
        *records.claims.entry((pool.to_string(), node.to_string(), minute)).or_default() += claims;
        let oldest = minute.saturating_sub(MINUTES_KEPT);
        records
            .claims
            .retain(|(p, n, minute), _| *minute >= oldest || *p != pool.to_string() || *n != node.to_string());
        Ok(())
    }

    async fn claims(&self, pool: &PoolName, node: &NodeId, from_minute: u64) -> Result<Vec<Minute>, StoreError> {
        let (pool, node) = (pool.to_string(), node.to_string());
        let records = self.records();
        let range = (pool.clone(), node.clone(), from_minute)..=(pool, node, u64::MAX);
        Ok(records
            .claims
            .range(range)
            .map(|((_, _, minute), claims)| Minute { minute: *minute, claims: *claims })
            .collect())
    }

    async fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_every_promise_of_a_store() {
    for (name, promise) in super::contract::PROMISES {
        let kept = tokio::spawn(promise(std::sync::Arc::new(Memory::default()))).await;
        assert!(kept.is_ok(), "{name}");
    }
}
