//! `WarmPoolManager`: the node's pools, as they are asked for, changed and claimed from. What keeps their members warm is
//! [`crate::warming`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use trust::id::{PoolName, SandboxId};

use crate::admission::admit;
use crate::api::types::{ClaimRequest, Claimed, PoolStats, PoolUpdate};
use crate::claim::{self, Caller};
use crate::ending::{Manner, end};
use crate::error::{ClaimError, SpawnError};
use crate::pool::attempts::Attempts;
use crate::pool::file::FilePool;
use crate::pool::member::Input;
use crate::pool::target;
use crate::pool::template::{Origin, Pool};
use crate::ports::Ports;
use crate::sandbox::{Phase, Sandbox};
use crate::spec::BadSpec;
use crate::store::{Failure, Filter, StoreError};

/// Of so many last claims the average and the 99th percentile are told.
const REMEMBERED: usize = 1000;

/// The node's pools.
#[derive(Clone)]
pub struct WarmPoolManager(Arc<Inner>);

struct Inner {
    ports: Arc<Ports>,
    changed: Notify,
    room: Semaphore,
    pools: Mutex<HashMap<PoolName, Arc<Queue>>>,
}

/// What is known of a pool beside its record.
#[derive(Default)]
pub struct Queue {
    /// Claims that wait, in order of arrival: only the first looks for a member.
    pub line: tokio::sync::Mutex<()>,
    /// A member has become ready.
    pub ready: Notify,
    known: Mutex<Known>,
}

/// What has happened to it since the agent was started.
#[derive(Default)]
pub(crate) struct Known {
    /// To make members.
    pub(crate) attempts: Attempts,
    /// How long the last claims took that found a member.
    took: VecDeque<Duration>,
    hits: u64,
    claims: u64,
    /// Claims that the store has not counted yet.
    uncounted: u64,
}

