//! What a stranger might write: strategies for the property tests beside each parser.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value};

/// Any JSON value, not deep.
pub fn json() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(text(), inner, 0..4).prop_map(|members| Value::Object(Map::from_iter(members))),
        ]
    })
    .boxed()
}

/// A valid document in which one value, anywhere, is another.
pub fn altered(document: Value) -> BoxedStrategy<Value> {
    let mut places = Vec::new();
    pointers(&document, String::new(), &mut places);
    (prop::sample::select(places), json())
        .prop_map(move |(place, other)| {
            let mut document = document.clone();
            if let Some(value) = document.pointer_mut(&place) {
                *value = other;
            }
            document
        })
        .boxed()
}

fn pointers(value: &Value, at: String, places: &mut Vec<String>) {
    let below = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| pointers(value, below(key), places)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| pointers(value, below(&n.to_string()), places))
        }
        _ => {}
    }
    places.push(at);
}

/// Short text of all alphabets, with what is special somewhere in it.
pub fn text() -> BoxedStrategy<String> {
    prop_oneof!["[a-z0-9]{0,8}", "[ -~]{0,16}", ".{0,8}", "[./~%&=?+:\\-\\\\\"'{}\\[\\]\\x00\\n]{0,12}"].boxed()
}

/// An id or a namespace, as containerd allows them.
pub fn identifier() -> BoxedStrategy<String> {
    "[a-zA-Z0-9]{1,12}([._-][a-zA-Z0-9]{1,12}){0,3}".boxed()
}

/// Bytes of a wire.
pub fn bytes() -> BoxedStrategy<Vec<u8>> {
    vec(any::<u8>(), 0..256).boxed()
}

/// A whole in pieces: what a stream may make of it.
pub fn pieces(whole: Vec<u8>) -> BoxedStrategy<Vec<Vec<u8>>> {
    let length = whole.len();
    vec(0..=length, 0..6)
        .prop_map(move |mut cuts| {
            cuts.extend([0, length]);
            cuts.sort_unstable();
            cuts.windows(2).map(|pair| whole[pair[0]..pair[1]].to_vec()).collect()
        })
        .boxed()
}
