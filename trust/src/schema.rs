//! What our words look like, as JSON Schema 2020-12 tells it: for descriptions of interfaces. What a type's parser takes, its schema
//! says, from the same constants; tests hold the two together. Types whose JSON is their fields derive theirs where they are.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::attestation::dsse::{self, Envelope};
use crate::audit::record::{RecordId, Text, Version};
use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::id::{
    AgentId, BackendName, BootId, ClaimId, Grammar, KeyId, Namespace, NodeId, PolicyName, PoolGeneration, PoolName,
    SandboxId, SandboxName, TrustDomain, WorkloadId,
};
use crate::keys::KeyVersion;

/// A schema of a name's own; `$schema` makes it.
macro_rules! schema {
    ($name:ident, $schema:expr) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

fn name(Grammar { pattern, never, longest }: Grammar, what: &str) -> Schema {
    let mut schema = json_schema!({ "type": "string", "description": what, "pattern": pattern, "maxLength": longest });
    if let Some(never) = never {
        schema.insert("not".into(), serde_json::json!({ "pattern": never }));
    }
    schema
}

macro_rules! names {
    ($($name:ident: $what:literal,)+) => { $(schema! { $name, name($name::GRAMMAR, $what) })+ };
}

names! {
    SandboxId: "A sandbox's id, which is its container's at containerd.",
    Namespace: "A containerd namespace.",
    NodeId: "A node, as its operator calls it.",
    BackendName: "What makes a sandbox, such as gvisor.",
    PolicyName: "A network policy of the node's.",
    PoolName: "A pool of sandboxes that wait to be claimed.",
    PoolGeneration: "Which template of its pool a sandbox was made from.",
    SandboxName: "A sandbox as people call it.",
    ClaimId: "One claim of a sandbox.",
    BootId: "One run of a kernel.",
    KeyId: "A key's RFC 7638 SHA-256 thumbprint, base64url.",
    TrustDomain: "The trust domain of a SPIFFE ID.",
    AgentId: "An agent's SPIFFE ID.",
    WorkloadId: "The SPIFFE ID of what runs in a sandbox.",
}
schema! { Digest, json_schema!({ "type": "string", "description": "A SHA-256.", "pattern": "^sha256:[0-9a-f]{64}$" }) }
schema! { Timestamp, json_schema!({
    "type": "string", "description": "A whole second of UTC (RFC 3339).", "format": "date-time",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
}) }
schema! { KeyVersion, json_schema!({
    "type": "string", "description": "What people call a key.", "pattern": "^v[1-9][0-9]*$"
}) }
schema! { Text, json_schema!({ "type": "string", "maxLength": Self::MAX }) }
schema! { Version, json_schema!({ "const": u64::from(Self) }) }
schema! { RecordId, json_schema!({
    "type": "string", "description": "Who wrote the record, and as its how-manieth.",
    "pattern": "^[a-z0-9][a-z0-9-]{0,63}/(0|[1-9][0-9]*)$"
}) }

impl JsonSchema for Envelope {
    fn schema_name() -> Cow<'static, str> {
        "Envelope".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        dsse::Wire::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;
    use std::str::FromStr;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Whether a type's schema and its parser say the same of a text.
    fn agree<T: FromStr<Err: Display> + JsonSchema>(text: &str) -> Result<(), String> {
        let schema = schemars::schema_for!(T);
        let valid = jsonschema::is_valid(schema.as_value(), &json!(text));
        match text.parse::<T>() {
            Ok(_) if !valid => Err(format!("{text:?} parses, and does not fit {schema:?}")),
            Err(error) if valid => Err(format!("{text:?} fits, and does not parse: {error}")),
            _ => Ok(()),
        }
    }

    fn agree_all(text: &str) -> Result<(), String> {
        agree::<SandboxId>(text)?;
        agree::<SandboxName>(text)?;
        agree::<NodeId>(text)?;
        agree::<PolicyName>(text)?;
        agree::<BootId>(text)?;
        agree::<KeyId>(text)?;
        agree::<TrustDomain>(text)?;
        agree::<AgentId>(text)?;
        agree::<WorkloadId>(text)?;
        agree::<Digest>(text)?;
        agree::<KeyVersion>(text)
    }

    #[test]
    fn what_a_schema_says_the_parser_takes_and_nothing_else() {
        let long = "x".repeat(77);
        for text in [
            "a",
            "",
            "a-b_c.9",
            "a--b",
            "-a",
            "a-",
            "..",
            "a\n",
            "ä",
            &long,
            &long[..63],
            &long[..64],
            "0a8d6f7e-3c1b-4f5a-9e2d-7b6c5d4e3f2a",
            "0A8d6f7e-3c1b-4f5a-9e2d-7b6c5d4e3f2a",
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4l",
            "example.org",
            "Example.org",
            &Digest::of(b"").to_string(),
            &Digest::of(b"").hex(),
            "v1",
            "v0",
            "v01",
            "spiffe://example.org/agents/a",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/..a/.../b",
            "spiffe://example.org/./a",
            "spiffe://example.org/a/sandbox/b",
            "spiffe://example.org/sandbox/b",
            "spiffe://example.org/sandbox",
            "spiffe://example.org/a/sandbox/b/c",
        ] {
            agree_all(text).unwrap();
        }
    }

    #[test]
    fn a_time_and_a_records_id_look_as_they_are_written() {
        for now in [0, 1_800_000_000, u64::MAX] {
            agree::<Timestamp>(&Timestamp::from_unix(now).to_string()).unwrap();
        }
        for text in ["2027-01-15T08:00:00+01:00", "2027-01-15", "", "2027-01-15T08:00:00.5Z"] {
            agree::<Timestamp>(text).unwrap();
        }
        let schema = schemars::schema_for!(RecordId);
        for text in ["shim-4711-9f86d081884c7d65/3", "a/0", "a/+7", "a/007", "-a/1", "a", "A/1"] {
            let valid = jsonschema::is_valid(schema.as_value(), &json!(text));
            assert_eq!(RecordId::try_from(text.to_owned()).is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn every_record_fits_what_is_said_of_it() {
        let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
        let schema = settings.into_generator().into_root_schema_for::<crate::audit::AuditRecord>();
        for event in crate::audit::record::tests::one_of_each() {
            let record = serde_json::to_value(crate::audit::record::tests::record(3, event)).unwrap();
            jsonschema::validate(schema.as_value(), &record).unwrap_or_else(|e| panic!("{record}: {e}"));
            let mut other = record.clone();
            other["event"]["type"] = json!("Nothing");
            assert!(!jsonschema::is_valid(schema.as_value(), &other));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))] // each makes eleven validators

        #[test]
        fn near_ids_are_told_alike(text in r"spiffe://[a-zA-Z0-9._:-]{0,4}(/([a-zA-Z0-9._%~-]{0,3}|sandbox)){0,4}") {
            prop_assert_eq!(agree_all(&text), Ok(()));
        }

        #[test]
        fn near_names_are_told_alike(text in r"[a-zA-Z0-9._/ -]{0,12}") {
            prop_assert_eq!(agree_all(&text), Ok(()));
        }
    }
}
