//! A store that tells what it has changed: of whichever kind it is, whoever changes a sandbox's record does it through here. What other
//! nodes change in a store that all share is told by their agents.

use std::sync::Arc;

use async_trait::async_trait;
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};

use super::{Drain, Failure, Filter, Store, StoreError, TakeRequest, Taken};
use crate::events::{Events, News, SandboxChange};
use crate::pool::member::{Change, Input};
use crate::pool::target::Minute;
use crate::pool::template::Pool;
use crate::sandbox::{Phase, Sandbox};

/// A store, and who is told.
pub struct Told {
    store: Arc<dyn Store>,
    events: Arc<Events>,
}

impl Told {
    /// Over a store.
    pub fn new(store: Arc<dyn Store>, events: Arc<Events>) -> Self {
        Self { store, events }
    }

    fn tell(&self, sandbox: &Sandbox) {
        self.events.tell(News::Sandbox(SandboxChange::to(sandbox)));
    }
}

#[async_trait]
impl Store for Told {
    async fn insert(&self, sandbox: &Sandbox) -> Result<Sandbox, StoreError> {
        let kept = self.store.insert(sandbox).await?;
        self.tell(&kept);
        Ok(kept)
    }

    async fn advance(
        &self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError> {
        let after = self.store.advance(id, input, change, now).await?;
        self.tell(&after);
        Ok(after)
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken, StoreError> {
        let taken = self.store.take(request).await?;
        if let Taken::Taken(member) = &taken {
            self.tell(member);
        }
        Ok(taken)
    }

    async fn remove(&self, id: &SandboxId) -> Result<bool, StoreError> {
        let last = self.store.sandbox(id).await?;
        let removed = self.store.remove(id).await?;
        if let (true, Some(last)) = (removed, last) {
            self.events.tell(News::Sandbox(SandboxChange { gone: true, ..SandboxChange::to(&last) }));
        }
        Ok(removed)
    }

    async fn put_pool(&self, pool: &Pool) -> Result<Pool, StoreError> {
        self.store.put_pool(pool).await
    }

    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        self.store.pool(name).await
    }

    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.store.pools().await
    }

    async fn delete_pool(&self, name: &PoolName, revision: Option<u64>) -> Result<bool, StoreError> {
        self.store.delete_pool(name, revision).await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        self.store.sandbox(id).await
    }

    async fn sandboxes(&self, filter: &Filter) -> Result<Vec<Sandbox>, StoreError> {
        self.store.sandboxes(filter).await
    }

    async fn note_failure(&self, pool: &PoolName, failure: &Failure) -> Result<(), StoreError> {
        self.store.note_failure(pool, failure).await
    }

    async fn failures(&self, pool: &PoolName, phase: Option<Phase>, most: usize) -> Result<Vec<Failure>, StoreError> {
        self.store.failures(pool, phase, most).await
    }

    async fn set_drained(&self, drain: &Drain, drained: bool) -> Result<(), StoreError> {
        self.store.set_drained(drain, drained).await
    }

    async fn drained(&self, node: &NodeId) -> Result<Vec<Drain>, StoreError> {
        self.store.drained(node).await
    }

    async fn count_claims(&self, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Result<(), StoreError> {
        self.store.count_claims(pool, node, at, claims).await
    }

    async fn claims(&self, pool: &PoolName, node: &NodeId, from_minute: u64) -> Result<Vec<Minute>, StoreError> {
        self.store.claims(pool, node, from_minute).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.store.health().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Heard;
    use crate::spec::SandboxSpec;
    use crate::store::memory::Memory;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_every_promise_of_a_store() {
        for (name, promise) in crate::store::contract::PROMISES {
            let told = Told::new(Arc::new(Memory::default()), Arc::new(Events::new(0)));
            assert!(tokio::spawn(promise(Arc::new(told))).await.is_ok(), "{name}");
        }
    }

    #[tokio::test]
    async fn each_change_is_told_once_and_none_that_did_not_happen() {
        let events = Arc::new(Events::new(1));
        let store = Told::new(Arc::new(Memory::default()), events.clone());
        let mut reader = events.read(None);
        let (id, now): (SandboxId, _) = ("a".parse().unwrap(), Timestamp::from_unix(1));
        let spec = SandboxSpec::of("image".parse().unwrap());
        let sandbox = Sandbox::wished(id.clone(), "n".parse().unwrap(), None, spec, now);
        store.insert(&sandbox).await.unwrap();
        assert!(store.insert(&sandbox).await.is_err(), "it is there already");
        store.advance(&id, Input::failed("no-luck", "none"), Change::default(), now).await.unwrap();
        assert!(store.remove(&id).await.unwrap() && !store.remove(&id).await.unwrap());
        assert!(store.advance(&id, Input::failed("no-luck", "none"), Change::default(), now).await.is_err());
        events.tell(News::Sandbox(SandboxChange::to(&sandbox))); // the end of the test
        let mut heard = Vec::new();
        while let Heard::News(_, news) = reader.next().await {
            let News::Sandbox(change) = &*news else { panic!("{news:?}") };
            if change.revision == 0 {
                break;
            }
            heard.push((change.phase, change.reason.clone().map(|reason| reason.code), change.gone));
        }
        let failed = |gone| (Phase::Failed, Some("no-luck".to_owned()), gone);
        assert_eq!(heard, [(Phase::Warming, None, false), failed(false), failed(true)]);
    }
}
