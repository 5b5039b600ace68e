//! A sandbox is whole at any time: it waits, it is one claim's, or it is nobody's and empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use containerd_shim_protos::ttrpc::Code;
use egress::protocol::Code as EgressCode;
use serde_json::{Value, json};
use trust::attestation::dsse::Envelope;
use trust::attestation::predicate::{Backend, Hardening, Image, Limits, Mounts};

use super::*;
use crate::attest::Facts;
use crate::bound::tests::{Hands, LIFETIME, bound, recorded};
use crate::fence::fake::{Broken, FakeFences};
use crate::run_dir::{ATTESTATION, KEY, TOKEN};

const AGENT: &str = "spiffe://example.org/agents/a";
const NOTHING: &str = r#"{"rules":[]}"#;

/// A sandbox that waits, attested, with its `/run/creto`.
struct World {
    dir: tempfile::TempDir,
    clock: Arc<Hands>,
    revoked: Arc<AtomicBool>,
    fences: FakeFences,
    bound: Arc<Bound>,
}

impl World {
    async fn waiting(wired: bool) -> Self {
        Self::with(wired, Standing::Waits).await
    }

    async fn with(wired: bool, claim: Standing) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("secrets/everyone/db", "hunter2"),
            ("policies.d/web.toml", "[[rules]]\ndestination = \"a.example\"\nports = [443]\naction = \"Allow\"\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (clock, revoked) = (Arc::new(Hands(AtomicU64::new(1_800_000_000))), Arc::new(AtomicBool::new(false)));
        let fences = FakeFences { wired, ..FakeFences::default() };
        let bound = Arc::new(bound(dir.path(), clock.clone(), revoked.clone(), fences.clone(), claim).await);
        let user = fs::metadata(dir.path()).map(|me| (std::os::unix::fs::MetadataExt::uid(&me), 0)).unwrap();
        let mut spec = json!({"process": {"user": {"uid": user.0, "gid": user.1}}, "mounts": []});
        bound.enter("c1", &mut spec).unwrap();
        bound.attest(facts(), std::process::id() as i32).unwrap();
        if wired {
            let policy = PolicyRef::Inline(json!({"rules": []}));
            let pid = std::process::id() as i32;
            let asked = fence::Asked { agent: None, policy, attestation: None };
            let fence = bound.ports.fences.attach(&bound.place, pid, asked).await.unwrap().unwrap();
            bound.heard_of(fence).await.unwrap();
        }
        Self { dir, clock, revoked, fences, bound }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("sandbox/creto/c1")
    }

    /// What the workload can read of who it is.
    fn inside(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for dir in [self.run_dir(), self.run_dir().join("secrets")] {
            for file in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                let name = file.strip_prefix(self.run_dir()).unwrap().display().to_string();
                if file.is_file() && name != "jwks.json" {
                    all.push((name, fs::read(file).unwrap()));
                }
            }
        }
        all.sort();
        all
    }

    fn names(&self) -> Vec<String> {
        self.inside().into_iter().map(|(name, _)| name).collect()
    }

    fn journal(&self) -> Vec<String> {
        self.fences.journal.lock().unwrap().clone()
    }

    fn statement(&self) -> Value {
        let envelope = Envelope::parse(&fs::read(self.run_dir().join(ATTESTATION)).unwrap()).unwrap();
        serde_json::from_slice(envelope.unverified_payload()).unwrap()
    }

    async fn code(&self, asked: Asked) -> Code {
        self.bound.claim(asked).await.map_or_else(|failed| failed.error.code(), |_| Code::OK)
    }
}

fn facts() -> Facts {
    let digest = Digest::of(b"");
    Facts {
        config: digest,
        backend: Backend { name: "gvisor".parse().unwrap(), binary: digest, platform: "systrap".into() },
        hardening: Hardening {
            capabilities: vec![],
            no_new_privileges: true,
            host_network: false,
            seccomp: true,
            masked_paths: 0,
            readonly_paths: 0,
            mounts: Mounts { readonly_root: false, total: 1, host: 1, host_writable: 0 },
            limits: Limits::default(),
        },
        image: Image::Unknown {},
    }
}

fn asked(claim: &str) -> Asked {
    Asked {
        claim: claim.parse().unwrap(),
        pool: "agents".parse().unwrap(),
        generation: Some("7".parse().unwrap()),
        agent: Some(AGENT.parse().unwrap()),
        by_token: true,
        policy: Some(PolicyRef::Named("web".into())),
        secrets: vec![SecretRef::File("db".into())],
    }
}

