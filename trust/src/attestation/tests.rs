//! The promises about a good statement; what must not pass for one is in `forgeries`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::predicate::{Limits, Mounts};
use super::statement::Subject;
use super::verify::{Expectations, Invalid, NotProven, Previous, Verified, verify, verify_chain};
use super::*;
use crate::clock::{Clock, FixedClock};
use crate::keys::Keyring;
use crate::keys::jwks::TrustRoot;

mod forgeries;

const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const SCHEMA: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/attestation-predicate.schema.json"));

/// Everything there is to say, and all that Docker's default grants.
fn observed() -> Observed {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let capabilities = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE \
                        SYS_CHROOT KILL AUDIT_WRITE";
    Observed {
        config: digest("config"),
        policy: digest("policy"),
        sandbox: Sandbox { id: "a".repeat(64).parse().unwrap(), namespace: "k8s.io".parse().unwrap() },
        agent: Agent::Token { id: "spiffe://agents.example.org/teams/data/research-assistant".parse().unwrap() },
        backend: Backend { name: "gvisor".parse().unwrap(), binary: digest("runsc"), platform: "systrap".into() },
        node: Node {
            id: "node-7.eu-central.example.org".parse().unwrap(),
            boot_id: "0a8d6f7e-3c1b-4f5a-9e2d-7b6c5d4e3f2a".parse().unwrap(),
            kernel: "6.18.0-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.18.1-1 (2026-11-02)".into(),
        },
        fence: Some(Fence { mechanism: "nftables".into(), digest: digest("ruleset") }),
        hardening: Hardening {
            capabilities: capabilities.split(' ').map(|name| format!("CAP_{name}")).collect(),
            no_new_privileges: true,
            host_network: false,
            seccomp: true,
            masked_paths: 12,
            readonly_paths: 6,
            mounts: Mounts { readonly_root: false, total: 11, host: 4, host_writable: 1 },
            limits: Limits { memory_bytes: Some(2 << 30), cpu_millis: Some(2000), pids: Some(512) },
        },
        image: Image::Containerd {
            name: "registry.example.org/agents/research-assistant:2026.11".into(),
            digest: digest("image"),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        },
        launch: Launch::Restored { restored_from: digest("checkpoint") },
    }
}

/// A node with its keys, and an attacker with keys as good.
struct World {
    _dirs: [tempfile::TempDir; 2],
    clock: FixedClock,
    keyring: Keyring,
    attacker: Keyring,
}

impl World {
    fn new() -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let clock = FixedClock::at(Timestamp::from_unix(NOW));
        let [keyring, attacker] = [0, 1].map(|n: usize| Keyring::open(dirs[n].path(), &clock).unwrap());
        Self { _dirs: dirs, clock, keyring, attacker }
    }

    fn root(&self) -> TrustRoot {
        TrustRoot::parse(self.keyring.jwks().unwrap().as_bytes()).unwrap()
    }

    fn issue(&self, observed: Observed, previous: Option<Digest>) -> Envelope {
        issue(observed, previous, &self.keyring.signer().unwrap(), self.clock.timestamp(), HOUR).unwrap()
    }

    fn verify(&self, envelope: &str, expected: &Expectations) -> Result<Verified, Invalid> {
        verify(envelope.as_bytes(), &self.root(), self.clock.timestamp(), expected)
    }

    fn reason(&self, envelope: &str, expected: &Expectations) -> String {
        self.verify(envelope, expected).expect_err("a forgery was believed").reason.to_string()
    }
}

fn lax() -> Expectations {
    Expectations::default()
}

/// An envelope as anybody can write one.
fn wire(payload: &[u8], payload_type: &str, keyid: &str, signature: &[u8]) -> Value {
    let [payload, sig] = [payload, signature].map(|bytes| BASE64_STANDARD.encode(bytes));
    json!({"payload": payload, "payloadType": payload_type, "signatures": [{"keyid": keyid, "sig": sig}]})
}

fn payload_of(envelope: &Envelope) -> Vec<u8> {
    envelope.unverified_payload().to_vec()
}

