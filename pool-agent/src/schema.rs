//! What the words of a request look like, as JSON Schema 2020-12 tells it: for the description of the API. What a type's parser takes
//! its schema says, from the parser's own constants; tests hold the two together. Types whose JSON is their fields derive theirs.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};
use trust::id::PolicyName;

use crate::image::{ImageRef, TAG_BYTES};
use crate::labels::{self, LabelSelector, Labels};
use crate::ledger::When;
use crate::quantity::{self, Cpus, Memory};
use crate::sandbox::{Generation, IdempotencyKey};
use crate::span;
use crate::spec::{AbsolutePath, MOST_SECRETS, MOST_WORDS, NetworkPolicy, SECRET_BYTES, SecretRef, USER_BYTES, User};

/// Text without a NUL.
const NO_NUL: &str = r"^[^\u0000]*$";
/// A policy that is given and not named; docs/network-policy.schema.json, which its parser is tested by.
const POLICY: &str = include_str!("../../docs/network-policy.schema.json");
/// How it is called among the schemas.
const POLICY_NAME: &str = "NetworkPolicyDocument";

/// A span of time; for fields of [`std::time::Duration`].
pub struct Span;

/// A schema with this name; `$schema` makes it.
macro_rules! schema {
    ($name:ident, |$generator:pat_param| $schema:expr) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema! { Span, |_| {
    let (digits, fraction, units) = (span::DIGITS, span::FRACTION, span::UNITS.join("|"));
    let part = format!(r"[0-9]{{1,{digits}}}(\.[0-9]{{1,{fraction}}})? ?({units})");
    json_schema!({
        "type": "string", "description": "A span of time, at most 100 years.", "maxLength": span::TEXT_BYTES,
        "pattern": format!("^(0|({part} ?)*{part})$"), "examples": ["90s", "1h 30m"]
    })
} }
schema! { When, |generator| {
    let span = Span::json_schema(generator);
    let ago = span.get("pattern").and_then(Value::as_str).unwrap_or_default().replace(")$", ")( ago)?$");
    json_schema!({
        "type": "string", "description": "An instant (RFC 3339, UTC), or how long ago.", "examples": ["2026-11-24T21:36:24Z", "1h"],
        "anyOf": [{ "format": "date-time", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$" }, { "pattern": ago }]
    })
} }
schema! { Generation, |_| json_schema!({
    "type": "string", "description": "A digest of a pool's template.", "pattern": format!("^[0-9a-f]{{{}}}$", Self::DIGITS)
}) }
schema! { IdempotencyKey, |_| json_schema!({
    "type": "string", "description": "By which a caller may ask again for what it asked before.",
    "pattern": "^[!-~]+$", "maxLength": Self::LONGEST
}) }
schema! { AbsolutePath, |_| json_schema!({
    "type": "string", "description": "A path from the root.", "pattern": r"^/[^\u0000]*$", "not": { "pattern": r"/\.\.(/|$)" }
}) }
schema! { User, |_| {
    let part = format!("[!-9;-~]{{1,{USER_BYTES}}}"); // what is visible in ASCII, without the colon
    json_schema!({ "type": "string", "description": "USER or USER:GROUP, names or numbers.", "pattern": format!("^{part}(:{part})?$") })
} }
schema! { SecretRef, |_| {
    let name = json!({ "maxLength": "command:".len() + SECRET_BYTES, "pattern": "^command:[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$" });
    let file = json!({ "maxLength": "file:".len() + SECRET_BYTES, "pattern": "^file:[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$" });
    json_schema!({ "type": "string", "description": "A secret by its name, never its value.", "anyOf": [file, name] })
} }
schema! { ImageRef, |_| {
    let label = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?";
    let registry = format!(r"({label}(\.{label})*|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?/");
    let part = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*";
    let (tag, digest) = (TAG_BYTES - 1, "@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})");
    json_schema!({
        "type": "string", "description": "NAME, NAME:TAG or NAME@DIGEST, as docker has it.", "examples": ["python:3.11"],
        "pattern": format!(r"^({registry})?{part}(/{part})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{tag}}})?({digest})?$")
    })
} }
schema! { Labels, |_| json_schema!({
    "type": "object", "maxProperties": labels::MOST,
    "description": format!("As in Kubernetes; what stands in front of a key's / has at most {} bytes.", labels::PREFIX_BYTES),
    "propertyNames": { "pattern": format!("^{}$", label_key()) },
    "additionalProperties": { "type": "string", "pattern": format!("^({})?$", label_word()) }
}) }
schema! { LabelSelector, |_| {
    let (key, value) = (label_key(), label_word());
    let one = format!(" *({key} *(==?|!=) *({value})?|!? *{key}) *");
    json_schema!({
        "type": "string", "description": "As Kubernetes' equality-based selectors.", "examples": ["tier=gold,team!=a"],
        "pattern": format!("^( *|{one}(,{one})*)$")
    })
} }
schema! { Memory, |generator| {
    let number = json!({ "type": "integer", "minimum": quantity::LEAST_MEMORY, "maximum": i64::MAX });
    let units = quantity::UNITS.map(|(unit, _)| unit).join("|");
    amount(generator, "Memory in bytes, or as 512Mi.", number, format!("^[0-9]+({units})?$"))
} }
schema! { Cpus, |generator| {
    let number = json!({ "type": "integer", "minimum": quantity::LEAST_CPU, "maximum": quantity::MOST_CPU });
    amount(generator, "Thousandths of a processor; as text 500m, 0.5 or 2.", number, r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$".into())
} }
schema! { NetworkPolicy, |generator| {
    let named = generator.subschema_for::<PolicyName>();
    json_schema!({
        "description": "What a sandbox may connect to: a policy of the node's by its name, or one that is given.",
        "anyOf": [named, document(generator)]
    })
} }

/// Written as a number; read as a text too.
fn amount(generator: &SchemaGenerator, what: &str, number: Value, text: String) -> Schema {
    match generator.contract().is_serialize() {
        true => json_schema!({ "description": what, "allOf": [number] }),
        false => json_schema!({ "description": what, "anyOf": [number, { "type": "string", "pattern": text }] }),
    }
}

fn label_word() -> String {
    format!("[A-Za-z0-9]([A-Za-z0-9._-]{{0,{}}}[A-Za-z0-9])?", labels::LONGEST - 2)
}

fn label_key() -> String {
    let label = "[a-z0-9]([a-z0-9-]*[a-z0-9])?";
    format!(r"({label}(\.{label})*/)?{}", label_word())
}

/// A policy as its own schema has it, with that schema's definitions among ours.
fn document(generator: &mut SchemaGenerator) -> Schema {
    let path = generator.settings().definitions_path.trim_matches('/').to_owned();
    let reference = format!("#/{path}/{POLICY_NAME}");
    if !generator.definitions().contains_key(POLICY_NAME) {
        let text = POLICY.replace("#/$defs/", &format!("{reference}-"));
        let mut schema: Value = serde_json::from_str(&text).unwrap_or_default(); // a test reads it
        let mut parts = serde_json::Map::new();
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("$schema");
            schema.remove("$id");
            if let Some(Value::Object(defs)) = schema.remove("$defs") {
                parts.extend(defs.into_iter().map(|(name, part)| (format!("{POLICY_NAME}-{name}"), part)));
            }
        }
        generator.definitions_mut().extend(parts);
        generator.definitions_mut().insert(POLICY_NAME.into(), schema);
    }
    json_schema!({ "$ref": reference })
}

/// A policy as it is written; for [`egress::policy::Document`], which is not ours to describe.
pub struct PolicyDocument;

impl JsonSchema for PolicyDocument {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        POLICY_NAME.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        document(generator)
    }
}

/// Of `spec::words`.
pub fn command(_: &mut SchemaGenerator) -> Schema {
    let word = json!({ "type": "string", "pattern": NO_NUL });
    let program = json!({ "type": "string", "pattern": NO_NUL, "minLength": 1 });
    json_schema!({ "type": "array", "maxItems": MOST_WORDS, "prefixItems": [program], "items": word })
}

/// Of `spec::environment`.
pub fn environment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": MOST_WORDS, "propertyNames": { "minLength": 1, "pattern": r"^[^=\u0000]*$" },
        "additionalProperties": { "type": "string", "pattern": NO_NUL }
    })
}

/// Of `spec::secrets`.
pub fn secrets(generator: &mut SchemaGenerator) -> Schema {
    let secret = generator.subschema_for::<SecretRef>();
    json_schema!({ "type": "array", "maxItems": MOST_SECRETS, "items": secret })
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
