//! Synthetic addresses against a model that only remembers what happened, under random schedules; and what each limit does.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_secs(10);
const REST: Duration = Duration::from_secs(3);

fn rules(addresses: u32, names: usize) -> Rules {
    let many = NonZeroU32::new(1_000_000).unwrap();
    Rules { hold: HOLD, rest: REST, names, new_names: Rate::new(many, Duration::from_secs(1), many), addresses }
}

fn sandbox(n: u8) -> SandboxKey {
    SandboxKey { namespace: "k8s.io".to_owned(), id: format!("sandbox-{n}") }
}

fn name(n: u8) -> Fqdn {
    Fqdn::parse(&format!("host-{n}.example.com")).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Give(u8, u8),
    Hold(u8, usize),
    Release(usize),
    Forget(u8),
    Wait(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u8, 0..6u8).prop_map(|(s, n)| Step::Give(s, n)),
        4 => (0..4u8, any::<usize>()).prop_map(|(s, at)| Step::Hold(s, at)),
        3 => any::<usize>().prop_map(Step::Release),
        1 => (0..4u8).prop_map(Step::Forget),
        4 => (1..8u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

/// What the model knows of an address: who had it last, for what, and since when it may be lost.
#[derive(Clone, Debug)]
struct Known {
    owner: (u8, u8),
    used: Instant,
    flows: usize,
    forgotten: Option<Instant>,
}

fn keep(kept: &mut HashMap<Ipv4Addr, Given>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Given(given) => kept.insert(given.address, given),
            Change::Freed(address) => kept.remove(&address),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Never shared; stable while in use; a name never moves while its address is in use; not given to anyone soon after;
    /// found by its owner alone.
    #[test]
    fn an_address_is_one_sandboxs_and_one_names_for_as_long_as_it_is_in_use(
        steps in prop::collection::vec(step(), 1..200), start in any::<u32>(),
    ) {
        let mut now = Instant::now();
        let mut pool = Synthetic::new(rules(9, 4), start);
        let mut model: HashMap<Ipv4Addr, Known> = HashMap::new();
        let mut leases: Vec<(Ipv4Addr, u8, Lease)> = Vec::new();
        let mut kept: HashMap<Ipv4Addr, Given> = HashMap::new(); // by whoever starts the next worker
        for step in steps {
            match step {
                Step::Give(s, n) => {
                    let live = |known: &Known, now| known.forgotten.is_none() && (known.flows > 0 || known.used + HOLD > now);
                    let held = model.iter().find(|(_, known)| known.owner == (s, n) && live(known, now)).map(|(at, _)| *at);
                    let names = model.values().filter(|known| known.owner.0 == s && live(known, now)).count();
                    match pool.give(&sandbox(s), &name(n), now) {
                        Ok(at) => {
                            if let Some(held) = held {
                                prop_assert_eq!(at, held, "a name moved while its address was in use");
                            } else if let Some(known) = model.get(&at) {
                                prop_assert!(!live(known, now), "{} was taken from {:?}", at, known.owner);
                                let lost = known.forgotten.unwrap_or(known.used + HOLD);
                                prop_assert!(now >= lost + REST, "{} was given too soon", at);
                            }
                            prop_assert!(held.is_some() || names < 4, "more names than it may have");
                            let flows = if held.is_some() { model[&at].flows } else { 0 };
                            model.insert(at, Known { owner: (s, n), used: now, flows, forgotten: None });
                        }
                        Err(NoAddress::TooMany(4)) => prop_assert!(held.is_none() && names >= 4),
                        Err(NoAddress::NoneLeft) => prop_assert!(held.is_none() && model.len() == 9),
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Step::Hold(s, at) => {
                    let at = address(u32::try_from(at % 9).unwrap());
                    let known = model.get_mut(&at);
                    let live = known.filter(|k| k.owner.0 == s && k.forgotten.is_none() && (k.flows > 0 || k.used + HOLD > now));
                    prop_assert_eq!(pool.find(&sandbox(s), at, now).is_some(), live.is_some());
                    let held = pool.hold(&sandbox(s), at, now);
                    prop_assert_eq!(held.is_some(), live.is_some());
                    if let (Some((found, lease)), Some(known)) = (held, live) {
                        prop_assert_eq!(&*found, &name(known.owner.1));
                        known.flows += 1;
                        leases.push((at, s, lease));
                    }
                }
                Step::Release(which) if !leases.is_empty() => {
                    let (at, s, lease) = leases.swap_remove(which % leases.len());
                    pool.release(lease, now);
                    let known = model.get_mut(&at).unwrap();
                    // A sandbox that was forgotten meanwhile holds nothing any more, whoever has the address now.
                    if known.owner.0 == s && known.forgotten.is_none() && known.flows > 0 {
                        known.flows -= 1;
                        known.used = now;
                    }
                }
                Step::Release(_) => {}
                Step::Forget(s) => {
                    pool.forget(&sandbox(s), now);
                    leases.retain(|(_, owner, _)| *owner != s);
                    for known in model.values_mut().filter(|known| known.owner.0 == s) {
                        let live = known.forgotten.is_none() && (known.flows > 0 || known.used + HOLD > now);
                        (known.flows, known.forgotten) = (0, if live { Some(now) } else { known.forgotten });
                    }
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Restart => {
                    // Flows end with the worker; the addresses in use go on, and count as used now.
                    pool.reclaim(now);
                    keep(&mut kept, pool.changes());
                    let given: Vec<_> = kept.values().cloned().collect();
                    let mut next = Synthetic::new(rules(9, 4), start.wrapping_add(5));
                    next.restore(&given, now);
                    prop_assert_eq!(next.in_use(), pool.in_use());
                    (pool, leases) = (next, Vec::new());
                    model.retain(|_, k| k.forgotten.is_none() && (k.flows > 0 || k.used + HOLD > now));
                    prop_assert_eq!(model.len(), pool.in_use());
                    model.values_mut().for_each(|known| (known.flows, known.used) = (0, now));
                }
            }
            prop_assert!(pool.due.len() <= 9 * 20, "the queue grows with use");
            keep(&mut kept, pool.changes());
        }
    }
}

#[test]
fn addresses_are_of_the_range_and_the_edges_of_it_are_not() {
    for (text, inside) in [
        ("198.17.255.255", false),
        ("198.18.0.0", false),
        ("198.18.0.1", true),
        ("198.19.255.254", true),
        ("198.19.255.255", false),
        ("198.20.0.0", false),
    ] {
        assert_eq!(place(text.parse().unwrap()).map(address).is_some(), inside, "{text}");
    }
}

#[test]
fn of_two_sandboxes_each_finds_only_its_own_addresses() {
    let (mut pool, now) = (Synthetic::new(rules(ADDRESSES, 10), 0), Instant::now());
    let ours = pool.give(&sandbox(1), &name(1), now).unwrap();
    let theirs = pool.give(&sandbox(2), &name(1), now).unwrap();
    assert_ne!(ours, theirs);
    assert!(pool.find(&sandbox(2), ours, now).is_none() && pool.hold(&sandbox(2), ours, now).is_none());
    assert_eq!(*pool.find(&sandbox(2), theirs, now).unwrap(), name(1));
}

#[test]
fn of_the_rested_the_one_that_lost_its_name_first_is_given_first() {
    let (mut pool, start) = (Synthetic::new(rules(3, 10), 0), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let first: Vec<_> = (0..3).map(|n| pool.give(&sandbox(n), &name(n), at(u64::from(n))).unwrap()).collect();
    assert_eq!(pool.give(&sandbox(4), &name(4), at(5)), Err(NoAddress::NoneLeft));
    assert_eq!(pool.give(&sandbox(4), &name(4), at(12)), Err(NoAddress::NoneLeft), "it rests still");
    // What lost its name unnoticed rests from the moment that it is noticed.
    for n in 0..3 {
        assert_eq!(pool.give(&sandbox(4), &name(n), at(20 + u64::from(n))).unwrap(), first[usize::from(n)]);
    }
}

#[test]
fn new_names_have_a_rate_and_known_ones_do_not_count() {
    let one = NonZeroU32::MIN;
    let limited =
        Rules { new_names: Rate::new(one, Duration::from_secs(60), NonZeroU32::new(2).unwrap()), ..rules(9, 9) };
    let (mut pool, now) = (Synthetic::new(limited, 0), Instant::now());
    assert!(pool.give(&sandbox(1), &name(1), now).is_ok());
    assert!(pool.give(&sandbox(1), &name(2), now).is_ok());
    assert_eq!(pool.give(&sandbox(1), &name(3), now), Err(NoAddress::TooFast));
    assert!(pool.give(&sandbox(1), &name(1), now).is_ok());
    assert!(pool.give(&sandbox(2), &name(3), now).is_ok(), "another sandbox has its own rate");
    assert!(pool.give(&sandbox(1), &name(3), now + Duration::from_secs(60)).is_ok());
}

#[test]
fn an_address_in_constant_use_stands_in_the_queue_once() {
    let (mut pool, mut now) = (Synthetic::new(rules(9, 9), 0), Instant::now());
    let at = pool.give(&sandbox(1), &name(1), now).unwrap();
    for _ in 0..1000 {
        now += Duration::from_secs(1);
        let (_, lease) = pool.hold(&sandbox(1), at, now).unwrap();
        pool.release(lease, now);
    }
    assert_eq!(pool.due.len(), 1);
}
