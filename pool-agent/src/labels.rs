//! Labels of sandboxes and pools, and what selects by them: Kubernetes' equality form, `a=b,c!=d,e,!f`. Pure.
//! Source: kubernetes.io/docs/concepts/overview/working-with-objects/labels (syntax; equality-based requirements).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name and the longest value, in bytes.
pub(crate) const LONGEST: usize = 63;
/// The longest prefix of a key, in bytes.
pub(crate) const PREFIX_BYTES: usize = 253;
/// One sandbox has at most so many.
pub(crate) const MOST: usize = 64;

/// A sandbox's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// What is no label, or selects by none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label {text:?}: {why}")]
pub struct BadLabel {
    text: String,
    why: &'static str,
}

impl Labels {
    /// By key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = BadLabel;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, BadLabel> {
        if labels.len() > MOST {
            return Err(BadLabel { text: format!("{} labels", labels.len()), why: "a sandbox has at most 64" });
        }
        for (key, value) in &labels {
            check_key(key)?;
            check_value(value)?;
        }
        Ok(Self(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

/// Chooses sandboxes by their labels; the empty one chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    /// As in Kubernetes, also where there is no such label.
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl LabelSelector {
    /// Whether these labels fit.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.get(key).is_some(),
            Requirement::HasNot(key) => labels.get(key).is_none(),
        })
    }
}

impl FromStr for LabelSelector {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(|part| requirement(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn requirement(part: &str) -> Result<Requirement, BadLabel> {
    let pair = |key: &str, value: &str| {
        let (key, value) = (key.trim(), value.trim());
        check_key(key)?;
        check_value(value)?;
        Ok((key.to_owned(), value.to_owned()))
    };
    if let Some((key, value)) = part.split_once("!=") {
        return pair(key, value).map(|(key, value)| Requirement::IsNot(key, value));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return pair(key, value).map(|(key, value)| Requirement::Is(key, value));
    }
    let (absent, key) = match part.strip_prefix('!') {
        Some(key) => (true, key.trim()),
        None => (false, part),
    };
    check_key(key)?;
    Ok(if absent { Requirement::HasNot(key.to_owned()) } else { Requirement::Has(key.to_owned()) })
}

fn check_key(key: &str) -> Result<(), BadLabel> {
    let bad = |why| Err(BadLabel { text: key.to_owned(), why });
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if prefix.is_some_and(|prefix| prefix.len() > PREFIX_BYTES || !prefix.split('.').all(label)) {
        return bad("in front of / stands a domain in lower case");
    }
    if name.is_empty() || !is_word(name) {
        return bad("a key is 1 to 63 letters, digits, - _ and ., the first and the last a letter or digit");
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), BadLabel> {
    match value.is_empty() || is_word(value) {
        true => Ok(()),
        false => Err(BadLabel {
            text: value.to_owned(),
            why: "a value is up to 63 letters, digits, - _ and ., the first and the last a letter or digit",
        }),
    }
}

fn is_word(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LONGEST
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::Is(key, value) => write!(f, "{key}={value}"),
                Requirement::IsNot(key, value) => write!(f, "{key}!={value}"),
                Requirement::Has(key) => f.write_str(key),
                Requirement::HasNot(key) => write!(f, "!{key}"),
            }?;
        }
        Ok(())
    }
}

impl Serialize for LabelSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LabelSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        pairs.try_into().unwrap()
    }

    #[test]
    fn a_selector_chooses_as_in_kubernetes() {
        let box_ = labels(&[("tier", "gold"), ("example.org/team", "a"), ("gpu", "")]);
        for (selector, fits) in [
            ("", true),
            ("tier=gold", true),
            ("tier==gold", true),
            ("tier = gold , gpu", true),
            ("tier=silver", false),
            ("tier!=silver", true),
            ("tier!=gold", false),
            ("nothing!=gold", true),
            ("gpu", true),
            ("!gpu", false),
            ("!nothing", true),
            ("nothing", false),
            ("example.org/team=a,tier=gold", true),
            ("example.org/team=a,tier=silver", false),
            ("gpu=", true),
        ] {
            let parsed: LabelSelector = selector.parse().unwrap();
            assert_eq!(parsed.matches(&box_), fits, "{selector}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{selector}");
        }
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for bad in ["=a", "a=b c", "a=b,", ",", "-a=b", "a_=b", "Example.org/a=b", "a/b/c=d", "a in (b)", "!"] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad}");
        }
        let long = "x".repeat(64);
        for (key, value) in [("", "a"), ("a", "ä"), (&*long, "a"), ("a", &*long)] {
            assert!(Labels::try_from(BTreeMap::from([(key.to_owned(), value.to_owned())])).is_err(), "{key}={value}");
        }
    }
}
