//! The shape in which a policy is written, before anything in it is judged. What is not of this shape is refused by rule and
//! field, as what `parse` refuses is.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use trust::id::PolicyName;

/// The shape.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<PolicyName>,
    #[serde(default, deserialize_with = "rules", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<WrittenRule>,
}

/// A rule as people write it, not yet judged: what can be wrong with a field is found out where the rule can be named.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRule {
    /// Its id; without one its place, from 1.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A name, `*.zone`, an address or a network.
    #[serde(default, deserialize_with = "present")]
    pub destination: Option<String>,
    /// Ports and ranges of them; without any, all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<WrittenPort>>,
    /// `tcp` or `udp`; without one, both.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `Allow`, `Deny` or `RequireAuthz`.
    #[serde(default, deserialize_with = "present")]
    pub action: Option<String>,
    /// Addresses only: special-purpose ranges too.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub allow_special: Option<bool>,
}

/// A field that is there has a value: JSON's null is none.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A port, or a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum WrittenPort {
    /// `443`.
    Number(i64),
    /// `"443"`, `"8000-8080"`.
    Text(String),
}

impl<'de> Deserialize<'de> for WrittenPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = WrittenPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (443) or a range of ports (\"8000-8080\")")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<WrittenPort, E> {
                Ok(WrittenPort::Number(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<WrittenPort, E> {
                Ok(i64::try_from(number).map_or_else(|_| WrittenPort::Text(number.to_string()), WrittenPort::Number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WrittenPort, E> {
                Ok(WrittenPort::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

/// Reads rules one by one, so that a rule of the wrong shape is named by its place.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WrittenRule>, D::Error> {
    struct RulesVisitor;
    impl<'de> Visitor<'de> for RulesVisitor {
        type Value = Vec<WrittenRule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of rules")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<WrittenRule>, A::Error> {
            let mut rules = Vec::new();
            let place = |at: usize| move |e: A::Error| de::Error::custom(format!("rule {}: {e}", at + 1));
            while let Some(Table(rule)) = seq.next_element().map_err(place(rules.len()))? {
                rules.push(rule);
            }
            Ok(rules)
        }
    }
    deserializer.deserialize_seq(RulesVisitor)
}

/// A table, and not a list of its values, which serde would take for one too. Errors name the field that they are in.
pub(super) struct Table<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of fields")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(Fields { map, field: String::new() }))
            }
        }
        deserializer.deserialize_map(TableVisitor(PhantomData)).map(Self)
    }
}

/// The fields of a table, and in which one is.
struct Fields<A> {
    map: A,
    field: String,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(field) = self.map.next_key::<String>()? else { return Ok(None) };
        self.field = field;
        seed.deserialize(self.field.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed).map_err(|e| match self.field.as_str() {
            "rules" => e, // the rule is named already
            field => de::Error::custom(format!("{field}: {e}")),
        })
    }
}
