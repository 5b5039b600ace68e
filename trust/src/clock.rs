//! Time: what it is now, and instants as our formats write them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How far the clocks of two machines may be apart.
pub const SKEW: Duration = Duration::from_secs(30);

/// Where the time comes from, so that a test can move it.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> SystemTime;

    /// Now, in whole seconds.
    fn timestamp(&self) -> Timestamp {
        self.now().into()
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A whole second of UTC between 1970 and the end of 9999; as text RFC 3339, `2026-11-24T21:36:24Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last second RFC 3339 can write.
    const LAST: u64 = 253_402_300_799;

    /// From seconds since 1970 (JWT's NumericDate); what is beyond the last second becomes the last.
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(Self::LAST))
    }

    /// Seconds since 1970.
    pub fn unix(self) -> u64 {
        self.0
    }

    /// Later, by whole seconds.
    pub fn plus(self, by: Duration) -> Self {
        Self::from_unix(self.0.saturating_add(by.as_secs()))
    }

    /// How much later this is than `earlier`; nothing if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self::from_unix(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

/// The text is no time as we write it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time in UTC and whole seconds, such as 2026-11-24T21:36:24Z")]
pub struct BadTimestamp;

impl FromStr for Timestamp {
    type Err = BadTimestamp;

    fn from_str(text: &str) -> Result<Self, BadTimestamp> {
        let time: Self = humantime::parse_rfc3339(text).map_err(|_| BadTimestamp)?.into();
        // One instant, one text: what is signed and compared has no second spelling.
        if time.to_string() == text { Ok(time) } else { Err(BadTimestamp) }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A clock that a test sets.
#[cfg(test)]
#[derive(Debug)]
pub struct FixedClock(std::sync::Mutex<Timestamp>);

#[cfg(test)]
impl FixedClock {
    /// Stands at `at`.
    pub fn at(at: Timestamp) -> Self {
        Self(std::sync::Mutex::new(at))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        let mut at = self.0.lock().unwrap();
        *at = at.plus(by);
    }
}

#[cfg(test)]
impl Clock for FixedClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.lock().unwrap().unix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_has_one_text() {
        let text = "2026-11-24T21:36:24Z";
        assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        for bad in ["2026-11-24T21:36:24.5Z", "2026-11-24 21:36:24Z", "2026-11-24T21:36:24+00:00", "1764020184", ""] {
            assert_eq!(bad.parse::<Timestamp>(), Err(BadTimestamp), "{bad}");
        }
    }

    #[test]
    fn no_number_is_too_large_to_print() {
        assert_eq!(Timestamp::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::from_unix(u64::MAX).plus(Duration::MAX).to_string(), "9999-12-31T23:59:59Z");
    }
}
