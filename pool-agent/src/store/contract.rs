//! What every store promises: one suite, run on SQLite, on a real etcd and on the memory of the model.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::json;
use trust::digest::Digest;

use super::*;
use crate::pool::template::{Mode, Origin, Scaling, Template};
use crate::sandbox::{Fence, Generation, Membership};
use crate::spec::SandboxSpec;

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

fn request(claim: &str) -> TakeRequest {
    TakeRequest {
        pool: demo(),
        node: node(),
        claim: claim.parse().unwrap(),
        idempotency_key: None,
        agent: None,
        selector: LabelSelector::default(),
        backend: None,
        now: at(500),
    }
}

async fn take(store: &dyn Store, request: &TakeRequest) -> Option<Sandbox> {
    match store.take(request).await.unwrap() {
        Taken::Taken(sandbox) => Some(*sandbox),
        Taken::Empty { .. } => None,
        other => panic!("{other:?}"),
    }
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
        all.agent.is_some() && all.expires_at.is_some() && all.attestation.is_some() && all.fence.is_some(),
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

async fn a_claim_takes_the_oldest_member_that_fits(store: Arc<dyn Store>) {
    let demo = store.put_pool(&pool("demo")).await.unwrap();
    let mut gold = warming("box-d", &demo, 0);
    gold.spec.labels = serde_json::from_value(json!({ "tier": "gold" })).unwrap();
    ready(&*store, warming("box-c", &demo, 3), 10).await;
    ready(&*store, warming("box-b", &demo, 2), 9).await;
    ready(&*store, gold, 30).await;
    ready(&*store, warming("box-a", &demo, 1), 20).await;
    store.insert(&warming("box-0", &demo, 0)).await.unwrap();
    let choosy = TakeRequest { selector: "tier=gold".parse().unwrap(), ..request("claim-1") };
    let kata = TakeRequest { backend: Some(Backend::Kata), ..request("claim-k") };
    assert_eq!(store.take(&kata).await.unwrap(), Taken::Empty { ready: 4 }, "never of another backend");
    let first = take(&*store, &choosy).await.unwrap();
    assert_eq!(first.id.to_string(), "box-d");
    let claim = first.claim.clone().unwrap();
    assert_eq!((first.phase, claim.id.to_string(), claim.at), (Phase::Claimed, "claim-1".into(), at(500)));
    assert_eq!(store.sandbox(&first.id).await.unwrap(), Some(first));
    assert_eq!(store.take(&choosy).await.unwrap(), Taken::Empty { ready: 3 });
    for (claim, id) in [("claim-2", "box-b"), ("claim-3", "box-c"), ("claim-4", "box-a")] {
        assert_eq!(take(&*store, &request(claim)).await.unwrap().id.to_string(), id);
    }
    assert_eq!(
        store.take(&request("claim-5")).await.unwrap(),
        Taken::Empty { ready: 0 },
        "one that warms is not taken"
    );
}

async fn nothing_stale_drained_or_of_another_node_is_taken(store: Arc<dyn Store>) {
    assert_eq!(store.take(&request("c")).await.unwrap(), Taken::NoSuchPool);
    let demo = store.put_pool(&pool("demo")).await.unwrap();
    let mut elsewhere = warming("box-1", &demo, 0);
    elsewhere.node = "node-11".parse().unwrap();
    ready(&*store, elsewhere, 1).await;
    let mut stale = warming("box-2", &demo, 0);
    stale.pool.as_mut().unwrap().generation = Generation::of(b"another template");
    ready(&*store, stale, 1).await;
    ready(&*store, warming("box-3", &pool("demo2"), 0), 1).await;
    assert_eq!(store.take(&request("c")).await.unwrap(), Taken::Empty { ready: 0 });

    ready(&*store, warming("box-4", &demo, 0), 1).await;
    let gvisor = Drain { node: node(), backend: Some(Backend::Gvisor) };
    for drain in [gvisor, Drain { node: node(), backend: None }] {
        store.set_drained(&drain, true).await.unwrap();
        assert_eq!(store.take(&request("c")).await.unwrap(), Taken::Draining, "{drain:?}");
        store.set_drained(&drain, false).await.unwrap();
    }
    for drain in [
        Drain { node: node(), backend: Some(Backend::Kata) },
        Drain { node: "node-11".parse().unwrap(), backend: None },
    ] {
        store.set_drained(&drain, true).await.unwrap();
    }
    let draining = store.put_pool(&Pool { draining: true, ..demo }).await.unwrap();
    assert_eq!(store.take(&request("c")).await.unwrap(), Taken::Draining);
    let mut changed = store.put_pool(&Pool { draining: false, ..draining }).await.unwrap();
    changed.template.spec.image = "python:3.12".parse().unwrap();
    let changed = store.put_pool(&changed).await.unwrap();
    assert_eq!(store.take(&request("c")).await.unwrap(), Taken::Empty { ready: 0 }, "of the earlier template");
    ready(&*store, warming("box-5", &changed, 0), 1).await;
    assert_eq!(take(&*store, &request("c")).await.unwrap().id.to_string(), "box-5");
}

async fn the_same_key_has_the_same_sandbox_and_another_agents_has_its_own(store: Arc<dyn Store>) {
    let demo = store.put_pool(&pool("demo")).await.unwrap();
    for n in 0..4 {
        ready(&*store, warming(&format!("box-{n}"), &demo, n), n).await;
    }
    let agent = |name: &str| Some(format!("spiffe://example.org/agents/{name}").parse().unwrap());
    let key = |key: &str| Some(key.to_owned().try_into().unwrap());
    let first = TakeRequest { idempotency_key: key("k/1"), agent: agent("a"), ..request("claim-1") };
    let taken = take(&*store, &first).await.unwrap();
    let again = TakeRequest { claim: "claim-2".parse().unwrap(), now: at(900), ..first.clone() };
    assert_eq!(store.take(&again).await.unwrap(), Taken::AlreadyTaken(Box::new(taken.clone())));
    for other in [
        TakeRequest { agent: agent("b"), ..first.clone() },
        TakeRequest { agent: None, ..first.clone() },
        TakeRequest { idempotency_key: key("k/2"), ..first.clone() },
    ] {
        assert_ne!(take(&*store, &other).await.unwrap().id, taken.id, "{other:?}");
    }
    let running = store.advance(&taken.id, Input::Bound, Change::default(), at(901)).await.unwrap();
    store.put_pool(&Pool { draining: true, ..demo.clone() }).await.unwrap();
    assert_eq!(
        store.take(&again).await.unwrap(),
        Taken::AlreadyTaken(Box::new(running)),
        "as it is now, even in a drain"
    );

    let mut cold = warming("cold", &demo, 9);
    (cold.pool, cold.claim) = (None, taken.claim.clone());
    let error = store.insert(&cold).await.unwrap_err();
    assert!(matches!(&error, StoreError::AlreadyClaimed(id) if *id == taken.id), "{error}");
    store.advance(&taken.id, Input::ended("terminated", ""), Change::default(), at(902)).await.unwrap();
    store.remove(&taken.id).await.unwrap();
    let cold = store.insert(&cold).await.expect("the key is free when the record is gone");
    assert_eq!(store.take(&again).await.unwrap(), Taken::AlreadyTaken(Box::new(cold)), "a cold spawn has the key, too");
}

async fn of_twenty_takers_none_has_what_another_has(store: Arc<dyn Store>) {
    let demo = store.put_pool(&pool("demo")).await.unwrap();
    for n in 0..200 {
        ready(&*store, warming(&format!("box-{n}"), &demo, n), n).await;
    }
    let takers: Vec<_> = (0..20)
        .map(|taker| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                while let Some(sandbox) = take(&*store, &request(&format!("claim-{taker}-{}", mine.len()))).await {
                    mine.push(sandbox);
                }
                mine
            })
        })
        .collect();
    let mut taken = Vec::new();
    for taker in takers {
        taken.extend(taker.await.unwrap());
    }
    let ids: BTreeSet<_> = taken.iter().map(|sandbox| sandbox.id.clone()).collect();
    assert_eq!((taken.len(), ids.len()), (200, 200), "each at most once, and none left behind");
    for kept in store.sandboxes(&Filter::members(&demo.name, &node())).await.unwrap() {
        let mine = taken.iter().find(|sandbox| sandbox.id == kept.id);
        assert_eq!(mine, Some(&kept), "what a taker was told is what is kept");
    }
}

