//! Spans of time as people write them, `90s`, `1h 30m`, at most 100 years. Pure. A stranger may write them, so what humantime reads is
//! bounded before it reads it: it panics where a sum of units overflows by a fraction (2.4).

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

/// The longest text, in bytes.
pub(crate) const TEXT_BYTES: usize = 100;
/// The longest number in it, in digits; behind its point there may be [`FRACTION`].
pub(crate) const DIGITS: usize = 9;
/// The longest fraction, in digits.
pub(crate) const FRACTION: usize = 3;
/// What humantime knows, the longer ones first.
pub(crate) const UNITS: [&str; 40] = [
    "nanos", "nsec", "ns", "usec", "us", "millis", "msec", "ms", "seconds", "second", "secs", "sec", "s", "minutes",
    "minute", "mins", "min", "months", "month", "m", "hours", "hour", "hrs", "hr", "h", "days", "day", "d", "weeks",
    "week", "wks", "wk", "w", "M", "years", "year", "yrs", "yr", "y", "µs",
];
const MOST: Duration = Duration::from_secs(100 * 31_557_600);

/// The text is no span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no span of time: give such as 90s, 5m or 1h 30m, at most 100 years")]
pub struct BadSpan(String);

/// Reads a span.
pub fn parse(text: &str) -> Result<Duration, BadSpan> {
    let bad = || BadSpan(text.chars().take(TEXT_BYTES).collect());
    if text.len() > TEXT_BYTES || text != "0" && !is_bounded(text) {
        return Err(bad());
    }
    humantime::parse_duration(text).ok().filter(|span| *span <= MOST).ok_or_else(bad)
}

/// Whether it is numbers and units, and no number is too long. Whether it is a span, humantime says.
fn is_bounded(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let Some(behind) = number(rest, DIGITS) else { return false };
        let behind = match behind.strip_prefix('.') {
            Some(fraction) => number(fraction, FRACTION),
            None => Some(behind),
        };
        let Some(behind) = behind else { return false };
        let unit = behind.strip_prefix(' ').unwrap_or(behind);
        let behind = unit.trim_start_matches(|c: char| c.is_alphabetic());
        if behind.len() == unit.len() {
            return false;
        }
        rest = behind.strip_prefix(' ').filter(|rest| !rest.is_empty()).unwrap_or(behind);
    }
    !text.is_empty()
}

/// What stands behind a number of 1 to so many digits.
fn number(text: &str, most: usize) -> Option<&str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=most).contains(&digits).then(|| &text[digits..])
}

/// For serde: as text.
pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*span))
}

/// For serde: from text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// The same where there may be none.
pub mod option {
    use super::*;

    /// For serde: as text.
    pub fn serialize<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => super::serialize(span, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// For serde: from text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse(&text)).transpose().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_span_is_read_as_people_write_it() {
        for (text, millis) in [
            ("0", 0),
            ("90s", 90_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("20 min 17 sec", 1_217_000),
            ("1.5s", 1_500),
            ("100years", 100 * 31_557_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            " ",
            "1",
            "s",
            "-1s",
            "1s ",
            "1s  2s",
            "1 000s",
            "1x",
            "1.s",
            ".5s",
            "1.0001s",
            "0.1ns",
            "soon",
            "101years",
            "1e3s",
            "18446744073709551615s 1000ms",
            "9999999999s",
            &"1s".repeat(51),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_printed_so_that_it_is_read_again(text in r"([0-9]{1,9}(\.[0-9]{1,3})?(ns|us|ms|s|m|h|d|w|M|y)){1,6}") {
            if let Ok(span) = parse(&text) {
                prop_assert_eq!(parse(&humantime::format_duration(span).to_string()), Ok(span));
            }
        }

        #[test]
        fn nothing_panics(text in r"[0-9]{0,24}[ .smhµ]{0,3}[0-9]{0,24}(s|ms|ns|years)?") {
            let _ = parse(&text);
        }
    }
}
