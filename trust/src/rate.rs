//! How often something may happen: so many at once, and so many in the long run (the generic cell rate algorithm, ITU-T
//! I.371: one instant a bucket, no timer).

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What one costs.
    every: Duration,
    /// What may be owed.
    slack: Duration,
}

/// What one of those that are limited owes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    paid: Option<Instant>,
}

impl Rate {
    /// `count` in each `period`, and `burst` at once.
    pub fn new(count: NonZeroU32, period: Duration, burst: NonZeroU32) -> Self {
        let every = period / count.get();
        Self { every, slack: every * (burst.get() - 1) }
    }
}

impl Bucket {
    /// Takes one, if there is one.
    pub fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let owed_from = self.paid.map_or(now, |paid| paid.max(now));
        let within = owed_from.duration_since(now) <= rate.slack;
        if within {
            self.paid = Some(owed_from + rate.every);
        }
        within
    }

    /// How long until there is one; nothing is taken.
    pub fn wait(&self, rate: &Rate, now: Instant) -> Duration {
        self.paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now).saturating_sub(rate.slack))
    }

    /// Whether it is as good as new.
    pub fn is_full(&self, now: Instant) -> bool {
        self.paid.is_none_or(|paid| paid <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u32, burst: u32) -> Rate {
        Rate::new(NonZeroU32::new(count).unwrap(), Duration::from_secs(1), NonZeroU32::new(burst).unwrap())
    }

    #[test]
    fn a_burst_passes_then_one_for_each_interval() {
        let (limit, mut bucket, now) = (rate(10, 3), Bucket::default(), Instant::now());
        for (millis, passes) in [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (100, false),
            (200, true),
            (900, true),
        ] {
            let at = now + Duration::from_millis(millis);
            assert_eq!(bucket.wait(&limit, at).is_zero(), passes, "at {millis} ms");
            assert_eq!(bucket.take(&limit, at), passes, "at {millis} ms");
        }
    }

    proptest! {
        /// In no window pass more than the burst and what the window's length allows.
        #[test]
        fn no_window_holds_more_than_it_may(count in 1..1000u32, burst in 1..50u32, gaps in prop::collection::vec(0..20_000u64, 1..200)) {
            let (limit, start) = (rate(count, burst), Instant::now());
            let (mut bucket, mut now, mut passed) = (Bucket::default(), start, Vec::new());
            for gap in gaps {
                now += Duration::from_micros(gap);
                if bucket.take(&limit, now) {
                    passed.push(now);
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    // One more than exact arithmetic says: an interval is cut to whole nanoseconds.
                    let most = u128::from(burst) + 1 + (*to - *from).as_nanos() * u128::from(count) / 1_000_000_000;
                    prop_assert!((last - first + 1) as u128 <= most);
                }
            }
        }
    }
}
