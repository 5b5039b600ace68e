//! JSON that is evidence. serde_json keeps the last of two equal keys where another reader keeps the first, so one text could
//! say two things: here it is refused. Depth is bounded by serde_json (128), size by the caller.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// How much of an error is repeated, in characters.
const SHOWN: usize = 160;

/// Why bytes are not the JSON that was wanted. serde's messages repeat names out of the text: here in one short line without
/// control characters, fit for a terminal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadJson(String);

impl From<serde_json::Error> for BadJson {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        Self(text.chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN).collect())
    }
}

/// Reads JSON in which no object has a key twice, at any depth.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadJson> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    NoKeyTwice.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(serde_json::from_slice(bytes)?)
}

/// Walks a value and keeps nothing of it.
struct NoKeyTwice;

impl<'de> DeserializeSeed<'de> for NoKeyTwice {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoKeyTwice {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(NoKeyTwice)?;
            if let Some(twice) = seen.replace(key) {
                return Err(de::Error::custom(format_args!("key {twice:?} twice in one object")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(NoKeyTwice)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn an_error_is_a_short_line_without_control_characters() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        let text = format!("{{\"\\u001b[2J\\n{}\":1}}", "x".repeat(1000));
        let error = from_slice::<Empty>(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("unknown field `?[2J?xxx") && error.chars().count() <= SHOWN, "{error}");
    }

    #[test]
    fn a_key_stands_once_in_its_object() {
        for (text, good) in [
            (r#"{"a":{"x":1},"b":{"x":[null,true,-1,2.5,"x"]}}"#, true),
            (r#"{"a":1,"a":1}"#, false),
            (r#"{"a":1,"\u0061":2}"#, false), // another spelling, the same key
            (r#"{"a":[{"b":1,"b":2}]}"#, false),
            (r#"{"a":1} {"a":1}"#, false),
            (r#"{"a":1"#, false),
        ] {
            assert_eq!(from_slice::<Value>(text.as_bytes()).is_ok(), good, "{text}");
        }
        assert!(from_slice::<Value>("[".repeat(100_000).as_bytes()).is_err());
    }
}
