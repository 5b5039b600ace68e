use std::collections::BTreeMap;

use super::*;
use crate::pool::template::{AutoScaling, Mode, Origin, Scaling, Template};
use crate::spec::SandboxSpec;

const NOW: u64 = 1_000_000;

fn now() -> Timestamp {
    Timestamp::from_unix(NOW)
}

fn pool(min_ready: u32, max_ready: u32) -> Pool {
    let spec = SandboxSpec::of("python:3.11".parse().unwrap());
    Pool {
        name: "demo".parse().unwrap(),
        template: Template { spec, mode: Mode::Hold, readiness: None },
        scaling: Scaling::fixed(min_ready, max_ready).unwrap(),
        draining: false,
        origin: Origin::Api,
        created_at: Timestamp::from_unix(0),
        revision: 1,
    }
}

/// Members that have been in their phase for so many seconds, written `w` (Warming, in hand), `W` (Warming, nobody's), `r` (Ready), `s` (Ready, but stale),
/// `c` (Claimed, in hand), `C` (Claimed, nobody's), `n` (Running), `t` (Terminating, nobody's), `f` (Failed, nobody's); each is named by its place.
fn members(pool: &Pool, written: &[(char, u64)]) -> Vec<Member> {
    let member = |(n, (kind, seconds)): (usize, &(char, u64))| Member {
        id: format!("box-{n}").parse().unwrap(),
        phase: match kind.to_ascii_lowercase() {
            'w' => Phase::Warming,
            'r' | 's' => Phase::Ready,
            'c' => Phase::Claimed,
            'n' => Phase::Running,
            't' => Phase::Terminating,
            _ => Phase::Failed,
        },
        generation: if *kind == 's' { Generation::of(b"another") } else { pool.generation() },
        claimed: matches!(kind.to_ascii_lowercase(), 'c' | 'n'),
        since: Timestamp::from_unix(NOW - seconds),
        in_hand: matches!(kind, 'w' | 'c'),
    };
    written.iter().enumerate().map(member).collect()
}

