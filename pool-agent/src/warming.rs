//! Keeps the members of the node's pools warm. What a pool needs is decided by the pure [`plan`]; here it is done, a few at a
//! time, and asked again until there is nothing to do.

use std::time::{Duration, Instant};

use tracing::{Instrument, debug_span};
use trust::clock::Timestamp;
use trust::id::SandboxId;

use crate::admission::{admit_beside, drained};
use crate::ending::{Manner, end_soon, give_up};
use crate::error::SpawnError;
use crate::making::{First, fresh_id, make};
use crate::metrics::PoolCounts;
use crate::pool::member::{Change, Input};
use crate::pool::reconcile::{Act, CLAIM_GRACE, Member, Why, plan};
use crate::pool::target;
use crate::pool::template::{Mode, Pool};
use crate::pools::{PoolError, WarmPoolManager};
use crate::ports::Hand;
use crate::readiness;
use crate::sandbox::{Membership, Phase, Sandbox};
use crate::store::Failure;

/// All pools are looked at so often, and whenever something may have changed.
const LOOK: Duration = Duration::from_secs(1);
/// But no sooner than so long after the last look: a burst of claims is one change.
const PAUSE: Duration = Duration::from_millis(50);

impl WarmPoolManager {
    /// Keeps all pools as they should be, for as long as it is awaited.
    pub async fn run(&self) {
        loop {
            if let Err(error) = self.look_at_all().await {
                tracing::error!(%error, "the pools cannot be looked at");
            }
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout(LOOK, self.changed().notified()).await;
        }
    }

    async fn look_at_all(&self) -> Result<(), PoolError> {
        let ports = self.ports();
        let now = ports.now();
        let drains = ports.store.drained(&ports.node).await?;
        let pools = ports.store.pools().await?;
        let all = self.all_here().await?;
        let mut there = all.len();
        let all: Vec<_> = all.iter().map(|sandbox| (sandbox, ports.hands.has(&sandbox.id))).collect(); // of one moment
        self.look_at_leftovers(&pools, &all);
        for pool in &pools {
            let members = || all.iter().filter(|(sandbox, _)| sandbox.is_member_of(&pool.name));
            let ready = members().filter(|(sandbox, _)| sandbox.phase == Phase::Ready);
            let oldest = ready.map(|(sandbox, _)| now.since(sandbox.created_at)).max();
            let members: Vec<_> = members().filter_map(|(sandbox, in_hand)| Member::of(sandbox, *in_hand)).collect();
            self.keep_count(&pool.name).await;
            let minutes = ports.store.claims(&pool.name, &ports.node, target::window_start(now)).await?;
            let attempts = self.queue(&pool.name).known().attempts.clone();
            let drained = drained(&drains, pool.template.spec.backend).is_some();
            for act in plan(pool, &members, &minutes, &attempts, drained, now) {
                there += usize::from(act == Act::Warm);
                self.act(pool, act, there).await;
            }
            let count = |phase| members.iter().filter(|member| member.phase == phase).count();
            let counts = PoolCounts {
                ready: count(Phase::Ready),
                claimed: count(Phase::Claimed) + count(Phase::Running),
                min_ready: pool.scaling.min_ready as usize,
                claims_per_minute: target::claims_per_minute(&minutes, now),
                hit_ratio: self.queue(&pool.name).known().hit_ratio(),
                oldest,
            };
            ports.metrics.count_pool(&pool.name.to_string(), counts);
        }
        Ok(())
    }

    /// What no pool's plan looks at: members of a pool that is no more, and what is left of cold spawns.
    fn look_at_leftovers(&self, pools: &[Pool], all: &[(&Sandbox, bool)]) {
        for (sandbox, in_hand) in all {
            let planned = pools.iter().any(|pool| sandbox.is_member_of(&pool.name));
            if planned || *in_hand {
                continue;
            }
            match sandbox.phase {
                Phase::Ready => end_soon(
                    self.ports(),
                    &sandbox.id,
                    Input::evicted("evicted-pool-deleted", "its pool was deleted"),
                    Manner::Forced,
                ),
                Phase::Warming | Phase::Failed | Phase::Terminating => {
                    let why = if sandbox.phase == Phase::Warming { Why::Interrupted } else { Why::Over };
                    end_soon(self.ports(), &sandbox.id, Input::swept(why.code(), why.sentence()), Manner::Forced);
                }
                Phase::Claimed if self.ports().now().since(sandbox.changed_at) >= CLAIM_GRACE => {
                    let why = Why::Interrupted;
                    end_soon(self.ports(), &sandbox.id, Input::swept(why.code(), why.sentence()), Manner::Forced);
                }
                Phase::Claimed | Phase::Running => {}
            }
        }
    }

