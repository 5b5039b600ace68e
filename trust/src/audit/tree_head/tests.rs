//! A head is only what its key has signed, and reads back as it was written.

use super::*;
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

/// A key made from one number.
pub(crate) struct TestSigner(&'static str, SigningKey);

impl TestSigner {
    pub(crate) fn new(name: &'static str, seed: u8) -> Self {
        Self(name, SigningKey::from_bytes(&[seed; 32]))
    }
}

impl TreeHeadSigner for TestSigner {
    fn name(&self) -> &str {
        self.0
    }
    fn public_key(&self) -> [u8; 32] {
        self.1.verifying_key().to_bytes()
    }
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.1.sign(message).to_bytes()
    }
}

/// A head of the public Go checksum database, and the key that is compiled into every Go toolchain.
const SUMDB_KEY: &str = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
const SUMDB_NOTE: &str = "go.sum database tree\n72097574\nTN5X3MLGTDFnVRn7RF0+aSqn9MdPDdly11pPObF1Ti8=\n\n\
    \u{2014} sum.golang.org Az3grqWEGn3sDlsyQ9ppBk0lZ6N+PyvyN98h/w05RN0Kd0gEPt5lnWXQ0GU4cdmhWiTJp6w7TVjS+LEx1xKeKQ+9EAk=\n";

#[test]
fn a_note_of_anothers_log_is_read() {
    let note = SignedTreeHead::parse(SUMDB_NOTE).unwrap();
    assert_eq!(note.to_string(), SUMDB_NOTE);
    assert_eq!(note.unverified().size, 72_097_574);
    let key: NoteKey = SUMDB_KEY.parse().unwrap();
    assert_eq!(key.to_string(), SUMDB_KEY);
    // Its signature is right, but its origin is not its key's name: not how our logs are.
    assert_eq!(note.verify(std::slice::from_ref(&key)), Err(NoteError::Untrusted("sum.golang.org".into())));
    let mut forged = note.clone();
    forged.head.size += 1;
    assert_eq!(forged.verify(&[key]), Err(NoteError::Forged("sum.golang.org".into())));
}

#[test]
fn a_head_is_only_what_its_key_has_signed() {
    let (ours, other) = (TestSigner::new("creto.dev/audit/n1", 1), TestSigner::new("creto.dev/audit/n1", 2));
    let note = SignedTreeHead::sign(7, [9; 32], &ours).unwrap();
    let (key, other_key) = (NoteKey::of(&ours).unwrap(), NoteKey::of(&other).unwrap());
    assert_eq!(note.verify(&[other_key.clone(), key.clone()]).unwrap().size, 7);
    assert!(matches!(note.verify(&[]), Err(NoteError::Untrusted(_))));
    assert!(matches!(note.verify(&[other_key]), Err(NoteError::Untrusted(_))));

    let text = note.to_string();
    let by_other = SignedTreeHead::sign(7, [9; 32], &TestSigner::new("witness.example/w", 3)).unwrap().to_string();
    let witness_line = by_other.lines().last().unwrap();
    let cosigned = SignedTreeHead::parse(&format!("{text}{witness_line}\n")).unwrap();
    assert!(cosigned.verify(std::slice::from_ref(&key)).is_ok(), "a signature by an unknown key is ignored");

    for (from, to) in
        [("\n7\n", "\n8\n"), ("CQkJ", "CQkK"), ("\n\n", "\nx\n\n"), ("creto.dev/audit/n1\n7", "creto.dev/audit/n2\n7")]
    {
        let forged = SignedTreeHead::parse(&text.replacen(from, to, 1)).unwrap();
        assert_eq!(forged.verify(std::slice::from_ref(&key)), Err(NoteError::Forged(key.name.clone())), "{from:?}");
    }
}

#[test]
fn a_malformed_note_or_key_is_refused() {
    let good = SignedTreeHead::sign(7, [9; 32], &TestSigner::new("a/b", 1)).unwrap().to_string();
    for (from, to) in [
        ("\n7\n", "\n07\n"),
        ("\n7\n", "\n+7\n"),
        ("\n7\n", "\n-7\n"),
        ("\n7\n", "\n18446744073709551616\n"),
        ("\n7\n", "\n7\r\n"),
        ("\n7\n", "\n"),
        ("CQkJ", "CQk"),
        ("CQk=\n", "CQl=\n"),
        ("\n\n", "\n"),
        ("\u{2014} ", "- "),
        ("\u{2014} a/b ", "\u{2014} "),
        ("\u{2014} a/b ", "\u{2014} a+b "),
        ("\u{2014} a/b ", "\u{2014}  a/b "),
        ("\n\n", "\n\n\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from:?}");
        assert!(SignedTreeHead::parse(&bad).is_err(), "{bad:?}");
    }
    assert!(SignedTreeHead::parse(good.trim_end()).is_err());
    let line = good.lines().last().unwrap();
    let many = |n: usize| format!("{good}{}", format!("{line}\n").repeat(n));
    assert!(SignedTreeHead::parse(&many(15)).is_ok());
    assert!(SignedTreeHead::parse(&many(MAX_SIGNATURES)).is_err());
    assert!(SignedTreeHead::parse(&many(MAX_NOTE / line.len())).is_err());
    for bad in ["", "a", "a+b", "a+00000000+AQ==", &SUMDB_KEY.replace("033d", "033e"), &SUMDB_KEY.replace("Ac4", "Bc4")]
    {
        assert!(bad.parse::<NoteKey>().is_err(), "{bad}");
    }
    for bad in ["", "a b", "a+b", "a\nb", "a\u{2003}b"] {
        assert!(NoteKey::new(bad, &TestSigner::new("x", 1).public_key()).is_err(), "{bad:?}");
    }
    assert!(NoteKey::new("a", &[0; 32]).is_err(), "the weak key that verifies anything");
}

proptest! {
    #[test]
    fn what_parses_prints_back(note in "(\\PC|\n|\u{2014} a AAAAAAA=\n){0,60}") {
        if let Ok(parsed) = SignedTreeHead::parse(&note) {
            prop_assert_eq!(parsed.to_string(), note);
        }
    }

    #[test]
    fn a_changed_note_is_another_note_or_none(at in any::<prop::sample::Index>(), to in any::<char>()) {
        let signer = TestSigner::new("creto.dev/n", 1);
        let good = SignedTreeHead::sign(70_707, [9; 32], &signer).unwrap().to_string();
        let mut chars: Vec<_> = good.chars().collect();
        let at = at.index(chars.len());
        prop_assume!(chars[at] != to);
        chars[at] = to;
        let changed: String = chars.into_iter().collect();
        if let Ok(parsed) = SignedTreeHead::parse(&changed) {
            prop_assert_eq!(parsed.to_string(), changed);
            prop_assert!(parsed.verify(&[NoteKey::of(&signer).unwrap()]).is_err());
        }
    }

    #[test]
    fn every_head_verifies_and_comes_back(size: u64, root: Hash, seed: u8) {
        let signer = TestSigner::new("creto.dev/n", seed);
        let note = SignedTreeHead::sign(size, root, &signer).unwrap();
        prop_assert_eq!(&SignedTreeHead::parse(&note.to_string()).unwrap(), &note);
        prop_assert_eq!(note.verify(&[NoteKey::of(&signer).unwrap()]).unwrap().root, root);
    }
}
