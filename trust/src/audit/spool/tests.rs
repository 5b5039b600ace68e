//! The spool's promises.

use super::*;
use crate::audit::inbox::Inbox;
use std::os::unix::fs::PermissionsExt;

const ROOMY: Limits = Limits { files: 1000, bytes: 1 << 20, keep_free_bytes: 0, keep_free_inodes: 0 };

fn spool(root: &Path, limits: Limits) -> Spool {
    Spool::new(root, "shim", "node-1", limits).unwrap()
}

fn exec(program: &str) -> Event {
    Event::ExecStarted { exec: "e".into(), program: program.into(), terminal: false }
}

/// All that waits below `root`, as (sequence, event's name); each line must be a record.
fn waiting(root: &Path) -> Vec<(u64, &'static str)> {
    let inbox = Inbox::at(root);
    let lines = inbox.list(usize::MAX).unwrap().into_iter().flat_map(|file| inbox.read(&file));
    lines.map(|line| (line.id.sequence, line.content.unwrap().0.event.name())).collect()
}

#[test]
fn events_wait_in_order_until_they_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("made/on/demand");
    let spool = spool(&root, ROOMY);
    assert!(!root.exists(), "nothing is made before there is something to say");
    spool.record(&About::default(), exec("a"));
    spool.record_all(&About::default(), (0..MAX_BATCH + 1).map(|_| Event::SandboxDeleted {}).collect());
    spool.record_all(&About::default(), Vec::new());
    let got = waiting(&root);
    assert_eq!(got.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..MAX_BATCH as u64 + 2).collect::<Vec<_>>());
    assert_eq!((got[0].1, got[1].1, spool.lost()), ("ExecStarted", "SandboxDeleted", 0));
    assert_eq!(Inbox::at(&root).list(100).unwrap().len(), 3, "a batch is one file, up to its limit");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    let home = root.join(spool.producer().as_str());
    assert!(fs::read_dir(home).unwrap().all(|file| mode(&file.unwrap().path()) == 0o600));
}

#[test]
fn a_full_spool_drops_and_the_record_says_so() {
    for limits in [Limits { files: 2, ..ROOMY }, Limits { bytes: 1500, ..ROOMY }] {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), limits);
        for n in 0..5 {
            spool.record(&About::default(), exec(&n.to_string().repeat(400)));
        }
        assert_eq!(waiting(dir.path()), [(0, "ExecStarted"), (1, "ExecStarted"), (2, "GapOpened")], "{limits:?}");
        assert_eq!(spool.lost(), 3);
        let inbox = Inbox::at(dir.path());
        for file in inbox.list(100).unwrap() {
            inbox.remove(&file).unwrap();
        }
        spool.record(&About::default(), exec(&"again".repeat(80)));
        // 3, 4 and 5 were dropped: the gap's end says how many, and no number is used twice.
        assert_eq!(waiting(dir.path()), [(6, "GapClosed"), (7, "ExecStarted")]);
        let file = inbox.list(1).unwrap().remove(0);
        let (closed, _) = inbox.read(&file).remove(0).content.unwrap();
        assert!(matches!(closed.event, Event::GapClosed { first: 3, lost: 3, .. }), "{closed:?}");
        spool.record(&About::default(), exec(&"andon".repeat(80)));
        assert_eq!(waiting(dir.path()).last(), Some(&(8, "ExecStarted")));
        assert_eq!(spool.lost(), 3);
    }
}

#[test]
fn a_spool_that_cannot_be_used_loses_events_loudly_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("spool");
    type Damage = fn(&Path);
    let broken: [(Limits, &str, Damage, Damage); 3] = [
        (ROOMY, "cannot be used", |root| fs::write(root, "a file").unwrap(), |root| fs::remove_file(root).unwrap()),
        (
            ROOMY,
            "chmod 700",
            |root| {
                fs::create_dir(root).unwrap();
                fs::set_permissions(root, fs::Permissions::from_mode(0o777)).unwrap();
            },
            |root| fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap(),
        ),
        (Limits { keep_free_bytes: u64::MAX / 2, ..ROOMY }, "has only", |_| (), |_| ()),
    ];
    for (limits, expected, damage, repair) in broken {
        let mut spool = spool(&root, limits);
        damage(&root);
        let error = spool.append(&mut State::default(), &About::default(), vec![exec("a")]).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("spool"), "{error}");
        spool.record(&About::default(), exec("b"));
        spool.record(&About::default(), exec("c"));
        assert_eq!(spool.lost(), 2, "{expected}");
        repair(&root);
        spool.limits = ROOMY;
        spool.record(&About::default(), exec("d"));
        let got: Vec<_> =
            waiting(&root).into_iter().map(|(_, name)| name).filter(|name| *name != "GapOpened").collect();
        assert_eq!(got, ["GapClosed", "ExecStarted"], "{expected}");
        fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn sync_returns_whether_or_not_there_is_something_to_sync() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path(), ROOMY);
    spool.sync();
    spool.record(&About::default(), exec("a"));
    Inbox::at(dir.path()).remove(&Inbox::at(dir.path()).list(1).unwrap()[0]).unwrap(); // perhaps before it was synced
    spool.record(&About::default(), exec("b"));
    spool.sync();
    assert_eq!(waiting(dir.path()), [(1, "ExecStarted")]);
}

#[test]
fn a_removed_directory_comes_back_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path(), ROOMY);
    spool.record(&About::default(), exec("a"));
    fs::remove_dir_all(dir.path().join(spool.producer().as_str())).unwrap();
    spool.record(&About::default(), exec("b"));
    assert_eq!((waiting(dir.path()), spool.lost()), (vec![(1, "ExecStarted")], 0));
}

#[test]
fn only_the_dead_are_tidied_away() {
    let dir = tempfile::tempdir().unwrap();
    let (inbox, living, dying) = (Inbox::at(dir.path()), spool(dir.path(), ROOMY), spool(dir.path(), ROOMY));
    let home = |spool: &Spool| dir.path().join(spool.producer().as_str());
    for spool in [&living, &dying] {
        spool.record(&About::default(), exec("a"));
        fs::write(home(spool).join(PARTIAL), "{\"v\":1").unwrap();
    }
    let dead = home(&dying);
    drop(dying);
    let (fresh, abandoned) = (dir.path().join(".new-shim-1-1"), dir.path().join(".new-shim-1-2"));
    fs::create_dir(&fresh).unwrap();
    fs::create_dir(&abandoned).unwrap();
    File::open(&abandoned).unwrap().set_modified(UNIX_EPOCH).unwrap();
    inbox.tidy().unwrap();
    assert!(fresh.exists() && !abandoned.exists());
    assert!(home(&living).join(PARTIAL).exists());
    assert!(!dead.join(PARTIAL).exists() && dead.exists(), "its record still waits");
    for file in inbox.list(100).unwrap() {
        inbox.remove(&file).unwrap();
    }
    inbox.tidy().unwrap();
    assert!(home(&living).exists() && !dead.exists());
}
