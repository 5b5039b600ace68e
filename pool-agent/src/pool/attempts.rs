//! When a pool may try again to make members: exponential back-off per cause, and a circuit breaker. A bad image makes one attempt a
//! minute and no storm; the first attempts follow fast. Pure. Not here: which causes there are (`SpawnError::code`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trust::clock::Timestamp;

/// After the first failure; doubled with each further one …
const FIRST: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(60);

/// What has failed since members were last made. Times are whole seconds, as the records' are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(BTreeMap<String, Failures>);

/// Failures by one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// Attempts that failed, one after the other; of several at once only one is counted.
    pub count: u32,
    /// When the last one failed.
    pub at: Timestamp,
}

/// How many attempts may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// As many as are wanted.
    Free,
    /// One, if none is under way: something has failed, and it may be over.
    One,
    /// None before this.
    NotBefore(Timestamp),
}

impl Attempts {
    /// An attempt that began at `began` has failed. One that began before another failure by this cause was known tells nothing new.
    pub fn failed(&mut self, cause: &str, began: Timestamp, now: Timestamp) {
        match self.0.get_mut(cause) {
            Some(failures) if began < failures.at => {}
            Some(failures) => *failures = Failures { count: failures.count.saturating_add(1), at: now },
            None => {
                self.0.insert(cause.to_owned(), Failures { count: 1, at: now });
            }
        }
    }

    /// One was made: whatever it was, it is over.
    pub fn succeeded(&mut self) {
        self.0.clear();
    }

    /// What may begin now.
    pub fn allowance(&self, now: Timestamp) -> Allowance {
        let next = self.0.values().map(|failures| failures.at.plus(wait(failures.count))).max();
        match next {
            None => Allowance::Free,
            // Back in time goes a clock that was set: then the wait is at most the longest one from now.
            Some(next) if now < next && next <= now.plus(LONGEST) => Allowance::NotBefore(next),
            Some(_) => Allowance::One,
        }
    }

    /// By cause, for people.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Failures)> {
        self.0.iter().map(|(cause, failures)| (&**cause, *failures))
    }
}

/// 1 s, 2 s, 4 s … 60 s.
fn wait(count: u32) -> Duration {
    let doubled = 1_u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST.saturating_mul(doubled).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(1000 + seconds)
    }

    #[test]
    fn a_bad_image_makes_one_attempt_a_minute() {
        let mut attempts = Attempts::default();
        let mut begun = Vec::new();
        for second in 0..600 {
            match attempts.allowance(at(second)) {
                Allowance::NotBefore(_) => {}
                Allowance::Free | Allowance::One => {
                    begun.push(second);
                    attempts.failed("image-not-found", at(second), at(second));
                }
            }
        }
        assert_eq!(begun, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]);
    }

    #[test]
    fn attempts_that_fail_together_count_as_one() {
        let mut attempts = Attempts::default();
        attempts.failed("timeout", at(0), at(10));
        attempts.failed("timeout", at(1), at(11));
        attempts.failed("timeout", at(9), at(12));
        assert_eq!(attempts.allowance(at(10)), Allowance::NotBefore(at(11)));
        assert_eq!(attempts.allowance(at(11)), Allowance::One);
        attempts.failed("timeout", at(11), at(20));
        assert_eq!(attempts.allowance(at(20)), Allowance::NotBefore(at(22)));
    }

    #[test]
    fn the_slowest_cause_counts_and_a_success_ends_them_all() {
        let mut attempts = Attempts::default();
        for n in 0..4 {
            attempts.failed("image-not-found", at(n), at(n));
        }
        attempts.failed("timeout", at(5), at(5));
        assert_eq!(attempts.allowance(at(6)), Allowance::NotBefore(at(11)));
        let shown: Vec<_> = attempts.iter().map(|(cause, failures)| (cause, failures.count)).collect();
        assert_eq!(shown, [("image-not-found", 4), ("timeout", 1)]);
        attempts.succeeded();
        assert_eq!(attempts.allowance(at(6)), Allowance::Free);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_a_pool() {
        let mut attempts = Attempts::default();
        attempts.failed("timeout", at(5000), at(5000));
        assert_eq!(attempts.allowance(at(0)), Allowance::One);
        assert_eq!(wait(u32::MAX), LONGEST);
    }
}
