//! `GET /openapi.json`: what the server says of itself, as OpenAPI 3.1, made of the routes ([`super::route`]) and of the types' own
//! schemas. docs/creto-runtime.openapi.json is the same; a test holds the two together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::route::{Access, Content, Route, Shape, get};

/// Where schemas are, and how they are referred to.
const SCHEMAS: &str = "#/components/schemas/";
/// A schema that reads otherwise than it is written has this behind its name where it is read.
const READ: &str = "Input";
const TOKEN: &str = "agentToken";
const ABOUT: &str = "Sandboxes, warm pools, claims, keys, statements, policies and the audit record of one node. On the socket, \
    /run/creto/pool-agent.sock, root asks and may do all, and no token is needed. Over TCP an operation's x-creto-access says who \
    may: anyone; an agent by a token of its own that is good once; or the operator, who uses the socket. docs/api.md tells more.";

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document(&super::routes()).to_string().into());

pub fn routes() -> Vec<Route> {
    vec![
        get("/openapi.json", serve)
            .named("describe", "This document.")
            .may(Access::Anyone)
            .answers::<Map<String, Value>>(StatusCode::OK, "OpenAPI 3.1."),
    ]
}

async fn serve() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}

/// Of these routes.
pub fn document(routes: &[Route]) -> Value {
    let settings = |settings: SchemaSettings| settings.with(|s| s.definitions_path = "/components/schemas".into());
    let mut read = settings(SchemaSettings::draft2020_12()).into_generator();
    let mut written = settings(SchemaSettings::draft2020_12().for_serialize()).into_generator();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in routes {
        paths.entry(route.path).or_default().insert(route.method.to_owned(), operation(route, &mut read, &mut written));
    }
    let mut paths = json!(paths);
    let schemas = together(read.take_definitions(false), written.take_definitions(false), &mut paths);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "creto-runtime: the agent of a node", "version": "1", "description": ABOUT },
        "servers": [{ "url": "http://127.0.0.1:8080", "description": "api.listen of pool-agent.toml; and the socket" }],
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": { TOKEN: {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "A token of an agent of the node's registry, for this node, good once: creto-runtime-cli agent token."
        } } }
    })
}

fn operation(route: &Route, read: &mut SchemaGenerator, written: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    for parameter in &route.parameters {
        let in_path = route.path.contains(&format!("{{{}}}", parameter.name));
        let place = if in_path { "path" } else { "query" };
        let (what, schema) = (parameter.what, bounded((parameter.shape)(read)));
        parameters.push(json!({
            "name": parameter.name, "in": place, "required": in_path, "description": what, "schema": schema
        }));
    }
    if let Some(shape) = route.query {
        parameters.extend(members(&bounded(shape(read))));
    }
    let mut responses = Map::new();
    for answer in &route.answers {
        let mut said = json!({ "description": answer.what });
        if let Some(content) = &answer.content {
            said["content"] = of(content, written);
        }
        responses.insert(answer.status.as_u16().to_string(), said);
    }
    for (status, codes) in problems(route) {
        responses.insert(status.to_string(), problem(&codes, written));
    }
    let access = match route.access {
        Access::Anyone => "anyone",
        Access::Agent => "agent",
        Access::Operator => "operator",
    };
    let security = if route.access == Access::Agent { json!([{ TOKEN: [] }]) } else { json!([]) };
    let mut said = json!({
        "operationId": route.id, "summary": route.summary, "security": security, "x-creto-access": access,
        "parameters": parameters, "responses": responses
    });
    if let Some(body) = &route.body {
        let content = of(body, read);
        said["requestBody"] =
            json!({ "required": body.shape.is_some_and(|shape| demands(shape, read)), "content": content });
    }
    said
}

/// Whether a body must be sent: one that is not stands for `{}`.
fn demands(shape: Shape, generator: &mut SchemaGenerator) -> bool {
    let schema = shape(generator);
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(SCHEMAS));
    let whole = name.and_then(|name| generator.definitions().get(name)).unwrap_or(schema.as_value());
    whole.get("required").and_then(Value::as_array).is_some_and(|members| !members.is_empty())
}

fn of(content: &Content, generator: &mut SchemaGenerator) -> Value {
    let schema = content.shape.map_or_else(|| json!({}), |shape| json!({ "schema": bounded(shape(generator)) }));
    json!({ content.media: schema })
}

/// What a struct's members are behind `?`.
fn members(schema: &Schema) -> Vec<Value> {
    let required = |name: &String| {
        schema
            .get("required")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().any(|one| one.as_str() == Some(name)))
    };
    let Some(Value::Object(properties)) = schema.get("properties") else { return Vec::new() };
    let member = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let what = schema.as_object_mut().and_then(|schema| schema.remove("description")).unwrap_or_default();
        json!({ "name": name, "in": "query", "required": required(name), "description": what, "schema": given(schema) })
    };
    properties.iter().map(member).collect()
}

/// What stands behind `?` is there or not; it is never `null`.
fn given(mut schema: Value) -> Value {
    if let Some(Value::Array(kinds)) = schema.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            schema["type"] = kind.clone();
        }
    }
    if let Some(members) = schema.as_object_mut() {
        members.retain(|name, value| name != "default" || !value.is_null());
    }
    if let Some(Value::Array(any)) = schema.get_mut("anyOf") {
        any.retain(|one| *one != json!({ "type": "null" }));
        if let [one] = any.as_slice() {
            return one.clone();
        }
    }
    schema
}

