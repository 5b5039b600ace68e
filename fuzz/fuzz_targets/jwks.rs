//! Public keys, as a set or as PEM: what is written of them is read back, and a trust root has each key once.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use trust::keys::jwks::{JwkSet, PublicKey, TrustRoot};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(set) = JwkSet::parse(bytes) {
        let json = set.to_json().unwrap();
        assert_eq!(JwkSet::parse(json.as_bytes()).unwrap().to_json().unwrap(), json);
        for key in set.keys.iter().filter_map(|jwk| jwk.public_key().ok()) {
            assert_eq!(key.to_jwk().public_key().unwrap(), key);
            assert_eq!(PublicKey::from_pem(&key.to_pem().unwrap()).unwrap(), key);
        }
    }
    if let Ok(root) = TrustRoot::parse(bytes) {
        let ids: HashSet<_> = root.keys().iter().map(|trusted| trusted.key.id()).collect();
        assert_eq!(ids.len(), root.keys().len());
    }
    if let Some(key) = std::str::from_utf8(bytes).ok().and_then(|pem| PublicKey::from_pem(pem).ok()) {
        assert_eq!(PublicKey::from_bytes(key.as_bytes()).unwrap(), key);
    }
});
