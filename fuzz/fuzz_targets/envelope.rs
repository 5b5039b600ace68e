//! A statement in its envelope: a stranger's is never valid; what the node has signed is valid only if it is a statement
//! that is good now, and then has one text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trust::attestation::dsse::Envelope;
use trust::attestation::statement::Statement;
use trust::attestation::verify::{Expectations, verify};
use trust::clock::{SKEW, SystemClock, Timestamp};
use trust::keys::jwks::TrustRoot;
use trust::keys::{Keyring, Signer};

const NOW: u64 = 1_800_000_000;

static NODE: LazyLock<(Signer, TrustRoot)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keyring::open(dir.path(), &SystemClock).unwrap();
    (keys.signer().unwrap(), TrustRoot::parse(keys.jwks().unwrap().as_bytes()).unwrap())
});

fuzz_target!(|bytes: &[u8]| {
    let (signer, trusted) = &*NODE;
    let (now, expected) = (Timestamp::from_unix(NOW), Expectations::default());
    if let Ok(envelope) = Envelope::parse(bytes) {
        let json = envelope.to_json().unwrap();
        assert_eq!(Envelope::parse(json.as_bytes()).as_ref(), Ok(&envelope), "what is written is read back");
    }
    assert!(verify(bytes, trusted, now, &expected).is_err(), "a stranger's");

    let envelope = Envelope::sign(bytes.to_vec(), signer);
    let Ok(verified) = verify(envelope.to_json().unwrap().as_bytes(), trusted, now, &expected) else { return };
    assert_eq!(verified.digest, envelope.statement_digest());
    let said = verified.statement.predicate();
    assert!(said.issued_at <= now.plus(SKEW) && now < said.valid_until);
    let text = verified.statement.to_json().unwrap();
    assert_eq!(Statement::parse(&text).as_ref(), Ok(&verified.statement), "what is written is read back");
});
