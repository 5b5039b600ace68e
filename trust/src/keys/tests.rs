use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;
use std::thread;

use super::jwks::TrustRoot;
use super::*;
use crate::clock::FixedClock;

const DAY: Duration = Duration::from_secs(86_400);

fn clock() -> FixedClock {
    FixedClock::at("2026-11-24T12:00:00Z".parse().unwrap())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn fifty_that_come_at_once_get_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let (barrier, clock) = (Barrier::new(50), clock());
    let ids: Vec<KeyId> = thread::scope(|scope| {
        let come = || {
            barrier.wait();
            let keyring = Keyring::open(dir.path(), &clock).unwrap();
            keyring.signer().unwrap().id().clone()
        };
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(come)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(names(&dir.path().join("keys")), ["keyring.json", "lock", "v1.pem"]);
    let root = TrustRoot::parse(&fs::read(dir.path().join("jwks.json")).unwrap()).unwrap();
    assert!(root.find(ids[0].as_str()).is_some());
}

/// Not a test of its own: what the next one starts as a process.
#[test]
fn open_the_keys_of_the_parent_process() {
    let Some(root) = std::env::var_os("CRETO_TEST_KEYS") else { return };
    let id = Keyring::open(Path::new(&root), &clock()).unwrap().signer().unwrap().id().clone();
    fs::write(Path::new(&root).join(format!("id-{}", std::process::id())), id.as_str()).unwrap();
}

#[test]
fn processes_that_are_killed_on_the_way_leave_one_whole_key() {
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let start = || {
        std::process::Command::new(&me)
            .args(["--exact", "keys::tests::open_the_keys_of_the_parent_process"])
            .env("CRETO_TEST_KEYS", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut processes: Vec<_> = (0..50).map(|_| start()).collect();
    // Each second one is killed wherever it happens to be.
    for process in processes.iter_mut().step_by(2) {
        process.kill().unwrap();
    }
    let ended: Vec<bool> = processes.iter_mut().map(|process| process.wait().unwrap().success()).collect();
    assert!(ended.iter().skip(1).step_by(2).all(|good| *good), "{ended:?}");
    let id = Keyring::open(dir.path(), &clock()).unwrap().signer().unwrap().id().clone();
    let written: Vec<_> = names(dir.path()).into_iter().filter(|name| name.starts_with("id-")).collect();
    assert!(written.len() >= 25, "{written:?}");
    for name in written {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.is_empty() || text == id.as_str(), "a second key was used: {text}"); // empty: killed while writing it
    }
}

#[test]
fn what_a_killed_writer_left_is_mended() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let keys = dir.path().join("keys");
    type Leave<'a> = &'a dyn Fn();
    let cases: [(&str, Leave); 4] = [
        ("an unfinished key", &|| {
            fs::create_dir(&keys).unwrap();
            fs::set_permissions(&keys, Permissions::from_mode(0o700)).unwrap();
            fs::write(keys.join(".new-v1.pem"), "-----BEGIN PRIV").unwrap();
        }),
        ("a key that no keyring speaks of", &|| {
            fs::remove_file(keys.join("keyring.json")).unwrap();
        }),
        ("a keyring that is not published", &|| {
            fs::remove_file(dir.path().join("jwks.json")).unwrap();
        }),
        ("unfinished publication", &|| {
            fs::write(dir.path().join("jwks.json"), "{").unwrap();
            fs::write(dir.path().join(".new-jwks.json"), "{").unwrap();
        }),
    ];
    for (case, leave) in cases {
        leave();
        let keyring = Keyring::open(dir.path(), &clock).unwrap_or_else(|e| panic!("{case}: {e}"));
        let signer = keyring.signer().unwrap();
        let root = TrustRoot::parse(&fs::read(dir.path().join("jwks.json")).unwrap()).unwrap();
        assert!(root.find(signer.id().as_str()).is_some(), "{case}");
        assert_eq!(names(&keys), ["keyring.json", "lock", "v1.pem"], "{case}");
        assert!(names(dir.path()).iter().all(|name| !name.starts_with('.')), "{case}");
    }
}

#[test]
fn what_others_could_read_or_change_is_refused_with_the_remedy() {
    let clock = clock();
    for (path, mode, remedy) in [
        ("keys/v1.pem", 0o640, "chmod 600"),
        ("keys/keyring.json", 0o644, "chmod 600"),
        ("keys", 0o750, "chmod 700"),
        ("", 0o775, "chmod 755"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        Keyring::open(dir.path(), &clock).unwrap();
        let loose = if path.is_empty() { dir.path().to_owned() } else { dir.path().join(path) };
        fs::set_permissions(&loose, Permissions::from_mode(mode)).unwrap();
        let error = Keyring::open(dir.path(), &clock).and_then(|keys| keys.signer()).expect_err(path).to_string();
        assert!(error.contains(&format!("{remedy} {}", loose.display())), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let keyring = Keyring::open(dir.path(), &clock).unwrap();
    let private = dir.path().join("keys/v1.pem");
    fs::rename(&private, dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &private).unwrap();
    assert!(keyring.signer().is_err(), "a link");
    fs::remove_file(&private).unwrap();
    let other = tempfile::tempdir().unwrap();
    Keyring::open(other.path(), &clock).unwrap();
    fs::copy(other.path().join("keys/v1.pem"), &private).unwrap();
    assert!(keyring.signer().unwrap_err().to_string().contains("not the private half of key v1"));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&private, Some(65_534), None).unwrap();
        let error = keyring.signer().unwrap_err().to_string();
        assert!(error.contains("belongs to uid 65534") && error.contains("chown 0"), "{error}");
    }
}

#[test]
fn everybody_may_read_the_public_keys_and_nobody_the_private_ones() {
    let dir = tempfile::tempdir().unwrap();
    Keyring::open(dir.path(), &clock()).unwrap();
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("jwks.json"), mode("keys"), mode("keys/v1.pem")), (0o644, 0o700, 0o600));
}

#[test]
fn a_rotation_leaves_one_active_key_and_no_private_half_that_signs_no_more() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let keyring = Keyring::open(dir.path(), &clock).unwrap();
    let (first, v1) = (keyring.signer().unwrap(), "v1".parse().unwrap());
    assert!(matches!(keyring.deprecate(&clock, v1), Err(KeyError::IsActive(_))));
    let second = keyring.rotate(&clock, DAY).unwrap();
    assert_eq!((second.version.to_string().as_str(), second.status), ("v2", Status::Active));
    assert_eq!(keyring.signer().unwrap().id(), second.key.id());
    assert_eq!(names(&dir.path().join("keys")), ["keyring.json", "lock", "v2.pem"]);

    let now = clock.timestamp();
    let list = keyring.list().unwrap();
    assert_eq!(
        (list.len(), list[0].key.id(), list[0].status),
        (2, first.id(), Status::Deprecated { after: now.plus(DAY) })
    );
    assert!(list[0].status.counts(now) && !list[0].status.counts(now.plus(DAY)));
    clock.advance(DAY / 2);
    keyring.deprecate(&clock, v1).unwrap();
    assert!(!keyring.list().unwrap()[0].status.counts(clock.timestamp()), "the overlap has been ended");
    assert!(matches!(keyring.deprecate(&clock, "v3".parse().unwrap()), Err(KeyError::Unknown(_))));
    assert_eq!(fs::read_to_string(dir.path().join("jwks.json")).unwrap(), keyring.jwks().unwrap());
}