#[test]
fn a_statement_counts_in_its_time_only() {
    let world = World::new();
    let envelope = world.issue(observed(), None).to_json().unwrap();
    let at = |unix| verify(envelope.as_bytes(), &world.root(), Timestamp::from_unix(unix), &lax());
    for (unix, why) in [
        (NOW - 31, Some("not valid before 2027-01-15T08:00:00Z")),
        (NOW - 30, None), // clocks differ
        (NOW + 3599, None),
        (NOW + 3600, Some("expired at 2027-01-15T09:00:00Z")),
    ] {
        let reason = at(unix).err().map(|invalid| invalid.reason.to_string());
        assert!(
            reason.as_deref().is_some_and(|r| why.is_some_and(|w| r.contains(w))) || (reason, why) == (None, None),
            "{unix}"
        );
    }
}

#[test]
fn a_statement_is_about_what_was_expected() {
    let world = World::new();
    let previous = Digest::of(b"previous");
    let first = world.issue(observed(), None).to_json().unwrap();
    let later = world.issue(observed(), Some(previous)).to_json().unwrap();
    let subject =
        |subject, text: &str| Expectations { subjects: vec![(subject, Digest::of(text.as_bytes()))], ..lax() };
    let link = |previous| Expectations { previous, ..lax() };
    let sandbox = |id: &str| Expectations { sandbox: Some(id.parse().unwrap()), ..lax() };
    for (envelope, expected, why) in [
        (&first, sandbox(&"a".repeat(64)), None),
        (&first, sandbox("other"), Some("not other")),
        (&first, Expectations { namespace: Some("k8s.io".parse().unwrap()), ..lax() }, None),
        (&first, Expectations { namespace: Some("default".parse().unwrap()), ..lax() }, Some("not default")),
        (&first, subject(Subject::Image, "image"), None),
        (&first, subject(Subject::Config, "config"), None),
        (&first, subject(Subject::Policy, "policy"), None),
        (&first, subject(Subject::Checkpoint, "checkpoint"), None),
        (&first, subject(Subject::Image, "other image"), Some("is not a subject")),
        (&first, subject(Subject::Image, "policy"), Some("is not a subject")), // a digest in another role
        (&first, link(Previous::First), None),
        (&first, link(Previous::Is(previous)), Some("follows nothing, not sha256:")),
        (&later, link(Previous::Is(previous)), None),
        (&later, link(Previous::Is(Digest::of(b"other"))), Some("not sha256:")),
        (&later, link(Previous::First), Some("not nothing")),
    ] {
        match (world.verify(envelope, &expected), why) {
            (Ok(_), None) => {}
            (Err(Invalid { reason }), Some(why)) => assert!(reason.to_string().contains(why), "{reason}"),
            (result, why) => panic!("{expected:?}: {result:?}, expected {why:?}"),
        }
    }
    let unknown = Observed { image: Image::Unknown {}, launch: Launch::Cold {}, ..observed() };
    let envelope = world.issue(unknown, None).to_json().unwrap();
    assert!(world.reason(&envelope, &subject(Subject::Image, "image")).contains("is not a subject"));
    assert!(world.reason(&envelope, &subject(Subject::Checkpoint, "checkpoint")).contains("is not a subject"));
}

#[test]
fn a_deprecated_key_counts_while_it_overlaps_and_then_by_name() {
    let world = World::new();
    let (v1, v2) = ("v1".parse().unwrap(), "v2".parse().unwrap());
    let by = |version| Expectations { key_version: Some(version), ..lax() };
    let old = world.issue(observed(), None).to_json().unwrap();
    world.keyring.rotate(&world.clock, HOUR / 2).unwrap();
    let new = world.issue(observed(), None).to_json().unwrap();
    world.verify(&old, &lax()).unwrap();
    world.clock.advance(HOUR / 2);
    let since = "key v1 is deprecated since 2027-01-15T08:30:00Z: name it with --key-version if you trust it";
    assert_eq!(world.reason(&old, &lax()), since);
    world.verify(&old, &by(v1)).unwrap();
    world.verify(&new, &lax()).unwrap();
    world.verify(&new, &by(v2)).unwrap();
    assert_eq!(world.reason(&new, &by(v1)), "signed by key v2, not by v1");
    assert_eq!(world.reason(&old, &by(v2)), "signed by key v1, not by v2");
}

