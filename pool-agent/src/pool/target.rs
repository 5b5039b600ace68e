//! How many members should wait: by the claims of the last minutes, and what is evicted for it. Pure.

use std::time::Duration;

use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::SandboxId;

use super::template::Scaling;

/// Claims per minute are an average over so many minutes.
const WINDOW: u64 = 5;
/// A member's own greatest age is up to this part shorter than its pool's, in per cent: made at once, they do not go at once.
const SPREAD: u64 = 20;

/// How many claims there were in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minute {
    /// Minutes since 1970.
    pub minute: u64,
    /// Claims, whether they found a member or not.
    pub claims: u64,
}

/// The minute of an instant.
pub fn minute(at: Timestamp) -> u64 {
    at.unix() / 60
}

/// The first minute that [`claims_per_minute`] and [`target`] look at.
pub fn window_start(now: Timestamp) -> u64 {
    minute(now).saturating_sub(WINDOW - 1)
}

/// Claims per minute, over the last four to five minutes.
pub fn claims_per_minute(minutes: &[Minute], now: Timestamp) -> f64 {
    let start = window_start(now);
    let claims: u64 = minutes.iter().filter(|m| (start..=minute(now)).contains(&m.minute)).map(|m| m.claims).sum();
    let seconds = now.unix() - start * 60 + 1;
    claims as f64 * 60.0 / seconds as f64
}

/// How many members should be ready. More claims count at once, fewer only as the average falls: warming takes longer than claiming.
pub fn target(scaling: &Scaling, minutes: &[Minute], now: Timestamp) -> u32 {
    if !scaling.auto_scaling.enabled {
        return scaling.min_ready;
    }
    let of = |wanted: u64| minutes.iter().filter(|m| m.minute == wanted).map(|m| m.claims).sum::<u64>() as f64;
    let this = minute(now);
    let demand = claims_per_minute(minutes, now).max(of(this)).max(this.checked_sub(1).map_or(0.0, of));
    let wanted = (scaling.auto_scaling.headroom * demand).ceil();
    // A float becomes the nearest integer there is.
    (wanted as u32).clamp(scaling.min_ready, scaling.max_ready)
}

/// How long this member may wait, of a pool whose members may wait `max_age`: between 80 and 100 per cent of it, always the same for
/// the same member.
pub fn own_max_age(max_age: Duration, member: &SandboxId) -> Duration {
    let digest = Digest::of(member.to_string().as_bytes());
    let lot = u64::from(u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]));
    let off = max_age.as_millis() as u64 / 100 * SPREAD * lot / u64::from(u16::MAX);
    max_age.saturating_sub(Duration::from_millis(off))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::template::AutoScaling;

    fn scaling(headroom: f64) -> Scaling {
        let auto_scaling = AutoScaling { enabled: true, headroom };
        Scaling { auto_scaling, ..Scaling::fixed(2, 20).unwrap() }
    }

    fn minutes(claims: &[(u64, u64)]) -> Vec<Minute> {
        claims.iter().map(|&(minute, claims)| Minute { minute, claims }).collect()
    }

    /// The end of minute 100.
    const NOW: u64 = 100 * 60 + 59;

    #[test]
    fn the_target_is_headroom_times_claims_per_minute_between_min_and_max() {
        for (claims, headroom, wanted) in [
            (&[][..], 2.0, 2),
            (&[(96, 4), (97, 4), (98, 4), (99, 4), (100, 4)], 2.0, 8),
            (&[(96, 4), (97, 4), (98, 4), (99, 4), (100, 4)], 1.1, 5),
            (&[(96, 4), (97, 4), (98, 4), (99, 4), (100, 4)], 0.0, 2),
            (&[(100, 9)], 1.0, 9),             // a burst counts at once …
            (&[(99, 9)], 1.0, 9),              // … and for a minute …
            (&[(98, 9)], 1.0, 2),              // … and then as an average
            (&[(96, 100), (97, 100)], 0.1, 4), // 40 a minute
            (&[(100, 1000)], 2.0, 20),
            (&[(95, 1000), (101, 1000)], 2.0, 2), // out of the window
            (&[(100, u64::MAX / 2)], 1000.0, 20),
        ] {
            let now = Timestamp::from_unix(NOW);
            assert_eq!(target(&scaling(headroom), &minutes(claims), now), wanted, "{claims:?} × {headroom}");
        }
        let fixed = Scaling::fixed(3, 9).unwrap();
        assert_eq!(target(&fixed, &minutes(&[(100, 1000)]), Timestamp::from_unix(NOW)), 3);
        assert_eq!(target(&scaling(1.0), &[], Timestamp::from_unix(0)), 2);
    }

    #[test]
    fn claims_per_minute_are_an_average_over_the_window() {
        let claims = minutes(&[(96, 10), (97, 20), (98, 15), (99, 16), (100, 15)]);
        let rate = claims_per_minute(&claims, Timestamp::from_unix(NOW));
        assert!((rate - 15.2).abs() < 1e-9, "{rate}");
        // A minute that has just begun does not look like a quiet one.
        let rate = claims_per_minute(&claims[..4], Timestamp::from_unix(100 * 60));
        assert!((rate - 61.0 * 60.0 / 241.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn members_made_at_once_do_not_go_at_once() {
        let max_age = Duration::from_secs(3600);
        let ages: Vec<_> = (0..200).map(|n| own_max_age(max_age, &format!("box-{n}").parse().unwrap())).collect();
        assert!(ages.iter().all(|age| (Duration::from_secs(2880)..=max_age).contains(age)), "{ages:?}");
        for tenth in 0..10 {
            let (from, to) = (2880 + tenth * 72, 2880 + (tenth + 1) * 72);
            let here = ages.iter().filter(|age| (from..to).contains(&age.as_secs())).count();
            assert!((1..60).contains(&here), "{here} of 200 go between {from} and {to} s");
        }
        assert_eq!(own_max_age(max_age, &"box-1".parse().unwrap()), ages[1], "always the same");
    }
}
