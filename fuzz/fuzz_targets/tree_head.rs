//! A signed tree head: a note reads back byte for byte, and without the key nobody signs.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trust::audit::node_key::note_keys;
use trust::audit::tree_head::{NoteKey, SignedTreeHead};
use trust::clock::SystemClock;
use trust::keys::Keyring;
use trust::keys::jwks::TrustRoot;

static TRUSTED: LazyLock<Vec<NoteKey>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keyring::open(dir.path(), &SystemClock).unwrap();
    note_keys(&"node-1".parse().unwrap(), &TrustRoot::parse(keys.jwks().unwrap().as_bytes()).unwrap()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(note) = SignedTreeHead::parse(text) {
        assert_eq!(note.to_string(), text);
        assert!(note.verify(&TRUSTED).is_err(), "a stranger's");
    }
    if let Ok(key) = text.parse::<NoteKey>() {
        assert_eq!(key.to_string(), text);
    }
});
