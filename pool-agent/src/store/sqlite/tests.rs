use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::contract::PROMISES;

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_every_promise_of_a_store() {
    for (name, promise) in PROMISES {
        let dir = tempfile::tempdir().unwrap();
        let kept = tokio::spawn(promise(Arc::new(Sqlite::open(&dir.path().join("creto.db")).unwrap()))).await;
        assert!(kept.is_ok(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_there_after_the_process_is_gone_and_for_others_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("creto.db");
    let drain = Drain { node: "node-1".parse().unwrap(), backend: None };
    let first = Sqlite::open(&path).unwrap();
    first.set_drained(&drain, true).await.unwrap();
    let second = Sqlite::open(&path).unwrap();
    assert_eq!(second.drained(&drain.node).await.unwrap(), std::slice::from_ref(&drain));
    drop((first, second));
    assert_eq!(Sqlite::open(&path).unwrap().drained(&drain.node).await.unwrap(), [drain]);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is for root alone", entry.path().display());
    }
}

#[test]
fn any_number_open_a_new_database_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("creto.db");
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| Sqlite::open(&path).map(drop))).collect();
        for opened in opening {
            opened.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_file_that_is_no_database_of_ours_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("creto.db");
    std::fs::write(&path, "this is a text and no database, and it is longer than a header").unwrap();
    let error = Sqlite::open(&path).unwrap_err().to_string();
    assert!(error.contains("creto.db") && error.contains("not a database"), "{error}");

    let newer = dir.path().join("newer.db");
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = Sqlite::open(&newer).unwrap_err().to_string();
    assert!(error.contains("version 7") && error.contains("use the program that wrote it"), "{error}");
    assert!(Sqlite::open(&dir.path().join("no/such/dir.db")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_named_and_hides_nothing_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("creto.db");
    let store = Sqlite::open(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute("INSERT INTO pool VALUES ('demo', 1, '{}')", []).unwrap();
    let name = "demo".parse().unwrap();
    for error in [store.pool(&name).await.unwrap_err(), store.pools().await.unwrap_err()] {
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    }
}