async fn claims_that_repeat_each_other_at_once_have_one_sandbox(store: Arc<dyn Store>) {
    let demo = store.put_pool(&pool("demo")).await.unwrap();
    for n in 0..10 {
        ready(&*store, warming(&format!("box-{n}"), &demo, n), n).await;
    }
    let takers: Vec<_> = (0..10)
        .map(|n| {
            let store = Arc::clone(&store);
            let key = Some("once".to_owned().try_into().unwrap());
            let request = TakeRequest { idempotency_key: key, ..request(&format!("claim-{n}")) };
            tokio::spawn(async move { store.take(&request).await.unwrap() })
        })
        .collect();
    let (mut new, mut ids) = (0, BTreeSet::new());
    for taker in takers {
        match taker.await.unwrap() {
            Taken::Taken(sandbox) => {
                new += 1;
                ids.insert(sandbox.id)
            }
            Taken::AlreadyTaken(sandbox) => ids.insert(sandbox.id),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!((new, ids.len()), (1, 1), "{ids:?}");
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

async fn claims_are_counted_by_minute(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.count_claims(&demo(), &node(), at(59), 2).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    store.count_claims(&demo(), &node(), at(60), 1).await.unwrap();
    store.count_claims(&demo(), &"node-11".parse().unwrap(), at(60), 7).await.unwrap();
    let first = 1_800_000_000 / 60;
    let minute = |minute, claims| Minute { minute: first + minute, claims };
    assert_eq!(store.claims(&demo(), &node(), 0).await.unwrap(), [minute(0, 20), minute(1, 1)]);
    assert_eq!(store.claims(&demo(), &node(), first + 1).await.unwrap(), [minute(1, 1)]);
    let later = MINUTES_KEPT + 1;
    store.count_claims(&demo(), &node(), at(later * 60), 5).await.unwrap();
    assert_eq!(
        store.claims(&demo(), &node(), 0).await.unwrap(),
        [minute(1, 1), minute(later, 5)],
        "the oldest is forgotten"
    );
}
