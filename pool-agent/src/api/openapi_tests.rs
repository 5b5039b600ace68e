use std::path::PathBuf;

use super::*;
use crate::api::routes;

/// Says that the file in docs is to be written, and not compared.
const UPDATE: &str = "CRETO_UPDATE_OPENAPI";

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/creto-runtime.openapi.json")
}

/// Members by name, whatever another crate of the build has made of `serde_json::Map`.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members.into_iter().map(|(name, member)| (name, sorted(member))).collect();
            members.into_iter().collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

#[test]
fn the_document_is_what_the_server_says() {
    let document = sorted(document(&routes()));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(file(), serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
    }
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    assert!(
        kept == document,
        "docs/creto-runtime.openapi.json is not what the server says: {UPDATE}=1 cargo test -p creto-runtime the_document_is, and look at the difference"
    );
}

#[test]
fn each_route_is_told_whole_and_once() {
    let (mut ids, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for route in routes() {
        let which = format!("{} {}", route.method, route.path);
        assert!(ids.insert(route.id) && !route.id.is_empty(), "{which}: {:?} is no name of its own", route.id);
        assert!(seen.insert(which.clone()), "{which} is there twice");
        assert!(route.summary.ends_with('.') && !route.answers.is_empty(), "{which}");
        let in_path: BTreeSet<_> =
            route.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')).collect();
        let told: BTreeSet<_> = route.parameters.iter().map(|p| p.name).collect();
        assert!(in_path.is_subset(&told), "{which}: {in_path:?} is not told in {told:?}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_one() {
    let mut document = document(&routes());
    let names: BTreeSet<String> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    let mut used = BTreeSet::new();
    each(&mut document, &mut |reference| {
        let name = reference.strip_prefix(SCHEMAS).unwrap_or_else(|| panic!("{reference} leads away"));
        assert!(names.contains(name), "{reference} leads nowhere");
        used.insert(name.to_owned());
    });
    assert_eq!(names.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new(), "nobody refers to these");
    for name in &names {
        let whole = json!({ "$ref": format!("{SCHEMAS}{name}"), "components": document["components"] });
        jsonschema::validator_for(&whole).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn what_is_read_otherwise_than_it_is_written_has_two_schemas() {
    let schemas = &document(&routes())["components"]["schemas"];
    assert_eq!(schemas["Memory"]["allOf"][0]["type"], "integer");
    assert_eq!(schemas["MemoryInput"]["anyOf"][1]["type"], "string");
    assert_eq!(
        schemas["SandboxSpecInput"]["properties"]["resourceLimits"]["$ref"],
        "#/components/schemas/ResourceLimitsInput"
    );
    assert!(schemas.get("PoolNameInput").is_none(), "one that is read as it is written has one");
}
