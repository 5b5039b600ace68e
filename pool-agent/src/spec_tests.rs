use serde_json::json;

use super::*;

#[test]
fn an_image_is_enough_and_the_rest_is_what_is_safe() {
    let spec: SandboxSpec = serde_json::from_value(json!({ "image": "python:3.11" })).unwrap();
    assert_eq!(spec, SandboxSpec::of("python:3.11".parse().unwrap()));
    assert_eq!((spec.backend, spec.network, spec.network_policy), (Backend::Gvisor, true, None));
}

#[test]
fn all_that_can_be_asked_is_read_and_printed_again() {
    let asked = json!({
        "image": "registry.example.org:5000/team/app:v1", "backend": "kata", "runscPath": "/opt/runsc", "command": ["sleep", "1"],
        "env": { "A": "b" }, "cwd": "/work", "user": "1000:staff", "networkPolicy": { "rules": [] },
        "resourceLimits": { "memoryBytes": 1_073_741_824, "cpuMillis": 500, "pids": 64 }, "secrets": ["file:db", "command:token"],
        "labels": { "team": "a" }, "network": false, "ttl": "1h", "idleTimeout": "5m", "maxLifetime": "1day",
    });
    let spec: SandboxSpec = serde_json::from_value(asked.clone()).unwrap();
    assert_eq!(spec.network_policy.as_ref().unwrap().to_ref(), PolicyRef::Inline(json!({ "rules": [] })));
    assert_eq!(spec.secrets[1].name(), "token");
    assert_eq!(serde_json::to_value(&spec).unwrap(), asked);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (field, value, why) in [
        ("image", json!("Python"), "lower case"),
        ("backend", json!("runc"), "gvisor"),
        ("runscPath", json!("runsc"), "begins with /"),
        ("cwd", json!("/a/../b"), "no .."),
        ("command", json!([""]), "no program"),
        ("command", json!(["a\u{0}"]), "NUL"),
        ("env", json!({ "A=B": "c" }), "no = in it"),
        ("env", json!({ "": "c" }), "no = in it"),
        ("user", json!("a:b:c"), "USER:GROUP"),
        ("networkPolicy", json!("a/b"), "policy name"),
        ("networkPolicy", json!({ "rules": 1 }), "network policy"),
        ("networkPolicy", json!(7), "network policy"),
        ("resourceLimits", json!({ "memoryBytes": "12" }), "16Mi"),
        ("resourceLimits", json!({ "pids": 0 }), "nonzero"),
        ("resourceLimits", json!({ "memory": 1 }), "memoryBytes"),
        ("secrets", json!(["env:x"]), "file:NAME"),
        ("secrets", json!(["file:x", "command:x"]), "named twice"),
        ("labels", json!({ "a b": "c" }), "label"),
        ("ttl", json!("soon"), "such as 90s"),
        ("colour", json!("red"), "unknown field"),
    ] {
        let mut asked = json!({ "image": "a" });
        asked[field] = value.clone();
        let error = serde_json::from_value::<SandboxSpec>(asked).expect_err(field).to_string();
        assert!(error.contains(why), "{field} {value}: {error}");
    }
    let error =
        serde_json::from_value::<SandboxSpec>(json!({ "image": "a", "env": { "A": "se\u{0}cret" } })).unwrap_err();
    assert!(!error.to_string().contains("cret"), "a value of the environment is never repeated");
}
