//! A container's config.json in runsc's own terms. Pure.

use serde_json::{Value, json};

/// containerd's own annotation that makes a container part of a pod's sandbox; runsc reads it too.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Names the pod's sandbox as runsc does, and gives it the pod's limits.
pub fn adapt(spec: &mut Value, root_id: &str) {
    if let Some(sandbox) = spec.get_mut("annotations").and_then(|annotations| annotations.get_mut(SANDBOX_ID)) {
        *sandbox = json!(root_id);
    }
    limit_pod(spec);
}

/// A pod's limits come as annotations of its sandbox container, which has no resources of its own.
fn limit_pod(spec: &mut Value) {
    const LIMITS: [(&str, &str, &str); 4] = [
        ("io.kubernetes.cri.sandbox-memory", "memory", "limit"),
        ("io.kubernetes.cri.sandbox-cpu-shares", "cpu", "shares"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "cpu", "quota"),
        ("io.kubernetes.cri.sandbox-cpu-period", "cpu", "period"),
    ];
    if spec.pointer("/annotations/io.kubernetes.cri.container-type").and_then(Value::as_str) != Some("sandbox") {
        return;
    }
    for (key, resource, limit) in LIMITS {
        let value = spec
            .pointer("/annotations")
            .and_then(|all| all.get(key))
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<i64>().ok());
        if let Some(value) = value.filter(|v| *v > 0) {
            set(spec, &["linux", "resources", resource, limit], json!(value));
        }
    }
}

/// Sets a value below objects, which are made where they are missing. Where something else is in the way, runsc will
/// refuse it with its own words.
fn set(spec: &mut Value, path: &[&str], value: Value) {
    let mut at = spec;
    for key in path {
        if at.is_null() {
            *at = json!({});
        }
        let Some(object) = at.as_object_mut() else { return };
        at = object.entry(*key).or_insert(Value::Null);
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pods_annotations_become_the_sandboxs_limits() {
        let adapted = |kind: &str| {
            let mut spec = json!({"annotations": {
                "io.kubernetes.cri.container-type": kind, SANDBOX_ID: "pod",
                "io.kubernetes.cri.sandbox-memory": "1000", "io.kubernetes.cri.sandbox-cpu-quota": "0",
            }});
            adapt(&mut spec, "root");
            spec
        };
        assert_eq!(adapted("sandbox")["linux"]["resources"], json!({"memory": {"limit": 1000}}));
        assert_eq!(adapted("sandbox")["annotations"][SANDBOX_ID], "root");
        assert_eq!(adapted("container").get("linux"), None);
    }

    proptest! {
        #[test]
        fn whatever_a_spec_holds_it_is_adapted_or_left_alone(spec in crate::arbitrary::altered(json!({
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox", SANDBOX_ID: "pod",
                "io.kubernetes.cri.sandbox-memory": "1000", "io.kubernetes.cri.sandbox-cpu-shares": "2",
            },
            "linux": {"resources": {"memory": {"limit": 1}, "cpu": {"shares": 1}}},
        }))) {
            let mut adapted = spec.clone();
            adapt(&mut adapted, "root");
            let sandbox = format!("/annotations/{SANDBOX_ID}");
            let named = spec.pointer(&sandbox).map(|_| json!("root"));
            prop_assert_eq!(adapted.pointer(&sandbox).cloned(), named, "{}", adapted);
        }
    }
}
