//! What every store promises: one suite, run on SQLite, on a real etcd and on the memory of the model.

mod claims;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::json;
use trust::digest::Digest;

use super::*;
use crate::pool::template::{Mode, Origin, Scaling, Template};
use crate::sandbox::{Activity, Fence, Membership};
use crate::spec::SandboxSpec;
use claims::*;

type Promise = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The suite. Each promise is given a store that nobody has used.
macro_rules! promises {
    ($($name:ident)*) => {
        pub const PROMISES: &[(&str, Promise)] = &[$((stringify!($name), |store| Box::pin($name(store)))),*];
    };
}

promises! {
    a_pool_is_changed_only_by_who_has_read_it
    a_deleted_pool_leaves_nothing_that_a_new_one_would_have
    a_sandbox_is_kept_as_it_was_and_found_by_what_it_is
    a_phase_follows_only_where_the_table_allows_it
    changes_that_meet_are_all_kept
    a_record_goes_only_when_its_sandbox_has_ended
    a_claim_takes_the_oldest_member_that_fits
    nothing_stale_drained_or_of_another_node_is_taken
    the_same_key_has_the_same_sandbox_and_another_agents_has_its_own
    of_twenty_takers_none_has_what_another_has
    claims_that_repeat_each_other_at_once_have_one_sandbox
    failures_are_kept_newest_first_and_bounded
    what_is_drained_stays_so_until_it_is_enabled
    claims_are_counted_by_minute
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix(1_800_000_000 + seconds)
}

fn demo() -> PoolName {
    "demo".parse().unwrap()
}

fn node() -> NodeId {
    "node-1".parse().unwrap()
}

fn pool(name: &str) -> Pool {
    let spec = SandboxSpec::of("python:3.11".parse().unwrap());
    Pool {
        name: name.parse().unwrap(),
        template: Template { spec, mode: Mode::Hold, readiness: None },
        scaling: Scaling::fixed(3, 5).unwrap(),
        draining: false,
        origin: Origin::Api,
        created_at: at(0),
        revision: 0,
    }
}

fn warming(id: &str, pool: &Pool, created: u64) -> Sandbox {
    let member = Membership { pool: pool.name.clone(), generation: pool.generation() };
    Sandbox::wished(id.parse().unwrap(), node(), Some(member), pool.template.spec.clone(), at(created))
}

async fn ready(store: &dyn Store, member: Sandbox, when: u64) -> Sandbox {
    let kept = store.insert(&member).await.unwrap();
    store.advance(&kept.id, Input::Warmed(Fence::Sealed), Change::default(), at(when)).await.unwrap()
}

async fn a_pool_is_changed_only_by_who_has_read_it(store: Arc<dyn Store>) {
    let first = store.put_pool(&pool("demo")).await.unwrap();
    assert!(first.revision > 0);
    assert_eq!(store.pool(&demo()).await.unwrap(), Some(first.clone()));
    let second = store.put_pool(&Pool { draining: true, ..first.clone() }).await.unwrap();
    assert!(second.revision > first.revision && second.draining);
    for (stale, what) in [(first.clone(), "an older revision"), (pool("demo"), "none, where there is one")] {
        let error = store.put_pool(&stale).await.expect_err(what);
        assert!(matches!(error, StoreError::Conflict(_)), "{what}: {error}");
    }
    let error = store.put_pool(&Pool { revision: 7, ..pool("other") }).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "a revision, where there is none: {error}");
    store.put_pool(&pool("another")).await.unwrap();
    let names: Vec<_> = store.pools().await.unwrap().iter().map(|pool| pool.name.to_string()).collect();
    assert_eq!(names, ["another", "demo"]);
    let error = store.delete_pool(&demo(), Some(first.revision)).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    assert!(store.delete_pool(&demo(), Some(second.revision)).await.unwrap());
    assert!(!store.delete_pool(&demo(), None).await.unwrap());
    let again = store.put_pool(&pool("demo")).await.unwrap();
    assert!(again.revision > second.revision, "whoever has read the pool that was deleted cannot change the new one");
}