/// Why a pool is not made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// There is none of this name.
    #[error("there is no pool {0}")]
    NotFound(PoolName),
    /// There is one already.
    #[error("there is a pool {0} already: change it with pool update, or delete it")]
    Exists(PoolName),
    /// It is a file's.
    #[error("pool {0} comes from a file in pools.d: change or remove that")]
    OfFile(PoolName),
    /// It cannot be so.
    #[error(transparent)]
    Invalid(#[from] BadSpec),
    /// Its policy cannot be read.
    #[error("network policy: {0}")]
    Policy(String),
    /// A member could not be made.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WarmPoolManager {
    /// Over these ports; nothing is done before [`Self::run`].
    pub fn new(ports: Arc<Ports>) -> Self {
        let room = Semaphore::new(ports.config.limits.warming);
        Self(Arc::new(Inner { ports, changed: Notify::new(), room, pools: Mutex::default() }))
    }

    /// What it works with.
    pub fn ports(&self) -> &Arc<Ports> {
        &self.0.ports
    }

    /// What is known of a pool beside its record.
    pub fn queue(&self, pool: &PoolName) -> Arc<Queue> {
        self.lock().entry(pool.clone()).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PoolName, Arc<Queue>>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may have changed.
    pub(crate) fn changed(&self) -> &Notify {
        &self.0.changed
    }

    /// For members that are made at the same time.
    pub(crate) fn room(&self) -> &Semaphore {
        &self.0.room
    }

    /// Looks at the pools soon.
    pub fn look(&self) {
        self.0.changed.notify_one();
    }

    /// A claim of a member of a pool as it was just read, or what it says where none is ready.
    pub async fn claim(&self, pool: &Pool, request: &ClaimRequest, caller: &Caller) -> Result<Claimed, ClaimError> {
        let claimed = claim::claim(self, pool, request, caller).await?;
        let queue = self.queue(&pool.name);
        let mut known = queue.known();
        known.claims += 1;
        if claimed.warm {
            known.hits += 1;
            if known.took.len() == REMEMBERED {
                known.took.pop_front();
            }
            known.took.push_back(Duration::from_micros(claimed.took.total));
        }
        drop(known);
        Ok(claimed)
    }

    /// One more claim, for the scaling. No claim waits for that to be kept: the next look at the pools does it.
    pub(crate) fn count_claim(&self, pool: &PoolName) {
        self.queue(pool).known().uncounted += 1;
    }

    /// Keeps how many claims of a pool there were since it was kept last.
    pub(crate) async fn keep_count(&self, pool: &PoolName) {
        let ports = self.ports();
        let claims = std::mem::take(&mut self.queue(pool).known().uncounted);
        if claims > 0
            && let Err(error) = ports.store.count_claims(pool, &ports.node, ports.now(), claims).await
        {
            tracing::warn!(%pool, claims, %error, "claims are not counted");
        }
    }

    /// A new pool.
    pub async fn create(&self, pool: &Pool) -> Result<Pool, PoolError> {
        self.check(pool)?;
        let kept = self.ports().store.put_pool(&Pool { revision: 0, ..pool.clone() }).await;
        let kept = kept.map_err(|error| match error {
            StoreError::Conflict(_) => PoolError::Exists(pool.name.clone()),
            other => other.into(),
        })?;
        self.look();
        Ok(kept)
    }

    /// The pools as the files in pools.d say them now: those of the API stay as they are, and so does one whose file is bad.
    pub async fn read_files(&self) -> Result<(), PoolError> {
        let directory = self.ports().root.pools();
        let read = crate::pool::file::read(&directory);
        let read = read.map_err(|e| BadSpec(format!("{}: {e}", directory.display())))?;
        for bad in &read.bad {
            tracing::error!(error = %bad, "a pool's file is not taken");
        }
        let mut gone: BTreeMap<_, _> =
            self.ports().store.pools().await?.into_iter().map(|p| (p.name.clone(), p)).collect();
        gone.retain(|name, pool| {
            let bad = read.bad.iter().any(|bad| bad.path.file_stem().is_some_and(|stem| *stem == *name.to_string()));
            pool.origin == Origin::File && !bad
        });
        for file in read.pools {
            gone.remove(&file.name);
            if let Err(error) = self.take_file(file).await {
                tracing::error!(%error, "a pool's file is not taken");
            }
        }
        for (name, _) in gone {
            tracing::info!(pool = %name, "its file is gone");
            self.remove(&name).await?;
        }
        Ok(())
    }

    async fn take_file(&self, file: FilePool) -> Result<(), PoolError> {
        let ports = self.ports();
        let new = file.into_pool(ports.now());
        self.check(&new)?;
        let pool = match ports.store.pool(&new.name).await? {
            None => new,
            Some(old) if old.origin == Origin::Api => return Err(PoolError::Exists(old.name)),
            Some(old) if old.template == new.template && old.scaling == new.scaling => return Ok(()),
            Some(old) => Pool { template: new.template, scaling: new.scaling, ..old },
        };
        ports.store.put_pool(&pool).await?;
        tracing::info!(pool = %pool.name, "read from its file");
        self.look();
        Ok(())
    }

    fn check(&self, pool: &Pool) -> Result<(), PoolError> {
        match &pool.template.spec.network_policy {
            Some(policy) => {
                self.ports().policies.resolve(&policy.to_ref()).map(drop).map_err(|e| PoolError::Policy(e.to_string()))
            }
            None => Ok(()),
        }
    }

    /// A pool by its name.
    pub async fn get(&self, name: &PoolName) -> Result<Pool, PoolError> {
        self.ports().store.pool(name).await?.ok_or_else(|| PoolError::NotFound(name.clone()))
    }

    /// Changes a pool: what the update leaves out stays.
    pub async fn update(&self, name: &PoolName, update: &PoolUpdate) -> Result<Pool, PoolError> {
        self.change(name, |pool| {
            let scaling = &mut pool.scaling;
            scaling.min_ready = update.min_ready.unwrap_or(scaling.min_ready);
            scaling.max_ready = update.max_ready.unwrap_or(scaling.max_ready);
            scaling.max_age = update.max_age.or(scaling.max_age);
            scaling.auto_scaling.enabled = update.auto_scaling_enabled.unwrap_or(scaling.auto_scaling.enabled);
            scaling.auto_scaling.headroom = update.auto_scaling_headroom.unwrap_or(scaling.auto_scaling.headroom);
            pool.scaling = scaling.clone().checked()?;
            if let Some(spec) = &update.template {
                pool.template.spec = spec.clone();
                pool.template = pool.template.clone().checked()?;
            }
            Ok(())
        })
        .await
    }

    /// Nothing is claimed from it any more, and what waits in it is taken down; or it is as before.
    pub async fn drain(&self, name: &PoolName, draining: bool) -> Result<Pool, PoolError> {
        self.change(name, |pool| {
            pool.draining = draining;
            Ok(())
        })
        .await
    }

    async fn change(
        &self,
        name: &PoolName,
        change: impl Fn(&mut Pool) -> Result<(), PoolError>,
    ) -> Result<Pool, PoolError> {
        loop {
            let mut pool = self.get(name).await?;
            change(&mut pool)?;
            self.check(&pool)?;
            match self.ports().store.put_pool(&pool).await {
                Ok(pool) => {
                    self.look();
                    return Ok(pool);
                }
                Err(StoreError::Conflict(_)) => {} // somebody was faster: over what that has made of it
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The pool is no more; members that wait are taken down, those that are claimed go on.
    pub async fn delete(&self, name: &PoolName) -> Result<(), PoolError> {
        if self.get(name).await?.origin == Origin::File {
            return Err(PoolError::OfFile(name.clone()));
        }
        self.remove(name).await
    }

    async fn remove(&self, name: &PoolName) -> Result<(), PoolError> {
        let ports = self.ports();
        ports.store.delete_pool(name, None).await?;
        self.lock().remove(name);
        ports.metrics.forget_pool(&name.to_string());
        for member in ports.store.sandboxes(&Filter::members(name, &ports.node)).await? {
            self.evict_one(&member.id, "evicted-pool-deleted", "its pool was deleted").await;
        }
        Ok(())
    }

    /// Takes down members that wait, the oldest first.
    pub async fn evict(&self, name: &PoolName, count: usize) -> Result<Vec<SandboxId>, PoolError> {
        self.get(name).await?;
        let filter = Filter { phase: Some(Phase::Ready), ..Filter::members(name, &self.ports().node) };
        let mut evicted = Vec::new();
        for member in self.ports().store.sandboxes(&filter).await? {
            if evicted.len() < count
                && self.evict_one(&member.id, "evicted-by-operator", "an operator evicted it").await
            {
                evicted.push(member.id);
            }
        }
        self.look();
        Ok(evicted)
    }

    async fn evict_one(&self, id: &SandboxId, code: &str, why: &str) -> bool {
        let Some(hand) = self.ports().hands.take(id) else { return false };
        end(self.ports(), &hand, Input::evicted(code, why), Manner::Forced).await.is_ok() // else a claim was faster
    }

    /// One more member, whatever the target; waits until it is ready.
    pub async fn spawn(&self, name: &PoolName) -> Result<Sandbox, PoolError> {
        let pool = self.get(name).await?;
        admit(self.ports(), pool.template.spec.backend).await?;
        let hand = self.begin(&pool).await?;
        let (id, began) = (hand.id().clone(), self.ports().now());
        self.warm(&pool, hand, began).await?;
        Ok(self.ports().store.sandbox(&id).await?.ok_or(StoreError::NotFound(id))?)
    }

    /// The newest failures of a pool.
    pub async fn failures(
        &self,
        name: &PoolName,
        phase: Option<Phase>,
        most: usize,
    ) -> Result<Vec<Failure>, PoolError> {
        self.get(name).await?;
        Ok(self.ports().store.failures(name, phase, most).await?)
    }

    /// How a pool stands.
    pub async fn stats(&self, name: &PoolName) -> Result<PoolStats, PoolError> {
        let pool = self.get(name).await?;
        self.stats_of(&pool, &self.all_here().await?).await
    }

    /// How all pools stand, by name.
    pub async fn all_stats(&self) -> Result<Vec<PoolStats>, PoolError> {
        let (mut all, there) = (Vec::new(), self.all_here().await?);
        for pool in self.ports().store.pools().await? {
            all.push(self.stats_of(&pool, &there).await?);
        }
        Ok(all)
    }

    /// All sandboxes of this node.
    pub(crate) async fn all_here(&self) -> Result<Vec<Sandbox>, StoreError> {
        self.ports().store.sandboxes(&Filter::of_node(&self.ports().node)).await
    }

    async fn stats_of(&self, pool: &Pool, there: &[Sandbox]) -> Result<PoolStats, PoolError> {
        let ports = self.ports();
        let now = ports.now();
        self.keep_count(&pool.name).await;
        let of = |phase| there.iter().filter(move |s| s.phase == phase && s.is_member_of(&pool.name));
        let claimed = there.iter().filter(|s| matches!(s.phase, Phase::Claimed | Phase::Running));
        let minutes = ports.store.claims(&pool.name, &ports.node, target::window_start(now)).await?;
        let queue = self.queue(&pool.name);
        let known = queue.known();
        let mut took: Vec<_> = known.took.iter().copied().collect();
        took.sort();
        let millis = |took: Duration| took.as_secs_f64() * 1000.0;
        Ok(PoolStats {
            pool: pool.name.clone(),
            scaling: pool.scaling.clone(),
            draining: pool.draining,
            ready: of(Phase::Ready).count(),
            claimed: claimed.filter(|s| s.claim.as_ref().is_some_and(|claim| claim.pool == pool.name)).count(),
            warming: of(Phase::Warming).count(),
            claims_per_minute: target::claims_per_minute(&minutes, now),
            avg_claim_millis: (!took.is_empty())
                .then(|| took.iter().copied().map(millis).sum::<f64>() / took.len() as f64),
            p99_claim_millis: took.get((took.len() * 99).div_ceil(100).saturating_sub(1)).copied().map(millis),
            hit_ratio: known.hit_ratio(),
            oldest_seconds: of(Phase::Ready).map(|s| now.since(s.created_at).as_secs()).max(),
        })
    }
}

impl Known {
    /// Claims that found a member, of all; none where there was none.
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        (self.claims > 0).then(|| self.hits as f64 / self.claims as f64)
    }
}

impl Queue {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