#[test]
fn a_chain_is_whole_or_refused() {
    let world = World::new();
    let (mut chain, mut previous) = (Vec::new(), None);
    for _ in 0..3 {
        let envelope = world.issue(observed(), previous);
        previous = Some(envelope.statement_digest());
        chain.push(envelope.to_json().unwrap().into_bytes());
        world.clock.advance(HOUR * 2 / 3); // so only the last is still valid
    }
    let other = Sandbox { id: "other".parse().unwrap(), namespace: "k8s.io".parse().unwrap() };
    let foreign = world.issue(Observed { sandbox: other, ..observed() }, previous).to_json().unwrap().into_bytes();
    let now = Timestamp::from_unix(NOW + 2 * 2400 + 10);
    let check = |order: &[usize], more: &[Vec<u8>]| {
        let links: Vec<_> = order.iter().map(|n| chain[*n].clone()).chain(more.iter().cloned()).collect();
        verify_chain(&links, &world.root(), now, &lax()).map_err(|e| e.reason.to_string())
    };
    assert_eq!(check(&[0, 1, 2], &[]).unwrap().unwrap().digest, previous.unwrap());
    assert_eq!(check(&[], &[]).unwrap(), None);
    for (order, why) in [(&[0, 2][..], "follows"), (&[1, 2], "not nothing"), (&[0, 2, 1], "follows"), (&[0], "expired")]
    {
        assert!(check(order, &[]).unwrap_err().contains(why), "{order:?}");
    }
    let now_foreign = Timestamp::from_unix(NOW + 3 * 2400);
    let links: Vec<_> = chain.iter().cloned().chain([foreign]).collect();
    let error = verify_chain(&links, &world.root(), now_foreign, &lax()).unwrap_err().reason.to_string();
    assert!(error.contains("about sandbox other"), "{error}");
}