fn events(dir: &Path) -> Vec<&'static str> {
    recorded(dir).iter().map(Event::name).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_claim_replaces_all_that_the_sandbox_was_and_is_answered_the_same_again() {
    for wired in [false, true] {
        let world = World::waiting(wired).await;
        let (first, before) = (world.bound.stand().unwrap(), world.inside());
        assert_eq!(world.names(), [ATTESTATION, TOKEN, KEY]);
        let heard = events(world.dir.path()).len();

        let Claimed { stand, .. } = world.bound.claim(asked("c-1")).await.unwrap();
        assert_eq!(stand.workload.to_string(), format!("{AGENT}/sandbox/c1"));
        assert_ne!((stand.digest, stand.policy), (first.digest, first.policy));
        assert_eq!(stand.fence.is_some(), wired);
        let inside = world.inside();
        assert_eq!(world.names(), [ATTESTATION, TOKEN, KEY, "secrets/db"]);
        assert!(before.iter().all(|(_, bytes)| inside.iter().all(|(_, now)| now != bytes)), "nothing is left");
        let said = world.statement()["predicate"].clone();
        assert_eq!(said["previous"], json!(first.digest));
        assert_eq!(said["agent"], json!({"proof": "token", "id": AGENT}));
        assert_eq!(said["launch"], json!({"kind": "claimed", "pool": "agents", "generation": "7", "claim": "c-1"}));
        assert_eq!(said["fence"]["mechanism"], if wired { "nftables" } else { "sealed" });
        assert_eq!(stand.statement.as_bytes(), fs::read(world.run_dir().join(ATTESTATION)).unwrap());
        let journal = world.journal();
        assert_eq!(journal.last().map(String::as_str), wired.then_some(&*format!("rebind {AGENT} web")));

        assert_eq!(world.bound.claim(asked("c-1")).await.unwrap().stand, stand, "the first answer may be lost");
        assert_eq!(world.code(asked("c-2")).await, Code::FAILED_PRECONDITION, "once");
        assert_eq!((world.inside(), world.journal()), (inside, journal));
        let heard = events(world.dir.path()).split_off(heard);
        assert_eq!(heard, ["SandboxClaimed", "SecretsDelivered", "AttestationIssued"]);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn of_claims_that_come_together_one_gets_the_sandbox() {
    let world = World::waiting(true).await;
    let claims = (0..8).map(|n| {
        let bound = world.bound.clone();
        tokio::spawn(
            async move { bound.claim(asked(&format!("c-{}", n / 2))).await.map(|claimed| claimed.stand.digest) },
        )
    });
    let mut got = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        got.push(claim.await.unwrap());
    }
    let winners: Vec<_> = got.iter().flatten().collect();
    assert!(winners.len() == 2 && winners[0] == winners[1], "asked twice by its one claim: {got:?}");
    let refused = got.iter().filter_map(|got| got.as_ref().err()).all(|e| e.error.code() == Code::FAILED_PRECONDITION);
    assert!(refused && world.journal().len() == 2);
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_refused_changes_nothing_and_the_sandbox_waits_on() {
    let world = World::waiting(true).await;
    let (before, first) = (world.inside(), world.bound.stand());
    let nobody = |by_token| Asked { agent: None, by_token, ..asked("c-1") };
    let policy = |policy| Asked { policy: Some(policy), ..asked("c-1") };
    let secret = |name: &str| Asked { secrets: vec![SecretRef::File(name.into())], ..asked("c-1") };
    let bad = PolicyRef::Inline(json!({"rules": [{"destination": "*", "action": "Allow"}]}));
    let refuses = |code| Some(Broken::Refuses(code));
    let (forbidden, invalid, unavailable) = (Code::PERMISSION_DENIED, Code::INVALID_ARGUMENT, Code::UNAVAILABLE);
    for (what, asked, broken, revoked, code, cause) in [
        ("a revoked agent", asked("c-1"), None, true, forbidden, Cause::IdentityRejected),
        ("a token of nobody's", nobody(true), None, false, forbidden, Cause::IdentityRejected),
        ("no such policy", policy(PolicyRef::Named("nowhere".into())), None, false, invalid, Cause::PolicyInvalid),
        ("a bad policy", policy(bad), None, false, invalid, Cause::PolicyInvalid),
        ("no such secret", secret("other"), None, false, invalid, Cause::SecretUnavailable),
        ("no creto-egress", asked("c-1"), Some(Broken::Down), false, unavailable, Cause::EgressUnavailable),
        ("a refusal", asked("c-1"), refuses(EgressCode::Kernel), false, unavailable, Cause::EgressUnavailable),
        ("its policy", asked("c-1"), refuses(EgressCode::PolicyInvalid), false, invalid, Cause::PolicyInvalid),
        (
            "its fence is gone",
            asked("c-1"),
            refuses(EgressCode::NoSuchSandbox),
            false,
            Code::FAILED_PRECONDITION,
            Cause::FenceLost,
        ),
    ] {
        world.revoked.store(revoked, Ordering::SeqCst);
        world.fences.next.lock().unwrap().extend([broken]);
        let heard = events(world.dir.path()).len();
        let failed = world.bound.claim(asked).await.unwrap_err();
        world.fences.next.lock().unwrap().clear();
        assert_eq!((failed.error.code(), failed.loose), (code, false), "{what}: {}", failed.error);
        let said = Cause::of(&failed.error.to_string()).map(|(cause, _)| cause);
        assert_eq!(said, Some(cause), "{what}: {}", failed.error);
        assert_eq!((world.inside(), world.bound.stand()), (before.clone(), first.clone()), "{what}");
        let expected = if code == Code::PERMISSION_DENIED { "IdentityRejected" } else { "SandboxClaimFailed" };
        assert_eq!(events(world.dir.path()).split_off(heard), [expected], "{what}");
    }
    world.revoked.store(false, Ordering::SeqCst);
    assert_eq!(world.code(asked("c-2")).await, Code::OK);
}

#[tokio::test(flavor = "current_thread")]
async fn what_fails_after_the_first_change_leaves_nothing_of_anybodys_behind_the_old_fence() {
    type Break = fn(&World);
    let unsure: Break = |world| world.fences.next.lock().unwrap().extend([Some(Broken::Unsure)]);
    let twice: Break = |world| world.fences.next.lock().unwrap().extend([Some(Broken::Unsure), Some(Broken::Down)]);
    // What is put in the place of a file is written beside it first.
    let key: Break = |world| fs::create_dir_all(world.run_dir().join(format!(".{KEY}/x"))).unwrap();
    let secret: Break = |world| fs::create_dir_all(world.run_dir().join("secrets/.db/x")).unwrap();
    let token: Break = |world| fs::create_dir_all(world.run_dir().join(format!(".{TOKEN}/x"))).unwrap();
    let statement: Break = |world| fs::remove_dir_all(world.dir.path().join("attestations")).unwrap();
    let inside: Break = |world| fs::create_dir_all(world.run_dir().join(format!(".{ATTESTATION}/x"))).unwrap();
    for (what, step, brk, loose) in [
        ("nobody knows what became of the fence", "fence", unsure, false),
        ("nor of the one before", "fence", twice, true),
        ("the key", "delivery", key, false),
        ("a secret", "delivery", secret, true), // what is in its way is no file of ours, and stays
        ("the token", "delivery", token, false),
        ("keeping the statement", "attestation", statement, false),
        ("delivering the statement", "attestation", inside, false),
    ] {
        let world = World::waiting(true).await;
        let fence = world.bound.stand().unwrap().fence;
        brk(&world);
        let failed = world.bound.claim(asked("c-1")).await.unwrap_err();
        let said = failed.error.to_string();
        assert_eq!((failed.error.code(), failed.loose), (Code::ABORTED, loose), "{what}: {said}");
        assert!(said.contains("destroy it") && said.contains(step), "{what}: {said}");
        assert_eq!(world.names(), [""; 0], "{what}: nothing of anybody's");
        assert_eq!(world.journal().last().unwrap(), &format!("rebind nobody {NOTHING}"), "{what}");
        if !loose {
            let ruleset = world.bound.state().fence.as_ref().map(|fence| fence.ruleset);
            assert_eq!(ruleset, fence.map(|(_, ruleset)| ruleset), "{what}");
        }
        // It stays so, whoever asks and whatever is due.
        assert_eq!(world.code(asked("c-1")).await, Code::ABORTED, "{what}");
        assert_eq!(world.code(asked("c-2")).await, Code::FAILED_PRECONDITION, "{what}");
        let policy = PolicyRef::Named("web".into());
        let updated = world.bound.update_policy(policy).await.unwrap_err();
        assert_eq!(updated.code(), Code::FAILED_PRECONDITION, "{what}");
        let entered = world.bound.enter("c2", &mut json!({"mounts": []})).unwrap_err();
        assert_eq!(entered.code(), Code::FAILED_PRECONDITION, "{what}");
        assert_eq!(world.bound.updated().unwrap_err().code(), Code::FAILED_PRECONDITION, "{what}");
        assert!(!world.bound.lives() && world.bound.stand().is_none(), "{what}");
        world.clock.advance(LIFETIME);
        world.bound.refresh().await.unwrap();
        assert_eq!(world.names(), [""; 0], "{what}: nothing is renewed");
        let failures = recorded(world.dir.path());
        let failures = failures.iter().filter(|e| matches!(e, Event::SandboxClaimFailed { spoilt: true, .. })).count();
        assert_eq!(failures, 1, "{what}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_not_made_to_be_claimed_is_not() {
    let world = World::with(true, Standing::Never).await;
    let before = world.inside();
    let failed = world.bound.claim(asked("c-1")).await.unwrap_err();
    assert_eq!(failed.error.code(), Code::FAILED_PRECONDITION);
    assert!(failed.error.to_string().contains("creto.dev/claimable"));
    assert_eq!(world.inside(), before);
}

#[tokio::test(flavor = "current_thread")]
async fn renewals_follow_the_claim() {
    let world = World::waiting(false).await;
    world.bound.claim(asked("c-1")).await.unwrap();
    let token = || fs::read(world.run_dir().join(TOKEN)).unwrap();
    let (first, key) = (token(), fs::read(world.run_dir().join(KEY)).unwrap());
    world.clock.advance(LIFETIME);
    world.bound.refresh().await.unwrap();
    assert_ne!(token(), first);
    assert_eq!(fs::read(world.run_dir().join(KEY)).unwrap(), key);
    world.revoked.store(true, Ordering::SeqCst);
    world.clock.advance(LIFETIME);
    let error = world.bound.refresh().await.unwrap_err().to_string();
    assert!(error.contains(&format!("agent {AGENT} is revoked")), "{error}");
    world.clock.advance(LIFETIME * 100);
    world.bound.refresh().await.unwrap_err();
    assert_eq!(world.statement()["predicate"]["launch"]["claim"], "c-1", "and so do statements");
}

#[tokio::test(flavor = "current_thread")]
async fn old_news_of_the_fence_is_no_news() {
    let world = World::waiting(true).await;
    let old = world.bound.state().fence.clone().unwrap();
    let Claimed { stand, .. } = world.bound.claim(asked("c-1")).await.unwrap();
    let new = world.bound.state().fence.clone().unwrap();
    for fence in [old, new.clone()] {
        world.bound.heard_of(fence).await.unwrap();
        assert_eq!(world.bound.stand().unwrap(), stand);
    }
    let ruleset = Digest::of(b"put up again");
    world.bound.heard_of(Fence { ruleset, ..new }).await.unwrap();
    assert_eq!(world.bound.stand().unwrap().fence.unwrap().1, ruleset);
}

#[tokio::test(flavor = "current_thread")]
async fn another_policy_is_attested_or_the_old_one_stays() {
    for wired in [false, true] {
        let world = World::waiting(wired).await;
        let web = || PolicyRef::Named("web".into());
        let waits = world.bound.update_policy(web()).await.unwrap_err();
        assert_eq!(waits.code(), Code::FAILED_PRECONDITION, "its policy comes with the claim");
        let nothing = Asked { policy: Some(PolicyRef::Inline(json!({"rules": []}))), ..asked("c-1") };
        let Claimed { stand: first, .. } = world.bound.claim(nothing).await.unwrap();
        let nowhere = world.bound.update_policy(PolicyRef::Named("nowhere".into())).await.unwrap_err();
        assert_eq!(nowhere.code(), Code::INVALID_ARGUMENT);
        if wired {
            world.fences.next.lock().unwrap().extend([Some(Broken::Down)]);
            let down = world.bound.update_policy(web()).await.unwrap_err();
            assert_eq!(down.code(), Code::UNAVAILABLE);
        }
        assert_eq!(world.bound.stand().unwrap(), first);
        let second = world.bound.update_policy(web()).await.unwrap();
        assert_ne!(second.policy, first.policy);
        assert_eq!(world.statement()["predicate"]["previous"], json!(first.digest));
        assert_eq!(world.journal().iter().filter(|asked| *asked == "update web").count(), if wired { 2 } else { 0 });
    }
}
