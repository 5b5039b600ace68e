//! A circuit breaker: after so many failures in a row nobody is asked for a while, then one is asked to try. Pure: the clock
//! is the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many failures in a row open it.
    pub failures: u32,
    /// It stays open for this long; then one question is let through.
    pub open: Duration,
}

/// The breaker before one decision point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Questions go through.
    Closed {
        /// The failures since the last answer.
        failures: u32,
    },
    /// None does.
    Open {
        /// Until then.
        until: Instant,
    },
    /// One is under way, on which the rest wait.
    Probing,
}

impl Default for Breaker {
    /// Closed.
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// May a question go through? Whoever is let through must say what came of it (`note`).
    pub fn admit(&mut self, now: Instant) -> bool {
        match *self {
            Self::Closed { .. } => true,
            Self::Open { until } if now < until => false,
            Self::Open { .. } => {
                *self = Self::Probing;
                true
            }
            Self::Probing => false,
        }
    }

    /// Takes note of what came of a question; whether this opened or closed it.
    pub fn note(&mut self, answered: bool, now: Instant, limits: &Limits) -> bool {
        let before = *self;
        *self = match (before, answered) {
            (_, true) => Self::default(),
            (Self::Closed { failures }, false) if failures + 1 < limits.failures => {
                Self::Closed { failures: failures + 1 }
            }
            // Asked before it opened: that it would fail is known.
            (Self::Open { until }, false) => Self::Open { until },
            (Self::Closed { .. } | Self::Probing, false) => Self::Open { until: now + limits.open },
        };
        matches!(before, Self::Closed { .. }) != matches!(self, Self::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { failures: 3, open: Duration::from_secs(5) };

    /// One letter a step. `a`: let through, `r`: refused; `+`: answered, `-`: failed, with `!` where that opens or closes it;
    /// `>`: a second passes.
    #[test]
    fn it_opens_after_so_many_failures_in_a_row_and_closes_by_one_answer() {
        for (what, steps) in [
            ("failures in a row open it", "a- a- a-! r"),
            ("an answer between them starts the count anew", "a- a- a+ a- a- a-! r"),
            ("it stays open for its time", "---! r > > > > r > a"),
            ("one is tried, and the rest are refused", "---! > > > > > a r r"),
            ("the one that is tried closes it", "---! > > > > > a r +! a a"),
            ("or opens it again", "---! > > > > > a - r > > > > r > a"),
            ("a late failure does not prolong it", "a a a a ---! > > - > > > a"),
            ("a late answer closes it: the decision point lives", "a a a a ---! r +! a"),
        ] {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let mut steps = steps.chars().filter(|step| *step != ' ').peekable();
            while let Some(step) = steps.next() {
                match step {
                    'a' => assert!(breaker.admit(now), "{what}"),
                    'r' => assert!(!breaker.admit(now), "{what}"),
                    '>' => now += Duration::from_secs(1),
                    _ => {
                        let changed = breaker.note(step == '+', now, &LIMITS);
                        assert_eq!(changed, steps.next_if_eq(&'!').is_some(), "{what}");
                    }
                }
            }
        }
    }
}