#[test]
fn the_error_is_the_runbooks() {
    let world = World::new();
    let text = world.issue(observed(), None).to_json().unwrap();
    let payload = payload_of(&Envelope::parse(text.as_bytes()).unwrap());
    let id = world.keyring.signer().unwrap().id().to_string();
    let forged = wire(&payload, dsse::PAYLOAD_TYPE, &id, &[1; 64]).to_string();
    let error = world.verify(&forged, &lax()).unwrap_err().to_string();
    assert_eq!(error, r#"VerificationResult::Invalid { reason: "Ed25519 signature invalid" }"#);
}

#[test]
fn what_is_not_proven_is_said() {
    let world = World::new();
    use NotProven::{Chain, Compared, Fence, Hardware, Image as WhichImage, Latest, WhichSandbox};
    let bare = Observed {
        image: Image::Unknown {},
        agent: Agent::None {},
        fence: None,
        launch: Launch::Cold {},
        ..observed()
    };
    let envelope = world.issue(bare, None).to_json().unwrap();
    let not = world.verify(&envelope, &lax()).unwrap().not_proven;
    let compared = [Compared(Subject::Config), Compared(Subject::Policy)];
    assert_eq!(
        not,
        [&[Hardware, Latest, WhichSandbox][..], &compared, &[WhichImage, NotProven::Agent, Fence, Chain]].concat()
    );

    let asked = Image::Annotation { name: "busybox".into(), digest: Digest::of(b"image") };
    let envelope = world.issue(Observed { image: asked, ..observed() }, None).to_json().unwrap();
    let known = Expectations { subjects: vec![(Subject::Image, Digest::of(b"image"))], ..lax() };
    assert!(world.verify(&envelope, &known).unwrap().not_proven.contains(&NotProven::ImageAsked));

    let all = Expectations {
        sandbox: Some(observed().sandbox.id),
        namespace: None,
        subjects: [
            (Subject::Image, "image"),
            (Subject::Config, "config"),
            (Subject::Policy, "policy"),
            (Subject::Checkpoint, "checkpoint"),
        ]
        .map(|(subject, text)| (subject, Digest::of(text.as_bytes())))
        .into(),
        previous: Previous::First,
        key_version: None,
    };
    let envelope = world.issue(observed(), None).to_json().unwrap();
    let verified = world.verify(&envelope, &all).unwrap();
    assert_eq!(verified.not_proven, [Hardware, Latest]);
    let lines: Vec<_> = verified.proven.iter().map(ToString::to_string).collect();
    assert!(lines[0].starts_with("signed by the trusted key v1 ("), "{lines:?}");
    assert_eq!(lines.len(), 8, "{lines:?}");
}

#[test]
fn an_envelope_is_at_most_4_kib() {
    let envelope = World::new().issue(observed(), Some(Digest::of(b"previous"))).to_json().unwrap();
    assert!(envelope.len() <= 4096, "{} bytes", envelope.len());
}

#[test]
fn statements_fit_the_schema_and_the_schema_says_no_more() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let world = World::new();
    let predicate = |observed, previous| {
        let statement: Value = serde_json::from_slice(&payload_of(&world.issue(observed, previous))).unwrap();
        statement["predicate"].clone()
    };
    let full = predicate(observed(), Some(Digest::of(b"previous")));
    let agent: crate::id::AgentId = "spiffe://example.org/a".parse().unwrap();
    let bare = Observed {
        agent: Agent::None {},
        image: Image::Unknown {},
        launch: Launch::Cold {},
        fence: None,
        hardening: Hardening { limits: Limits::default(), capabilities: vec![], ..observed().hardening },
        ..observed()
    };
    let asked = Image::Annotation { name: "busybox@sha256:…".into(), digest: Digest::of(b"image") };
    let agent = Agent::Operator { id: agent };
    let (pool, generation) = ("agents".parse().unwrap(), Some("3f9a1c".parse().unwrap()));
    let launch = Launch::Claimed { pool, generation, claim: "c-1".parse().unwrap() };
    let claimed = predicate(Observed { agent, image: asked, launch, ..observed() }, None);
    for predicate in [full.clone(), predicate(bare, None), claimed.clone()] {
        let errors: Vec<_> = validator.iter_errors(&predicate).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    // Each member that the schema names is written, each one written is described, and none may be missing or more.
    fn compare(schema: &Value, value: &Value, path: &str) {
        let Some(members) = value.as_object() else {
            assert!(schema["description"].is_string(), "{path} is not described");
            return;
        };
        let named: Vec<_> = schema["properties"].as_object().unwrap_or_else(|| panic!("{path}")).keys().collect();
        assert_eq!(named, members.keys().collect::<Vec<_>>(), "{path}");
        assert_eq!(schema["additionalProperties"], false, "{path}");
        for (name, value) in members {
            compare(&schema["properties"][name], value, &format!("{path}.{name}"));
        }
    }
    let mut all = full.clone(); // no launch has all that one may have
    all["launch"].as_object_mut().unwrap().extend(claimed["launch"].as_object().unwrap().clone());
    compare(&schema, &all, "predicate");
    for (member, value) in [
        ("launch", json!({"kind": "claimed", "claim": "c-1"})),
        ("launch", json!({"kind": "cold", "pool": "agents"})),
        ("assurance", json!("hardware")),
        ("image", json!({"source": "unknown", "name": "x"})),
        ("agent", json!({"proof": "token"})),
    ] {
        let mut wrong = full.clone();
        wrong[member] = value;
        assert!(!validator.is_valid(&wrong), "{member}");
    }
}

thread_local!(static WORLD: World = World::new());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn verify_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<u64>()) {
        prop_assert!(verify(&bytes, &TrustRoot::default(), Timestamp::from_unix(at), &lax()).is_err());
        WORLD.with(|world| {
            // Behind a good signature, too, lies a stranger's word.
            let envelope = Envelope::sign(bytes, &world.keyring.signer().unwrap()).to_json().unwrap();
            assert!(verify(envelope.as_bytes(), &world.root(), Timestamp::from_unix(at), &lax()).is_err());
        });
    }

    #[test]
    fn a_changed_byte_is_never_believed(place in any::<prop::sample::Index>(), change in 1u8..) {
        WORLD.with(|world| {
            let mut bytes = world.issue(observed(), None).to_json().unwrap().into_bytes();
            let at = place.index(bytes.len());
            bytes[at] ^= change;
            assert!(verify(&bytes, &world.root(), Timestamp::from_unix(NOW), &lax()).is_err(), "byte {at}");
        });
    }

    #[test]
    fn what_is_issued_verifies_and_reads_back(
        pids in any::<Option<u64>>(), platform in ".{0,40}", seccomp in any::<bool>(), now in 0u64..4_000_000_000,
    ) {
        WORLD.with(|world| {
            let mut observed = observed();
            observed.backend.platform = platform;
            observed.hardening.seccomp = seccomp;
            observed.hardening.limits.pids = pids;
            let now = Timestamp::from_unix(now);
            let envelope = issue(observed.clone(), None, &world.keyring.signer().unwrap(), now, HOUR).unwrap();
            let verified = verify(envelope.to_json().unwrap().as_bytes(), &world.root(), now, &lax()).unwrap();
            let said = verified.statement.predicate();
            assert_eq!((&said.backend, &said.hardening, said.issued_at), (&observed.backend, &observed.hardening, now));
            assert_eq!(verified.digest, envelope.statement_digest());
        });
    }
}