async fn a_deleted_pool_leaves_nothing_that_a_new_one_would_have(store: Arc<dyn Store>) {
    for name in ["demo", "demo2"] {
        let name = store.put_pool(&pool(name)).await.unwrap().name;
        store.note_failure(&name, &failure(1, Phase::Warming)).await.unwrap();
        store.count_claims(&name, &node(), at(0), 3).await.unwrap();
    }
    ready(&*store, warming("box", &pool("demo"), 0), 1).await;
    assert!(store.delete_pool(&demo(), None).await.unwrap());
    assert_eq!(store.failures(&demo(), None, 10).await.unwrap(), []);
    assert_eq!(store.claims(&demo(), &node(), 0).await.unwrap(), []);
    let other = "demo2".parse().unwrap();
    assert_eq!(store.failures(&other, None, 10).await.unwrap().len(), 1, "a name that begins the same is another's");
    assert_eq!(store.claims(&other, &node(), 0).await.unwrap().len(), 1);
    assert_eq!(store.take(&request("c")).await.unwrap(), Taken::NoSuchPool);
    assert_eq!(
        store.sandboxes(&Filter::members(&demo(), &node())).await.unwrap().len(),
        1,
        "its members are not touched"
    );
}

async fn a_sandbox_is_kept_as_it_was_and_found_by_what_it_is(store: Arc<dyn Store>) {
    let mut sandbox = warming("box-1", &pool("demo"), 5);
    sandbox.spec.labels = serde_json::from_value(json!({ "tier": "gold" })).unwrap();
    sandbox.name = Some("mine".parse().unwrap());
    let kept = store.insert(&sandbox).await.unwrap();
    assert_eq!(Sandbox { revision: 0, ..kept.clone() }, sandbox);
    assert_eq!(store.sandbox(&kept.id).await.unwrap(), Some(kept.clone()));
    assert!(matches!(store.insert(&sandbox).await, Err(StoreError::Exists(_))));
    assert_eq!(store.sandbox(&"box".parse().unwrap()).await.unwrap(), None, "an id is not found by its beginning");

    let mut cold = warming("a-cold-one", &pool("demo"), 7);
    cold.pool = None;
    store.insert(&cold).await.unwrap();
    let mut elsewhere = warming("box-2", &pool("demo"), 6);
    elsewhere.node = "node-2".parse().unwrap();
    store.insert(&elsewhere).await.unwrap();
    ready(&*store, warming("box-3", &pool("demo2"), 1), 8).await;
    let all = Filter::default();
    for (filter, found) in [
        (all.clone(), &["box-3", "box-1", "box-2", "a-cold-one"][..]),
        (Filter { pool: Some(demo()), ..all.clone() }, &["box-1", "box-2"]),
        (Filter::members(&demo(), &node()), &["box-1"]),
        (Filter { phase: Some(Phase::Ready), ..all.clone() }, &["box-3"]),
        (Filter { node: Some("node-2".parse().unwrap()), ..all.clone() }, &["box-2"]),
        (Filter { selector: "tier=gold".parse().unwrap(), ..all.clone() }, &["box-1"]),
        (
            Filter { selector: "tier!=gold".parse().unwrap(), phase: Some(Phase::Warming), ..all },
            &["box-2", "a-cold-one"],
        ),
    ] {
        let ids: Vec<_> =
            store.sandboxes(&filter).await.unwrap().iter().map(|sandbox| sandbox.id.to_string()).collect();
        assert_eq!(ids, found, "{filter:?}");
    }
}

