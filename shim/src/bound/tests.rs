//! A token is renewed for those who may still have it, and who may not is told of once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use trust::attestation::predicate::Node;
use trust::audit::inbox::Inbox;
use trust::audit::{Limits, Spool};
use trust::clock::Clock;
use trust::id::AgentId;
use trust::identity::replay::SeenTokens;
use trust::identity::source::{Agent, AgentSource, SourceError};
use trust::identity::token::Rules;
use trust::identity::workload::Issuer;
use trust::identity::{self, Binder, Permission};
use trust::keys::Keyring;

use super::*;
use crate::fence::fake::FakeFences;

pub(super) const LIFETIME: Duration = Duration::from_secs(60);

/// Knows every agent, until it is told that they are revoked.
struct Everybody(Arc<AtomicBool>);

#[async_trait]
impl AgentSource for Everybody {
    async fn agent(&self, id: &AgentId) -> Result<Agent, SourceError> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(SourceError::Revoked(id.clone(), "the test".into())),
            false => Ok(Agent { id: id.clone(), keys: vec![], backends: None, default_policy: None }),
        }
    }
}

/// Seconds since 1970, as the test says.
pub(super) struct Hands(pub(super) AtomicU64);

impl Hands {
    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// The sandbox `c1` of an agent that is known until `revoked` says otherwise, or of nobody one that waits to be claimed.
pub(super) async fn bound(
    dir: &Path,
    clock: Arc<Hands>,
    revoked: Arc<AtomicBool>,
    fences: FakeFences,
    claim: Standing,
) -> Bound {
    let keyring = Keyring::open(&dir.join("lib"), &*clock).unwrap();
    let (permission, node) = (Permission::Allow, "node-1".parse().unwrap());
    let settings = identity::Settings { anonymous: permission, operator: permission, tokens: Rules::new("creto:n") };
    let seen = SeenTokens::new(dir.join("seen"));
    let ports = Ports {
        binder: Binder { source: Box::new(Everybody(revoked)), seen, clock: clock.clone(), settings },
        issuer: Issuer { domain: trust::id::TrustDomain::local(), node },
        node: Node {
            id: "node-1".parse().unwrap(),
            boot_id: "0f3c9a4e-7d1b-4f62-8a55-2b1f4c7d9e10".parse().unwrap(),
            kernel: "6".into(),
        },
        record: Spool::new(&dir.join("spool"), "shim", "node-1", Limits::default()).unwrap(),
        token_lifetime: LIFETIME,
        validity: LIFETIME * 100,
        keyring,
        fences: Box::new(fences),
        policies: dir.join("policies.d"),
        statements: dir.join("attestations"),
    };
    let (agent, backend) = ("spiffe://example.org/a".parse().unwrap(), "gvisor".parse().unwrap());
    let agent = matches!(claim, Standing::Never).then_some(&agent);
    let identity = ports.binder.bind(Claim { agent, token: None, backend: &backend }).await.unwrap();
    let sandbox = Sandbox { id: "c1".parse().unwrap(), namespace: "default".parse().unwrap() };
    let credential = credential(&ports, &identity, &sandbox).unwrap();
    let (secrets, launch, about) = (Secrets::default(), Launch::Cold {}, About::default());
    let bond = Bond { identity, asked_secrets: vec![], secrets, launch, about };
    let nothing = PolicyRef::Inline(json!({"rules": []}));
    let digest = network::digest_of(&ports.policies, &nothing).unwrap();
    let place =
        Place { dir: dir.join("sandbox"), address: String::new(), namespace: "default".into(), group: "c1".into() };
    Bound {
        place,
        sandbox,
        backend,
        secrets: SecretsSettings { dir: Some(dir.join("secrets")), command: vec![] },
        keeping: AttestationSettings::default(),
        changing: Default::default(),
        state: Mutex::new(State::new(bond, credential, nothing, digest, claim)),
        ports,
    }
}

pub(super) fn recorded(dir: &Path) -> Vec<Event> {
    let inbox = Inbox::at(&dir.join("spool"));
    let lines = inbox.list(100).unwrap().iter().flat_map(|file| inbox.read(file)).collect::<Vec<_>>();
    lines.into_iter().map(|line| line.content.unwrap().0.event).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_revoked_agents_sandbox_gets_no_new_token_until_the_agent_is_back() {
    let (dir, revoked) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let clock = Arc::new(Hands(AtomicU64::new(1_800_000_000)));
    let fences = FakeFences::default();
    let bound = bound(dir.path(), clock.clone(), revoked.clone(), fences, Standing::Never).await;
    let run_dir = RunDir::make(&dir.path().join("run/c1"), &serde_json::json!({})).unwrap();
    bound.state().dirs.insert("c1".into(), run_dir);
    let token = || bound.state().credential.token.to_string();
    let mut tokens = BTreeSet::from([token()]);

    bound.refresh().await.unwrap();
    assert!(!tokens.insert(token()), "it is not due yet");
    clock.advance(LIFETIME);
    bound.refresh().await.unwrap();
    assert!(tokens.insert(token()), "renewed");

    revoked.store(true, Ordering::SeqCst);
    bound.refresh().await.unwrap(); // looked up only where a token is due
    for _ in 0..3 {
        clock.advance(LIFETIME);
        let error = bound.refresh().await.unwrap_err().to_string();
        assert!(error.contains("is not renewed: agent spiffe://example.org/a is revoked"), "{error}");
        assert!(!tokens.insert(token()));
    }
    let inside = std::fs::read_to_string(dir.path().join("run/c1/identity.jwt")).unwrap();
    assert_eq!(inside, token(), "the last one, which ends by itself");
    let heard = recorded(dir.path());
    assert!(
        matches!(&heard[..], [Event::TokenRenewalRefused { reason }] if reason.as_str().contains("revoked")),
        "{heard:?}"
    );

    revoked.store(false, Ordering::SeqCst);
    bound.refresh().await.unwrap();
    assert!(tokens.insert(token()));
    revoked.store(true, Ordering::SeqCst);
    clock.advance(LIFETIME);
    bound.refresh().await.unwrap_err();
    assert_eq!(recorded(dir.path()).len(), 2, "it is news again");
}