/// What may go wrong, by status: what the route says, and what its parts bring about.
fn problems(route: &Route) -> BTreeMap<u16, BTreeSet<&'static str>> {
    let mut all = route.problems.clone();
    all.extend([(429, "rate-limited"), (503, "too-many-callers")]); // over TCP (`super::limits`, `super::places`)
    all.push((431, "head-too-large"));
    if route.path.contains('{') {
        all.extend([(400, "invalid-path"), (404, "no-such-path")]);
    }
    if route.query.is_some() || route.parameters.iter().any(|p| !route.path.contains(&format!("{{{}}}", p.name))) {
        all.push((400, "invalid-query"));
    }
    match &route.body {
        Some(Content { shape: Some(_), .. }) => all.extend([
            (408, "body-timeout"),
            (413, "body-too-large"),
            (415, "unsupported-media-type"),
            (422, "invalid-body"),
        ]),
        Some(Content { shape: None, .. }) => all.extend([(408, "body-timeout"), (415, "unsupported-media-type")]),
        None => {}
    }
    match route.access {
        Access::Anyone => {}
        Access::Agent => all.extend([(401, "identity-rejected"), (403, "identity-rejected")]),
        Access::Operator => all.push((403, "operator-only")),
    }
    let mut by_status: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for (status, code) in all {
        by_status.entry(status).or_default().insert(code);
    }
    by_status
}

fn problem(codes: &BTreeSet<&str>, generator: &mut SchemaGenerator) -> Value {
    let schema = generator.subschema_for::<Problem>();
    let what =
        format!("A problem (RFC 9457) with the code {}.", codes.iter().copied().collect::<Vec<_>>().join(" or "));
    let codes = json!({ "properties": { "code": { "enum": codes } } });
    json!({ "description": what, "content": { "application/problem+json": { "schema": { "allOf": [schema, codes] } } } })
}

/// With an integer's bounds, which its format tells people alone, and without what docstrings have for rustdoc alone.
fn bounded(mut schema: Schema) -> Schema {
    RecursiveTransform(bound).transform(&mut schema);
    RecursiveTransform(plain).transform(&mut schema);
    schema
}

fn plain(schema: &mut Schema) {
    if let Some(Value::String(said)) = schema.get_mut("description") {
        *said = said.replace("[`", "`").replace("`]", "`");
    }
}

fn bound(schema: &mut Schema) {
    let most = match schema.get("format").and_then(Value::as_str) {
        Some("uint16") => json!(u16::MAX),
        Some("uint32") => json!(u32::MAX),
        Some("uint" | "uint64") => json!(u64::MAX),
        _ => return,
    };
    if schema.get("maximum").is_none() {
        schema.insert("maximum".into(), most);
    }
}

/// One set of schemas out of two. What is read as it is written is there once; where `paths` refer to what is not, as to what it is.
fn together(read: Map<String, Value>, written: Map<String, Value>, paths: &mut Value) -> Map<String, Value> {
    let bounded = |all: Map<String, Value>| -> Map<String, Value> {
        let one = |(name, schema): (String, Value)| match Schema::try_from(schema) {
            Ok(schema) => (name, bounded(schema).into()),
            Err(_) => (name, Value::Bool(true)), // never: a generator makes schemas
        };
        all.into_iter().map(one).collect()
    };
    let (read, written) = (bounded(read), bounded(written));
    let mut other: BTreeSet<String> = read
        .iter()
        .filter(|(name, schema)| written.get(*name).is_some_and(|w| w != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    // What refers to one that differs, differs.
    loop {
        let refers = |(name, schema): &(&String, &Value)| {
            let text = schema.to_string();
            written.contains_key(*name)
                && !other.contains(*name)
                && other.iter().any(|one| text.contains(&format!("\"{SCHEMAS}{one}\"")))
        };
        let more: Vec<String> = read.iter().filter(refers).map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            break;
        }
        other.extend(more);
    }
    let rename = |value: &mut Value| {
        each(value, &mut |reference| {
            if let Some(name) = reference.strip_prefix(SCHEMAS).filter(|name| other.contains(*name)) {
                *reference = format!("{SCHEMAS}{name}{READ}");
            }
        })
    };
    for path in paths.as_object_mut().into_iter().flat_map(Map::values_mut) {
        for said in path.as_object_mut().into_iter().flat_map(Map::values_mut) {
            for part in ["parameters", "requestBody"] {
                said.get_mut(part).into_iter().for_each(rename);
            }
        }
    }
    let mut all = written;
    for (name, mut schema) in read {
        rename(&mut schema);
        let name = if other.contains(&name) { format!("{name}{READ}") } else { name };
        all.entry(name).or_insert(schema);
    }
    all
}

/// Hands over each reference in it.
fn each(value: &mut Value, to: &mut impl FnMut(&mut String)) {
    match value {
        Value::Object(members) => members.iter_mut().for_each(|(name, member)| match member {
            Value::String(reference) if name == "$ref" => to(reference),
            member => each(member, to),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| each(item, to)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