/// `+3` to warm three, `-1 stale` to evict the one at place 1, `!2 over` to remove the one at place 2.
fn planned(pool: &Pool, written: &[(char, u64)], attempts: &Attempts, drained: bool) -> String {
    let acts = plan(pool, &members(pool, written), &[], attempts, drained, now());
    let warm = acts.iter().filter(|act| **act == Act::Warm).count();
    let place = |id: &SandboxId| id.to_string().replace("box-", "");
    let others = acts.iter().filter_map(|act| match act {
        Act::Warm => None,
        Act::Evict(id, why) => Some(format!("-{} {}", place(id), format!("{why:?}").to_lowercase())),
        Act::Remove(id, why) => Some(format!("!{} {}", place(id), format!("{why:?}").to_lowercase())),
    });
    others.chain((warm > 0).then(|| format!("+{warm}"))).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_pool_gets_what_it_lacks_and_loses_what_it_should_not_have() {
    let (r, w) = (('r', 5), ('w', 5));
    for (min, max, written, acts) in [
        (3, 5, &[][..], "+3"),
        (9, 9, &[], "+4"), // so many at once
        (9, 9, &[w, w, w], "+1"),
        (3, 5, &[r, w], "+1"),
        (3, 5, &[r, r, r], ""),
        (3, 5, &[r, r, r, r, r], ""), // spawned beside: up to the maximum
        (3, 5, &[r; 6], "-0 excess"),
        (0, 5, &[], ""),
        // What is claimed is not missed twice, and does not stand in the way.
        (3, 3, &[('c', 1), ('n', 1), r, r], "+1"),
        (2, 2, &[('n', 1); 40], "+2"),
        // Stale ones go at once, whatever is left.
        (2, 5, &[('s', 5), ('s', 5), ('w', 1)], "-0 stale, -1 stale, +1"),
        // What nobody works at any more.
        (1, 5, &[('W', 1), r], "!0 interrupted"),
        (1, 5, &[('C', 29), ('C', 30), r], "!1 interrupted"),
        (1, 5, &[('t', 1), ('f', 1), r], "!0 over, !1 over"),
    ] {
        assert_eq!(planned(&pool(min, max), written, &Attempts::default(), false), acts, "{min} to {max}: {written:?}");
    }
}

#[test]
fn what_cannot_be_taken_down_counts_so_nothing_piles_up() {
    let stuck = [('t', 100); 5];
    for (written, acts) in [
        ([&stuck[..], &[('f', 9)]].concat(), "+1"), // 2 + 4 + 1 may be there: of them 6 are
        ([&stuck[..], &[('f', 9), ('w', 1)]].concat(), ""),
    ] {
        let mut pool = pool(2, 3);
        pool.scaling.max_warming = 4;
        let planned = planned(&pool, &written, &Attempts::default(), false);
        let warm = planned.split(", ").find(|act| act.starts_with('+')).unwrap_or_default();
        assert_eq!(warm, acts, "{planned}");
    }
}

#[test]
fn the_old_go_as_the_new_come() {
    let mut pool = pool(3, 4);
    pool.scaling.max_age = Some(Duration::from_secs(1000));
    let (old, new) = (('r', 2000), ('r', 10));
    for (written, acts) in [
        (&[old, old, old][..], "+3"), // none goes before another is there
        (&[old, old, old, new], "-0 aged, +2"),
        (&[old, old, new, new], "-0 aged, +1"),
        (&[new, new, new, old], "-3 aged"),
        (&[('r', 500), ('r', 700), ('r', 799)], ""), // none is shorter than four fifths of it
    ] {
        assert_eq!(planned(&pool, written, &Attempts::default(), false), acts, "{written:?}");
    }
}

#[test]
fn a_pool_that_follows_demand_shrinks_gradually_and_not_at_once() {
    let mut pool = pool(2, 50);
    pool.scaling.auto_scaling = AutoScaling { enabled: true, headroom: 1.0 };
    let none = Attempts::default();
    assert_eq!(planned(&pool, &[('r', 59); 30], &none, false), "", "the next claims may want them");
    assert_eq!(planned(&pool, &[('r', 60); 30], &none, false), "-0 excess, -1 excess, -10 excess");
    assert_eq!(planned(&pool, &[('r', 60); 3], &none, false), "-0 excess");
    assert_eq!(planned(&pool, &[('r', 60); 2], &none, false), "");
}

#[test]
fn in_a_drain_nothing_is_made_and_what_waits_goes() {
    let written = [('r', 5), ('s', 5), ('n', 5), ('w', 5), ('f', 5)];
    let gone = "!4 over, -1 stale, -0 draining";
    assert_eq!(planned(&pool(3, 5), &written, &Attempts::default(), true), gone, "of the node");
    let pool = Pool { draining: true, ..pool(3, 5) };
    assert_eq!(planned(&pool, &written, &Attempts::default(), false), gone, "of the pool");
}

#[test]
fn after_a_failure_one_attempt_is_made_and_after_the_next_later() {
    let mut attempts = Attempts::default();
    attempts.failed("image-not-found", now(), now());
    assert_eq!(planned(&pool(3, 5), &[], &attempts, false), "");
    let mut earlier = Attempts::default();
    earlier.failed("image-not-found", Timestamp::from_unix(NOW - 1), Timestamp::from_unix(NOW - 1));
    assert_eq!(planned(&pool(3, 5), &[], &earlier, false), "+1");
    assert_eq!(planned(&pool(3, 5), &[('w', 1)], &earlier, false), "", "one at a time");
}

#[test]
fn an_hour_of_a_bad_image_is_a_bounded_number_of_attempts() {
    let pool = pool(20, 50);
    let (mut attempts, mut causes) = (Attempts::default(), BTreeMap::<&str, u32>::new());
    for second in 0..3600 {
        let at = Timestamp::from_unix(NOW + second);
        for act in plan(&pool, &[], &[], &attempts, false, at) {
            assert_eq!(act, Act::Warm);
            *causes.entry("image-not-found").or_default() += 1;
            attempts.failed("image-not-found", at, at);
        }
    }
    assert!((60..=75).contains(&causes["image-not-found"]), "{causes:?}");
}
