//! Pools as a model: the real plan, the real phases and a store in memory, over a backend that fails as told and an agent that is killed between any two
//! steps. Thousands of schedules, always the same ones. What the promises are stands in `World::check` and `World::settle`.

mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use world::{Op, Step, World};

fn op() -> impl Strategy<Value = Op> {
    let step = prop::sample::select(vec![
        Step::Create,
        Step::Fence,
        Step::Publish,
        Step::Bind,
        Step::HandOut,
        Step::Destroy,
        Step::Forget,
    ]);
    prop_oneof![
        4 => (1..40_u64).prop_map(Op::Wait),
        5 => Just(Op::Plan),
        12 => (0..64_usize).prop_map(Op::Act),
        24 => (0..64_usize).prop_map(Op::Step),
        8 => prop::option::of(0..4_u8).prop_map(Op::Claim),
        3 => (0..64_usize).prop_map(Op::Done),
        1 => (0..64_usize).prop_map(Op::Dies),
        1 => Just(Op::Killed),
        1 => (0..3_u8).prop_map(Op::Template),
        1 => (0..5_u32, 0..4_u32, any::<bool>(), any::<bool>()).prop_map(|(min, more, auto, aged)| Op::Scale { min, more, auto, aged }),
        1 => any::<bool>().prop_map(Op::Drain),
        2 => (step, any::<bool>()).prop_map(|(step, on)| Op::Fault(step, on)),
    ]
}

#[test]
fn whatever_fails_and_whenever_the_agent_is_killed_no_member_is_lost_leaked_or_handed_out_twice() {
    let config = Config { cases: 3000, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let schedules = prop::collection::vec(op(), 1..200);
    let run = runner.run(&schedules, |schedule| {
        let mut world = World::new();
        for op in &schedule {
            world.apply(op);
            world.check();
        }
        world.settle();
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}
