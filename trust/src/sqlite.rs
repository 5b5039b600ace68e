//! How this node's SQLite files are opened: private, with a write-ahead log, by many at once.
//! Not here: how often they are synced, which each says with its reason.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Makes the file, which SQLite would give the umask's permissions. One that is there is left unopened: to close it here
/// would take away the locks of every connection that this process has to it (POSIX locks; sqlite.org/howtocorrupt.html
/// §2.2).
pub fn make_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A connection to the file, which waits for others' transactions for as long as `patience`, and keeps a write-ahead log.
pub fn connect(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(patience)?;
    write_ahead(&db, patience)?;
    Ok(db)
}

/// Of two that switch a new file at once SQLite refuses one without a wait (its busy timeout does not count there, for both
/// hold what the other waits for): the wait is ours.
fn write_ahead(db: &Connection, patience: Duration) -> rusqlite::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match db.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) && Instant::now() < until =>
            {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a file is opened by who may block, before anything is served"
                )]
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}