    /// `there`: sandboxes on this node, with the one that may be begun.
    async fn act(&self, pool: &Pool, act: Act, there: usize) {
        match act {
            Act::Warm => {
                let began = self.ports().now();
                let admitted = admit_beside(self.ports(), pool.template.spec.backend, there.saturating_sub(1)).await;
                let begun = match admitted {
                    Ok(()) => self.begin(pool).await,
                    Err(error) => Err(error),
                };
                match begun {
                    Ok(hand) => {
                        let (pools, pool) = (self.clone(), pool.clone());
                        tokio::spawn(async move { pools.warm(&pool, hand, began).await });
                    }
                    Err(error) => self.failed(pool, None, &error, began).await,
                }
            }
            Act::Evict(id, why) => {
                end_soon(self.ports(), &id, Input::evicted(why.code(), why.sentence()), Manner::Forced)
            }
            Act::Remove(id, why) => {
                end_soon(self.ports(), &id, Input::swept(why.code(), why.sentence()), Manner::Forced)
            }
        }
    }

    /// The record of one more member that was admitted, in hand: from here on it counts.
    pub(crate) async fn begin(&self, pool: &Pool) -> Result<Hand, SpawnError> {
        let ports = self.ports();
        let id = fresh_id(&pool.name.to_string())?;
        let hand = ports.hands.take(&id).ok_or_else(|| SpawnError::NameTaken(id.to_string()))?;
        let member = Membership { pool: pool.name.clone(), generation: pool.generation() };
        let wished = Sandbox::wished(id, ports.node.clone(), Some(member), pool.template.spec.clone(), ports.now());
        ports.store.insert(&wished).await.map_err(SpawnError::Store)?;
        Ok(hand)
    }

    /// Makes a member that was begun, when there is room; it is Ready at the end, or gone.
    pub(crate) async fn warm(&self, pool: &Pool, hand: Hand, began: Timestamp) -> Result<(), SpawnError> {
        let span = tracing::info_span!("warm", pool = %pool.name, sandbox = %hand.id());
        self.warm_one(pool, hand, began).instrument(span).await
    }

    async fn warm_one(&self, pool: &Pool, hand: Hand, began: Timestamp) -> Result<(), SpawnError> {
        let (ports, id) = (self.ports(), hand.id().clone());
        let room = self.room().acquire().await.map_err(|_| SpawnError::Interrupted)?;
        let first = First::of_member(&pool.template);
        let started = Instant::now();
        let done = async {
            let wished = ports.store.sandbox(&id).await.map_err(SpawnError::Store)?.ok_or(SpawnError::Interrupted)?;
            let made = make(ports, &wished, first).await?;
            drop(room); // a server that is slow to start keeps no other pool waiting
            let ready = async {
                match pool.template.mode {
                    Mode::Hold => readiness::rehearse(ports, &id).await,
                    Mode::Run => readiness::wait(ports, &id, pool.template.readiness.as_ref()).await,
                }
            };
            ready.instrument(debug_span!("readiness")).await?;
            let change = Change { attestation: made.attestation, ..Change::default() };
            ports.store.advance(&id, Input::Warmed(made.fence), change, ports.now()).await.map_err(SpawnError::Store)
        };
        match done.await {
            Ok(_) => {
                tracing::info!(sandbox = %id, pool = %pool.name, took = ?started.elapsed(), "ready");
                let queue = self.queue(&pool.name);
                queue.known().attempts.succeeded();
                drop(hand);
                if let Some(status) = ports.exits.of(&id) {
                    // It ended just then: while it was in hand nobody else could take it down.
                    end_soon(ports, &id, Input::failed("exited", readiness::ended(status)), Manner::Forced);
                }
                queue.ready.notify_one();
                Ok(())
            }
            Err(error) => {
                self.failed(pool, Some(&id), &error, began).await;
                give_up(ports, &hand, error.code(), error.to_string()).await;
                Err(error)
            }
        }
    }

    async fn failed(&self, pool: &Pool, id: Option<&SandboxId>, error: &SpawnError, began: Timestamp) {
        let ports = self.ports();
        tracing::warn!(pool = %pool.name, sandbox = id.map(tracing::field::display), %error, "a member could not be made");
        ports.metrics.warming_failed(&pool.name.to_string(), error.code());
        self.queue(&pool.name).known().attempts.failed(error.code(), began, ports.now());
        let Some(sandbox) = id.cloned() else { return };
        let failure = Failure {
            at: ports.now(),
            node: ports.node.clone(),
            sandbox,
            phase: Phase::Warming,
            code: error.code().to_owned(),
            message: error.to_string(),
        };
        if let Err(error) = ports.store.note_failure(&pool.name, &failure).await {
            tracing::warn!(pool = %pool.name, %error, "a failure is not kept");
        }
    }
}
