//! What every store promises to those who claim.

use std::collections::BTreeSet;

use super::*;
use crate::sandbox::Generation;

pub fn request(claim: &str) -> TakeRequest {
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

pub async fn take(store: &dyn Store, request: &TakeRequest) -> Option<Sandbox> {
    match store.take(request).await.unwrap() {
        Taken::Taken(sandbox) => Some(*sandbox),
        Taken::Empty { .. } => None,
        other => panic!("{other:?}"),
    }
}

pub async fn a_claim_takes_the_oldest_member_that_fits(store: Arc<dyn Store>) {
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

pub async fn nothing_stale_drained_or_of_another_node_is_taken(store: Arc<dyn Store>) {
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

pub async fn the_same_key_has_the_same_sandbox_and_another_agents_has_its_own(store: Arc<dyn Store>) {
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

pub async fn of_twenty_takers_none_has_what_another_has(store: Arc<dyn Store>) {
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

pub async fn claims_that_repeat_each_other_at_once_have_one_sandbox(store: Arc<dyn Store>) {
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

pub async fn claims_are_counted_by_minute(store: Arc<dyn Store>) {
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