#[test]
fn signing_goes_on_through_rotations_and_every_signature_is_of_a_published_key() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let keyring = Keyring::open(dir.path(), &clock).unwrap();
    thread::scope(|scope| {
        let rotating = scope.spawn(|| (0..20).for_each(|_| drop(keyring.rotate(&clock, DAY).unwrap())));
        while !rotating.is_finished() {
            let signer = keyring.signer().unwrap();
            let root = TrustRoot::parse(&fs::read(dir.path().join("jwks.json")).unwrap()).unwrap();
            let key = &root.find(signer.id().as_str()).expect("published before it signs").key;
            assert!(key.verifies(b"m", &signer.sign(b"m")));
        }
    });
    assert_eq!(keyring.list().unwrap().len(), 21);
}

#[test]
fn a_keyring_that_contradicts_itself_is_refused() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let keyring = Keyring::open(dir.path(), &clock).unwrap();
    keyring.rotate(&clock, DAY).unwrap();
    let path = dir.path().join("keys/keyring.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, why) in [
        ("\"active\"", "\"retired\"", "lacks its version, status"),
        ("v2", "v1", "ascend"),
        ("\"v1\"", "\"v01\"", "JWK Set"),
        ("\"EdDSA\"", "\"RS256\"", "RS256"),
        ("{", "", "JWK Set"),
    ] {
        fs::write(&path, good.replace(from, to)).unwrap();
        let error = keyring.signer().expect_err(why);
        let text =
            format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default());
        let text = match &error {
            KeyError::Keyring { why: BadJwkSet::Key(_, why), .. } => format!("{text}: {why}"),
            _ => text,
        };
        assert!(text.contains(why) && text.contains("keyring.json"), "{text}");
    }
}

#[test]
fn versions_have_one_text() {
    assert_eq!("v17".parse::<KeyVersion>().unwrap().to_string(), "v17");
    for bad in ["", "v", "v0", "v01", "1", "v+1", "v4294967296", "V1"] {
        assert_eq!(bad.parse::<KeyVersion>(), Err(BadKeyVersion), "{bad}");
    }
}
