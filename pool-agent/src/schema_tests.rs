use std::collections::BTreeMap;

use proptest::prelude::*;
use schemars::schema_for;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;
use crate::api::types::ClaimRequest;
use crate::pool::template::Scaling;
use crate::spec::SandboxSpec;

/// Whether a type's schema and its parser say the same of a value.
fn agree<T: DeserializeOwned + JsonSchema>(value: &Value) -> Result<(), String> {
    agree_by::<T>(schema_for!(T), value)
}

fn agree_by<T: DeserializeOwned>(schema: Schema, value: &Value) -> Result<(), String> {
    let valid = jsonschema::is_valid(schema.as_value(), value);
    match serde_json::from_value::<T>(value.clone()) {
        Ok(_) if !valid => Err(format!("{value} is read, and does not fit {schema:?}")),
        Err(error) if valid => Err(format!("{value} fits, and is not read: {error}")),
        _ => Ok(()),
    }
}

fn span(text: &str) -> Result<(), String> {
    let valid = jsonschema::is_valid(schema_for!(Span).as_value(), &json!(text));
    match crate::span::parse(text) {
        Ok(_) if !valid => Err(format!("{text:?} is read, and does not fit")),
        _ => Ok(()), // 100 years, and what is less than a nanosecond, no pattern knows
    }
}

#[test]
fn what_a_schema_says_is_read_and_nothing_else() {
    let (long, digest) = ("x".repeat(129), format!("sha256:{}", "0f".repeat(32)));
    for text in [
        "",
        "a",
        "0f0f0f0f0f0f0f0f",
        "0F0f0f0f0f0f0f0f",
        "order-7/retry",
        "a b",
        &long,
        &long[..128],
        "/",
        "/a/b",
        "/a/../b",
        "/..",
        "a/b",
        "/a/..b",
        "/a\0",
        "/a\n",
        "root",
        "1000:staff",
        "a:b:c",
        ":",
        "a:",
        &long[..64],
        "file:db",
        "command:a.b-c",
        "file:",
        "file:a--b",
        &format!("file:{}", &long[..76]),
        &format!("file:{}", &long[..77]),
        &format!("command:{}", &long[..77]),
        "python:3.11",
        "python",
        "team/app:v1",
        "localhost:5000/app:1",
        "[::1]:5000/app",
        "Registry/app",
        "Python",
        "python:",
        "python:.x",
        "a//b",
        "a___b",
        &format!("python:{long}"),
        &format!("python:{}", &long[..128]),
        &format!("python:3.11@{digest}"),
        "python@sha256:abc",
        "tier=gold",
        "a=b,c!=d , !e,f",
        "=a",
        ",",
        "a=b,",
        "!",
        "example.org/team=a",
        "Example.org/a=b",
        "a in (b)",
        &format!("a={}", &long[..63]),
        &format!("a={}", &long[..64]),
        "512Mi",
        "1G",
        "Mi",
        "-1",
        "500m",
        "0.5",
        ".5",
        "2",
        "1.2345",
        "policy-1",
        "a/b",
    ] {
        let text = json!(text);
        agree::<Generation>(&text).unwrap();
        agree::<IdempotencyKey>(&text).unwrap();
        agree::<AbsolutePath>(&text).unwrap();
        agree::<User>(&text).unwrap();
        agree::<SecretRef>(&text).unwrap();
        agree::<ImageRef>(&text).unwrap();
        agree::<LabelSelector>(&text).unwrap();
        agree::<NetworkPolicy>(&text).unwrap();
        agree::<Labels>(&json!({ "a": text })).unwrap();
        if let Some(key) = text.as_str() {
            agree::<Labels>(&json!({ key: "" })).unwrap();
        }
    }
    for amount in [
        json!(0),
        json!(10),
        json!(16 << 20),
        json!(1 << 20),
        json!(u64::MAX),
        json!(-1),
        json!(1.5),
        json!("500m"),
        json!(null),
    ] {
        agree::<Cpus>(&amount).unwrap();
        agree::<Memory>(&amount).unwrap();
    }
    for policy in [
        json!({}),
        json!({ "rules": [] }),
        json!({ "rules": [{ "destination": "a.example", "action": "Allow", "ports": [443] }] }),
        json!({ "rules": [{ "destination": "a.example" }] }),
        json!({ "rule": [] }),
        json!(7),
        json!([]),
        json!("{\"rules\":[]}"),
    ] {
        agree::<NetworkPolicy>(&policy).unwrap();
    }
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let written = settings.into_generator().into_root_schema_for::<Memory>();
    assert!(
        jsonschema::is_valid(written.as_value(), &json!(16 << 20))
            && !jsonschema::is_valid(written.as_value(), &json!("16Mi"))
    );
}

