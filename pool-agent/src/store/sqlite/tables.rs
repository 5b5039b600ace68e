//! The tables. A record's JSON is what counts; the columns beside it are copies, to find it by.

use rusqlite::{Connection, TransactionBehavior};

/// `PRAGMA user_version` of the tables below.
pub const VERSION: i64 = 1;

const TABLES: &str = "
    -- The last revision that was given away. One count for all records, so that none that is made anew has an earlier one's.
    CREATE TABLE revision (last INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);
    CREATE TABLE pool (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE sandbox (
        id TEXT PRIMARY KEY, revision INTEGER NOT NULL, body TEXT NOT NULL,
        node TEXT NOT NULL, phase TEXT NOT NULL, created_at INTEGER NOT NULL, -- s since 1970
        pool TEXT, generation TEXT, ready_at INTEGER,
        repeat TEXT UNIQUE -- pool, agent and idempotency key of its claim, hashed
    );
    CREATE INDEX sandbox_by_pool ON sandbox (pool, node);
    -- What a claim looks at, and nothing else: members that wait, oldest first.
    CREATE INDEX sandbox_ready ON sandbox (pool, node, generation, ready_at, id) WHERE phase = 'Ready';
    CREATE TABLE failure (number INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, phase TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX failure_by_pool ON failure (pool, number);
    CREATE TABLE drained (node TEXT, backend TEXT, PRIMARY KEY (node, backend)) WITHOUT ROWID; -- '': the whole node
    CREATE TABLE claims (
        pool TEXT, node TEXT, minute INTEGER, claims INTEGER NOT NULL, PRIMARY KEY (pool, node, minute)
    ) WITHOUT ROWID;
";

/// Makes the tables where there are none, once of any number that try; gives the version of those that are there.
pub fn make(db: &mut Connection) -> rusqlite::Result<i64> {
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    if version(db)? == 0 {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if version(&tx)? == 0 {
            tx.execute_batch(TABLES)?;
            tx.pragma_update(None, "user_version", VERSION)?;
        }
        tx.commit()?;
    }
    version(db)
}
