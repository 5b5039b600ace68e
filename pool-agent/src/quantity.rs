//! Amounts of memory and processor, as people write them. Pure.
//! Source: Kubernetes' resource quantities, of which the forms that people use are read.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// What may stand behind a number of bytes, and what it multiplies it by.
pub(crate) const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];
/// A sandbox cannot start with less, in bytes: the kernel of gVisor alone takes more than half of it.
pub(crate) const LEAST_MEMORY: u64 = 16 << 20;
/// The kernel's scheduler knows no smaller share (CFS: 1 ms of 100 ms), in thousandths of a processor.
pub(crate) const LEAST_CPU: u64 = 10;
/// More than any machine has, in thousandths of a processor.
pub(crate) const MOST_CPU: u64 = 1_000_000;

/// Memory, in bytes; at least 16 MiB. As text `512Mi`, `1G` or bytes; in JSON a number of bytes, or such a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Memory(u64);

/// Processor time, in thousandths of a processor; at least 10. As text `0.5`, `2` or `500m`; in JSON a number of thousandths, or such a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Cpus(u64);

/// The text is no such amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no amount of {of}: {why}")]
pub struct BadQuantity {
    of: &'static str,
    text: String,
    why: &'static str,
}

impl Memory {
    /// So many bytes.
    pub fn from_bytes(bytes: u64) -> Result<Self, BadQuantity> {
        let bad = |why| Err(BadQuantity { of: "memory", text: bytes.to_string(), why });
        match bytes {
            0..LEAST_MEMORY => bad("a sandbox needs at least 16Mi"),
            _ if i64::try_from(bytes).is_err() => bad("more than a kernel can count"),
            _ => Ok(Self(bytes)),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Memory {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = |why| BadQuantity { of: "memory", text: text.to_owned(), why };
        let (number, unit) =
            UNITS.iter().find_map(|(unit, times)| Some((text.strip_suffix(unit)?, *times))).unwrap_or((text, 1));
        let number =
            digits(number).ok_or_else(|| bad("give bytes, or a whole number and Ki, Mi, Gi, Ti, k, M, G or T"))?;
        let bytes = number.checked_mul(unit).ok_or_else(|| bad("more than a kernel can count"))?;
        Self::from_bytes(bytes).map_err(|e| bad(e.why))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4].iter().rev().find(|(_, times)| self.0.is_multiple_of(*times));
        match unit {
            Some((unit, times)) => write!(f, "{}{unit}", self.0 / times),
            None => self.0.fmt(f),
        }
    }
}

impl Cpus {
    /// So many thousandths of a processor.
    pub fn from_millis(millis: u64) -> Result<Self, BadQuantity> {
        match millis {
            LEAST_CPU..=MOST_CPU => Ok(Self(millis)),
            _ => Err(BadQuantity { of: "processors", text: format!("{millis}m"), why: "give 10m to 1000" }),
        }
    }

    /// In thousandths of a processor.
    pub fn millis(self) -> u64 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = |why| BadQuantity { of: "processors", text: text.to_owned(), why };
        let read = || {
            if let Some(millis) = text.strip_suffix('m') {
                return digits(millis);
            }
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            if part.is_empty() || part.len() > 3 {
                return None;
            }
            let thousandths = digits(part)? * 10_u64.pow(3 - part.len() as u32);
            digits(whole)?.checked_mul(1000)?.checked_add(thousandths)
        };
        let millis = read().ok_or_else(|| bad("give processors such as 2 or 0.5, or thousandths such as 500m"))?;
        Self::from_millis(millis).map_err(|e| bad(e.why))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 1000 {
            0 => (self.0 / 1000).fmt(f),
            _ => write!(f, "{}m", self.0),
        }
    }
}

/// A whole number without sign or space.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// As a program or a person may write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "memory: give a number of bytes or a text such as \"512Mi\"";
        match Written::deserialize(deserializer).map_err(|_| de::Error::custom(wanted))? {
            Written::Number(bytes) => Self::from_bytes(bytes).map_err(de::Error::custom),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "processors: give a number of thousandths or a text such as \"0.5\" or \"500m\"";
        match Written::deserialize(deserializer).map_err(|_| de::Error::custom(wanted))? {
            Written::Number(millis) => Self::from_millis(millis).map_err(de::Error::custom),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_people_write_it() {
        for (text, bytes, prints) in [
            ("512Mi", 512 << 20, "512Mi"),
            ("1Gi", 1 << 30, "1Gi"),
            ("1024Mi", 1 << 30, "1Gi"),
            ("536870912", 512 << 20, "512Mi"),
            ("500M", 500_000_000, "500000000"),
            ("1G", 1_000_000_000, "1000000000"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!((memory.bytes(), &*memory.to_string()), (bytes, prints), "{text}");
            assert_eq!(memory.to_string().parse(), Ok(memory));
        }
        for (bad, why) in [
            ("", "give bytes"),
            ("512", "at least 16Mi"),
            ("-1Gi", "give bytes"),
            ("1.5Gi", "give bytes"),
            ("1 Gi", "give bytes"),
            ("512MB", "give bytes"),
            ("99999999Ti", "more than"),
            ("9999999999999999999", "more than"),
        ] {
            let error = bad.parse::<Memory>().expect_err(bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn processors_are_read_as_people_write_them() {
        for (text, millis, prints) in [
            ("0.5", 500, "500m"),
            ("500m", 500, "500m"),
            ("2", 2000, "2"),
            ("1.25", 1250, "1250m"),
            ("0.010", 10, "10m"),
        ] {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!((cpus.millis(), &*cpus.to_string()), (millis, prints), "{text}");
        }
        for bad in ["", "0", "9m", "0.0001", "-1", "1.", ".5x", "1e3", "1001", "18446744073709551615"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn json_has_numbers_and_takes_texts() {
        for json in ["536870912", "\"512Mi\""] {
            assert_eq!(serde_json::from_str::<Memory>(json).unwrap().bytes(), 512 << 20);
        }
        for json in ["500", "\"0.5\""] {
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Cpus>(json).unwrap()).unwrap(), "500");
        }
        let error = serde_json::from_str::<Memory>("true").unwrap_err().to_string();
        assert!(error.contains("512Mi"), "{error}");
    }
}
