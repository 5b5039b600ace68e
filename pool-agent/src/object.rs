//! What is described as an object is one: serde would take a list for it, its elements in the order of the fields, of which no schema
//! tells.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// For `deserialize_with`.
pub fn only<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let object = Map::<String, Value>::deserialize(deserializer)?;
    T::deserialize(Value::Object(object)).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use crate::api::types::{PoolRequest, SpawnRequest};

    #[test]
    fn a_list_is_no_object_however_well_its_elements_would_fit() {
        let spawn = |spec: &str| serde_json::from_str::<SpawnRequest>(&format!("{{\"spec\":{spec}}}"));
        assert!(spawn(r#"{"image":"busybox","resourceLimits":{"pids":5}}"#).is_ok());
        for spec in [
            r#"["busybox"]"#,
            r#"{"image":"busybox","resourceLimits":[]}"#,
            r#"{"image":"busybox","resourceLimits":[5]}"#,
        ] {
            assert!(spawn(spec).is_err(), "{spec}");
        }
        let pool = |spec: &str, scaling: &str| {
            serde_json::from_str::<PoolRequest>(&format!(
                "{{\"name\":\"p\",\"template\":{{\"spec\":{spec}}},\"scaling\":{scaling}}}"
            ))
        };
        let (spec, scaling) = (r#"{"image":"busybox"}"#, r#"{"minReady":0,"maxReady":1}"#);
        assert!(pool(spec, scaling).is_ok());
        for (spec, scaling) in [
            (r#"["busybox"]"#, scaling),
            (spec, "[0,1]"),
            (spec, r#"{"minReady":0,"maxReady":1,"autoScaling":[true,1.5]}"#),
        ] {
            assert!(pool(spec, scaling).is_err(), "{spec} {scaling}");
        }
    }
}
