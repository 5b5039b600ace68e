//! Parts of a spec by their type; one of another type is an error that names it. Absent and null are the same.

use serde_json::{Map, Value};

use crate::error::TaskError;

/// A refusal: the field, what is wrong with it and what to do.
pub fn refuse(field: &str, why: impl std::fmt::Display) -> TaskError {
    TaskError::Invalid(format!("{field}: {why}"))
}

/// An object of the spec, made where there is none. `path` is dotted.
pub fn object<'a>(spec: &'a mut Value, path: &str) -> Result<&'a mut Map<String, Value>, TaskError> {
    let mut here = spec;
    for name in path.split('.') {
        let Value::Object(map) = here else { return Err(refuse(path, "must be in an object")) };
        here = map.entry(name).or_insert(Value::Null);
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
    }
    here.as_object_mut().ok_or_else(|| refuse(path, "must be an object"))
}

/// A list of the spec, if it has one. `path` is dotted.
pub fn list<'a>(spec: &'a mut Value, path: &str) -> Result<Option<&'a mut Vec<Value>>, TaskError> {
    let mut here = spec;
    for name in path.split('.') {
        here = match here {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get_mut(name) {
                Some(value) => value,
                None => return Ok(None),
            },
            _ => return Err(refuse(path, "must be in an object")),
        };
    }
    match here {
        Value::Null => Ok(None),
        Value::Array(list) => Ok(Some(list)),
        _ => Err(refuse(path, "must be a list")),
    }
}

/// The objects of a list; none where there is no list.
pub fn objects<'a>(spec: &'a mut Value, path: &str) -> Result<Vec<&'a mut Map<String, Value>>, TaskError> {
    let items = list(spec, path)?.map(Vec::as_mut_slice).unwrap_or_default();
    items.iter_mut().map(|item| item.as_object_mut().ok_or_else(|| refuse(path, "must be a list of objects"))).collect()
}

/// The strings of a list; none where there is no list.
pub fn strings(spec: &mut Value, path: &str) -> Result<Vec<String>, TaskError> {
    let items = list(spec, path)?.map_or(&[][..], |items| items.as_slice());
    let string = |item: &Value| item.as_str().map(str::to_owned);
    items.iter().map(|item| string(item).ok_or_else(|| refuse(path, "must be a list of strings"))).collect()
}

/// A text of an object, or nothing.
pub fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}
