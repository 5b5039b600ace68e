//! The limits of a sandbox's own control group on the host: the hard wall behind what its containers are held to one by one. In a pod it is
//! the sum of its containers' limits, if all of them have one. Pure. Not here: the pod's control group above, which is the kubelet's.

use crate::cgroup::Resources;

/// Beside what its containers have, bytes for gVisor itself: an idle sandbox has some 25 MB, and one that works more.
pub const ROOM: u64 = 128 << 20;
/// Microseconds.
const PERIOD: u64 = 100_000;
/// Stands for no wall.
const NONE: u64 = u64::MAX;

/// Host tasks for a sandbox that may have so many of its own: measured are 20 for gVisor and 2 to 3 for each process. Where they run
/// out gVisor itself cannot go on, so that this is far above what the limit inside lets happen.
pub fn tasks(limit: u64) -> u64 {
    limit.saturating_mul(4).saturating_add(512).min(i64::MAX as u64)
}

/// What a pod's sandbox may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wall {
    /// Bytes. 0 before there was a container.
    memory: u64,
    /// Microseconds in each [`PERIOD`].
    cpu: u64,
}

/// What is known of the sandbox when its wall is moved.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// A client has changed a limit; else a container has come or gone.
    pub updated: bool,
    /// Bytes that are charged to the sandbox.
    pub memory: u64,
}

impl Wall {
    /// For these containers. Memory's comes down only where a client says so and never below what is there: the files of a container that
    /// has ended may stay in a volume of memory, and a wall below them would fall upon the others.
    pub fn moved<'a>(self, containers: impl Iterator<Item = &'a Resources>, now: Now) -> Self {
        let containers: Vec<_> = containers.collect();
        if containers.is_empty() {
            return self;
        }
        let sum = |limit: fn(&Resources) -> Option<u64>| {
            let all: Option<Vec<_>> = containers.iter().map(|one| limit(one)).collect();
            all.map_or(NONE, |all| all.into_iter().fold(0, u64::saturating_add))
        };
        let memory = sum(Resources::memory_limit).saturating_add(ROOM);
        let least = if now.updated { now.memory } else { self.memory };
        let micros = |one: &Resources| {
            let (quota, period) = one.cpu_limit()?;
            u64::try_from(u128::from(quota) * u128::from(PERIOD) / u128::from(period)).ok()
        };
        Self { memory: memory.max(least), cpu: sum(micros) }
    }

    /// What is to be written where another wall stood before.
    pub fn change(self, before: Self) -> Option<Resources> {
        let number = |limit: u64| i64::try_from(limit).unwrap_or(-1);
        let mut change = Resources::default();
        if self.memory != before.memory && (number(self.memory), before.memory) != (-1, 0) {
            change.memory.limit = Some(number(self.memory));
        }
        if self.cpu != before.cpu && (number(self.cpu), before.cpu) != (-1, 0) {
            (change.cpu.quota, change.cpu.period) = (Some(number(self.cpu)), Some(PERIOD));
        }
        (change != Resources::default()).then_some(change)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(memory: i64, quota: i64) -> Resources {
        Resources::parse(&json!({"memory": {"limit": memory}, "cpu": {"quota": quota, "period": 50_000}})).unwrap()
    }

    #[test]
    fn a_wall_is_the_sum_if_all_have_a_limit_and_memorys_comes_down_only_by_an_update() {
        let (mib, room) = (1 << 20, ROOM);
        let came = Now { updated: false, memory: 10 * mib };
        let mut wall = Wall::default();
        for (containers, now, memory, cpu) in [
            (vec![], came, 0, 0),
            (vec![limits(100 << 20, 25_000)], came, 100 * mib + room, 50_000),
            (vec![limits(100 << 20, 25_000), limits(50 << 20, 50_000)], came, 150 * mib + room, 150_000),
            (vec![limits(50 << 20, 50_000)], came, 150 * mib + room, 100_000),
            (vec![limits(60 << 20, 50_000)], Now { updated: true, ..came }, 60 * mib + room, 100_000),
            (vec![limits(20 << 20, -1)], Now { updated: true, memory: 500 * mib }, 500 * mib, NONE),
            (vec![limits(20 << 20, 1), limits(-1, 1)], came, NONE, 4),
            (vec![limits(20 << 20, 1)], came, NONE, 2),
            (vec![limits(i64::MAX, i64::MAX), limits(i64::MAX, i64::MAX)], Now { updated: true, ..came }, NONE, NONE),
        ] {
            wall = wall.moved(containers.iter(), now);
            assert_eq!((wall.memory, wall.cpu), (memory, cpu), "{containers:?}");
        }
    }

    #[test]
    fn only_what_has_changed_is_written() {
        let wall = |memory, cpu| Wall { memory, cpu };
        for (before, after, expected) in [
            (wall(0, 0), wall(5, 7), Some((Some(5), Some(7)))),
            (wall(0, 0), wall(NONE, NONE), None), // nobody has set any
            (wall(5, 7), wall(NONE, 7), Some((Some(-1), None))),
            (wall(5, 7), wall(5, NONE), Some((None, Some(-1)))),
            (wall(5, 7), wall(5, 7), None),
        ] {
            let change = after.change(before);
            assert_eq!(change.map(|change| (change.memory.limit, change.cpu.quota)), expected);
        }
    }

    #[test]
    fn there_are_host_tasks_enough_for_every_limit() {
        for (limit, expected) in [(1, 516), (100, 912), (u64::MAX, i64::MAX as u64)] {
            assert_eq!(tasks(limit), expected);
        }
    }
}
