//! Records in SQLite: one file on the node, the embedded default. Two connections, one that writes and one that reads, so that a
//! long list does not hold up a claim; each call runs on a thread for blocking work and is not cut short when its future is dropped.
//!
//! The write-ahead log is synced at checkpoints only (`synchronous = NORMAL`): a commit outlives a killed process, for it is in the
//! kernel's hands, and a claim does not wait for a disk. A power cut may lose the last commits and never tears one: then the
//! sandboxes they speak of are gone with the machine. What must outlive that is the ledger's (`trust::audit`).

mod records;
mod tables;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use trust::clock::Timestamp;
use trust::id::{NodeId, PoolName, SandboxId};
use trust::sqlite;

use super::{Drain, Failure, Filter, Store, StoreError, TakeRequest, Taken};
use crate::pool::member::{Change, Input};
use crate::pool::target::Minute;
use crate::pool::template::Pool;
use crate::sandbox::{Phase, Sandbox};

/// How long one process waits for another one's transaction; the agent is the only writer, so nobody but a person's tool is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A database file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    writer: Arc<Mutex<Connection>>,
    reader: Arc<Mutex<Connection>>,
}

impl Sqlite {
    /// Opens the database at `path`, making it if it is not there. Blocks.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |why: String| StoreError::Open { place: path.display().to_string(), why };
        sqlite::make_private(path).map_err(|e| failed(e.to_string()))?;
        let connect = || -> rusqlite::Result<Connection> {
            let db = sqlite::connect(path, PATIENCE)?;
            db.set_prepared_statement_cache_capacity(64);
            db.pragma_update(None, "synchronous", "NORMAL")?;
            Ok(db)
        };
        let mut writer = connect().map_err(|e| failed(e.to_string()))?;
        match tables::make(&mut writer).map_err(|e| failed(e.to_string()))? {
            tables::VERSION => {}
            other => {
                let why = format!(
                    "it is of version {other}, and this program knows {}: use the program that wrote it",
                    tables::VERSION
                );
                return Err(failed(why));
            }
        }
        let reader = connect().map_err(|e| failed(e.to_string()))?;
        reader.pragma_update(None, "query_only", true).map_err(|e| failed(e.to_string()))?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), reader: Arc::new(Mutex::new(reader)) })
    }

    /// One transaction that writes; nothing of it is done where `work` fails.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        on_its_own_thread(&self.writer, move |db| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&tx)?;
            tx.commit()?;
            Ok(done)
        })
        .await
    }

    /// One transaction that reads.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        on_its_own_thread(&self.reader, move |db| work(&db.transaction()?)).await
    }
}

async fn on_its_own_thread<T: Send + 'static>(
    db: &Arc<Mutex<Connection>>,
    work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let db = Arc::clone(db);
    let done = tokio::task::spawn_blocking(move || {
        // A panic while it was held has rolled its transaction back.
        work(&mut db.lock().unwrap_or_else(PoisonError::into_inner))
    });
    done.await.map_err(|e| StoreError::Unavailable(e.to_string()))?
}

#[async_trait]
impl Store for Sqlite {
    async fn put_pool(&self, pool: &Pool) -> Result<Pool, StoreError> {
        let pool = pool.clone();
        self.write(move |tx| records::put_pool(tx, pool)).await
    }

    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        let name = name.clone();
        self.read(move |tx| records::pool(tx, &name)).await
    }

    async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.read(records::pools).await
    }

    async fn delete_pool(&self, name: &PoolName, revision: Option<u64>) -> Result<bool, StoreError> {
        let name = name.clone();
        self.write(move |tx| records::delete_pool(tx, &name, revision)).await
    }

    async fn insert(&self, sandbox: &Sandbox) -> Result<Sandbox, StoreError> {
        let sandbox = sandbox.clone();
        self.write(move |tx| records::insert(tx, sandbox)).await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let id = id.clone();
        self.read(move |tx| records::sandbox(tx, &id)).await
    }

    async fn sandboxes(&self, filter: &Filter) -> Result<Vec<Sandbox>, StoreError> {
        let filter = filter.clone();
        self.read(move |tx| records::sandboxes(tx, &filter)).await
    }

    async fn advance(
        &self,
        id: &SandboxId,
        input: Input,
        change: Change,
        now: Timestamp,
    ) -> Result<Sandbox, StoreError> {
        let id = id.clone();
        self.write(move |tx| records::advance(tx, &id, input, change, now)).await
    }

    async fn remove(&self, id: &SandboxId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |tx| records::remove(tx, &id)).await
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken, StoreError> {
        let request = request.clone();
        self.write(move |tx| records::take(tx, &request)).await
    }

    async fn note_failure(&self, pool: &PoolName, failure: &Failure) -> Result<(), StoreError> {
        let (pool, failure) = (pool.clone(), failure.clone());
        self.write(move |tx| records::note_failure(tx, &pool, &failure)).await
    }

    async fn failures(&self, pool: &PoolName, phase: Option<Phase>, most: usize) -> Result<Vec<Failure>, StoreError> {
        let pool = pool.clone();
        self.read(move |tx| records::failures(tx, &pool, phase, most)).await
    }

    async fn set_drained(&self, drain: &Drain, drained: bool) -> Result<(), StoreError> {
        let drain = drain.clone();
        self.write(move |tx| records::set_drained(tx, &drain, drained)).await
    }

    async fn drained(&self, node: &NodeId) -> Result<Vec<Drain>, StoreError> {
        let node = node.clone();
        self.read(move |tx| records::drained(tx, &node)).await
    }

    async fn count_claims(&self, pool: &PoolName, node: &NodeId, at: Timestamp, claims: u64) -> Result<(), StoreError> {
        let (pool, node) = (pool.clone(), node.clone());
        self.write(move |tx| records::count_claims(tx, &pool, &node, at, claims)).await
    }

    async fn claims(&self, pool: &PoolName, node: &NodeId, from_minute: u64) -> Result<Vec<Minute>, StoreError> {
        let (pool, node) = (pool.clone(), node.clone());
        self.read(move |tx| records::claims(tx, &pool, &node, from_minute)).await
    }

    /// It can be written: a full disk or a lost file is found.
    async fn health(&self) -> Result<(), StoreError> {
        self.write(|tx| records::revision(tx).map(drop)).await
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