async fn a_phase_follows_only_where_the_table_allows_it(store: Arc<dyn Store>) {
    let kept = store.insert(&warming("box", &pool("demo"), 0)).await.unwrap();
    let error = store.advance(&kept.id, Input::Bound, Change::default(), at(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongPhase(_)), "{error}");
    assert_eq!(store.sandbox(&kept.id).await.unwrap(), Some(kept.clone()), "and nothing has changed");
    let statement = Change { attestation: Some(Digest::of(b"statement")), ..Change::default() };
    let warmed = store.advance(&kept.id, Input::Warmed(Fence::Sealed), statement, at(2)).await.unwrap();
    assert!(warmed.revision > kept.revision && warmed.attestation.is_some());
    assert_eq!(store.sandbox(&kept.id).await.unwrap(), Some(warmed));
    let nobody = "nobody".parse().unwrap();
    let error = store.advance(&nobody, Input::Amended, Change::default(), at(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
}

async fn changes_that_meet_are_all_kept(store: Arc<dyn Store>) {
    let kept = store.insert(&warming("box", &pool("demo"), 0)).await.unwrap();
    let changes = [
        Change { agent: Some("spiffe://example.org/agents/a".parse().unwrap()), ..Change::default() },
        Change { expires_at: Some(at(99)), ..Change::default() },
        Change { activity: Some(Activity { at: at(98), cpu_nanos: 7 }), ..Change::default() },
        Change { attestation: Some(Digest::of(b"statement")), ..Change::default() },
        Change { fence: Some(Fence::Sealed), ..Change::default() },
    ];
    let tasks = changes.map(|change| {
        let (store, id) = (Arc::clone(&store), kept.id.clone());
        tokio::spawn(async move { store.advance(&id, Input::Amended, change, at(1)).await.unwrap() })
    });
    for task in tasks {
        task.await.unwrap();
    }
    let all = store.sandbox(&kept.id).await.unwrap().unwrap();
    assert!(
        all.agent.is_some()
            && all.expires_at.is_some()
            && all.activity.is_some()
            && all.attestation.is_some()
            && all.fence.is_some(),
        "{all:?}"
    );
}

async fn a_record_goes_only_when_its_sandbox_has_ended(store: Arc<dyn Store>) {
    store.put_pool(&pool("demo")).await.unwrap();
    let member = ready(&*store, warming("box", &pool("demo"), 0), 1).await;
    assert!(matches!(store.remove(&member.id).await, Err(StoreError::WrongPhase(_))));
    store.advance(&member.id, Input::ended("evicted-aged", ""), Change::default(), at(2)).await.unwrap();
    assert!(take(&*store, &request("c")).await.is_none(), "what ends is not taken");
    assert!(store.remove(&member.id).await.unwrap());
    assert!(!store.remove(&member.id).await.unwrap());
    assert_eq!(store.sandbox(&member.id).await.unwrap(), None);
    let again = store.insert(&warming("box", &pool("demo"), 3)).await.unwrap();
    assert!(again.revision > member.revision);
}

fn failure(seconds: u64, phase: Phase) -> Failure {
    Failure {
        at: at(seconds),
        node: node(),
        sandbox: format!("box-{seconds}").parse().unwrap(),
        phase,
        code: "image-not-found".into(),
        message: r#"SpawnError::ImageNotFound("a")"#.into(),
    }
}

async fn failures_are_kept_newest_first_and_bounded(store: Arc<dyn Store>) {
    let beyond = 5;
    for n in 0..(FAILURES_KEPT + beyond) as u64 {
        let phase = if n % 2 == 0 { Phase::Warming } else { Phase::Claimed };
        store.note_failure(&demo(), &failure(n / 3, phase)).await.unwrap(); // several in one second
    }
    let all = store.failures(&demo(), None, usize::MAX).await.unwrap();
    assert_eq!(all.len(), FAILURES_KEPT);
    assert!(all.is_sorted_by_key(|failure| std::cmp::Reverse(failure.at)));
    assert_eq!(all.last().unwrap().at, at(beyond as u64 / 3), "the oldest were forgotten");
    let warming = store.failures(&demo(), Some(Phase::Warming), 3).await.unwrap();
    assert_eq!(warming, [1004, 1002, 1000].map(|n| failure(n / 3, Phase::Warming)));
    assert_eq!(store.failures(&"dem".parse().unwrap(), None, 10).await.unwrap(), []);
}

async fn what_is_drained_stays_so_until_it_is_enabled(store: Arc<dyn Store>) {
    let drain = |backend| Drain { node: node(), backend };
    for backend in [Some(Backend::Kata), None, Some(Backend::Kata)] {
        store.set_drained(&drain(backend), true).await.unwrap();
    }
    store.set_drained(&Drain { node: "node-11".parse().unwrap(), backend: None }, true).await.unwrap();
    assert_eq!(store.drained(&node()).await.unwrap(), [drain(None), drain(Some(Backend::Kata))]);
    store.set_drained(&drain(None), false).await.unwrap();
    store.set_drained(&drain(Some(Backend::Gvisor)), false).await.unwrap();
    assert_eq!(store.drained(&node()).await.unwrap(), [drain(Some(Backend::Kata))]);
}