#[test]
fn spans_look_as_they_are_read() {
    for text in [
        "0",
        "90s",
        "1h 30m",
        "20 min 17 sec",
        "1.5s",
        "100years",
        "",
        "1",
        "1s ",
        "1s  2s",
        "1x",
        "soon",
        "5µs",
        "1M2w",
    ] {
        span(text).unwrap();
    }
    for text in ["", "1", "1s ", "soon", "1 000s", "9999999999s"] {
        assert!(!jsonschema::is_valid(schema_for!(Span).as_value(), &json!(text)), "{text}");
    }
    for unit in span::UNITS {
        assert!(humantime::parse_duration(&format!("1{unit}")).is_ok(), "{unit}");
    }
}

#[test]
fn times_look_as_they_are_read() {
    for (text, fits) in [
        ("2026-11-24T21:36:24Z", true),
        ("2026-11-24T21:36:24.5Z", true),
        ("1h", true),
        ("90m ago", true),
        ("0", true),
        ("2026-11-24", false),
        ("yesterday", false),
        ("", false),
    ] {
        assert_eq!(jsonschema::is_valid(schema_for!(When).as_value(), &json!(text)), fits, "{text}");
        assert_eq!(text.parse::<When>().is_ok(), fits, "{text}");
    }
}

#[test]
fn bodies_look_as_they_are_read() {
    let many: Vec<String> = vec!["a".into(); MOST_WORDS + 1];
    for claim in [
        json!({}),
        json!({ "command": ["sh", ""], "env": { "A": "=" }, "ttl": "1h", "timeout": null, "onEmpty": "wait" }),
        json!({ "command": [""] }),
        json!({ "command": ["a\u{0}"] }),
        json!({ "command": many }),
        json!({ "command": "sh" }),
        json!({ "env": { "": "a" } }),
        json!({ "env": { "A=B": "a" } }),
        json!({ "env": { "A": 1 } }),
        json!({ "secrets": vec!["file:a"; 65] }),
        json!({ "onEmpty": "never" }),
        json!({ "ttl": 7 }),
        json!({ "policy": "web" }),
        json!(7),
    ] {
        agree::<ClaimRequest>(&claim).unwrap();
    }
    for spec in [
        json!({}),
        json!({ "image": "a", "resourceLimits": { "memoryBytes": "1Gi", "pids": 0 } }),
        json!({ "image": "a", "x": 1 }),
    ] {
        agree::<SandboxSpec>(&spec).unwrap();
    }
    for scaling in [
        json!({ "minReady": 1, "maxReady": 3 }),
        json!({ "minReady": 1 }),
        json!({ "minReady": 1, "maxReady": 100_000 }),
        json!({ "minReady": 1, "maxReady": 3, "maxWarming": 0 }),
        json!({ "minReady": 1, "maxReady": 3, "autoScaling": { "headroom": -1 } }),
        json!({ "minReady": 1, "maxReady": 3, "size": 4 }),
    ] {
        agree::<Scaling>(&scaling).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))] // each makes several validators

    #[test]
    fn near_words_are_told_alike(text in r"[a-zA-Z0-9._:/@ \[\]=!,-]{0,10}") {
        let value = json!(text);
        prop_assert_eq!(agree::<User>(&value), Ok(()));
        prop_assert_eq!(agree::<AbsolutePath>(&value), Ok(()));
        prop_assert_eq!(agree::<LabelSelector>(&value), Ok(()));
        prop_assert_eq!(agree::<Labels>(&json!(BTreeMap::from([(text.clone(), text.clone())]))), Ok(()));
        // A registry's rules are more than a pattern knows, so one way alone.
        if serde_json::from_value::<ImageRef>(value.clone()).is_ok() {
            prop_assert!(jsonschema::is_valid(schema_for!(ImageRef).as_value(), &value), "{}", text);
        }
    }

    #[test]
    fn near_spans_are_told_alike(text in r"([0-9]{1,10}(\.[0-9]{1,4})?[ ]{0,2}(s|ms|min|x|)[ ]{0,2}){0,3}") {
        prop_assert_eq!(span(&text), Ok(()));
    }
}
