//! containerd's bundle, and the one a backend sees.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::TaskError;
use crate::program::{self, Missing};

/// Reads config.json of containerd's bundle.
pub fn read(bundle: &Path) -> Result<Value, TaskError> {
    parse(&fs::read(bundle.join("config.json")).map_err(|e| TaskError::host("reading config.json", e))?, bundle)
}

/// The spec in the config.json of this bundle, its root an absolute path. Pure.
pub fn parse(text: &[u8], bundle: &Path) -> Result<Value, TaskError> {
    let mut spec: Value = serde_json::from_slice(text).map_err(|e| TaskError::Invalid(format!("config.json: {e}")))?;
    let Some(path) = spec.pointer("/root/path").and_then(Value::as_str).map(|p| bundle.join(p)) else {
        return Err(TaskError::Invalid("config.json: root.path is missing".into()));
    };
    spec["root"]["path"] = json!(path);
    Ok(spec)
}

/// The root file system of a spec that `read` has read.
pub fn root(spec: &Value) -> &Path {
    Path::new(spec.pointer("/root/path").and_then(Value::as_str).unwrap_or_default())
}

/// The program that the container is told to run is there, or the error says what is not. A restored container's is in
/// its checkpoint as well.
pub fn find_program(spec: &Value) -> Result<(), Missing> {
    let strings = |pointer: &str| -> Vec<String> {
        let list = spec.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str);
    let (args, env) = (strings("/process/args"), strings("/process/env"));
    let mounts = spec.pointer("/mounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mounts: Vec<_> = mounts.iter().filter_map(|m| m.get("destination")?.as_str()).map(str::to_owned).collect();
    let (Some(program), Some(rootfs)) = (args.first(), text("/root/path")) else { return Ok(()) };
    program::find(Path::new(rootfs), program, &env, text("/process/cwd").unwrap_or("/"), &mounts)
}

/// What is to be mounted from the host is there. runsc would only say that its sandbox did not come up.
pub fn find_mounts(spec: &Value) -> Result<(), TaskError> {
    let mounts = spec.pointer("/mounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for mount in mounts {
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let options = mount.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let bind = text("type") == "bind" || options.iter().any(|o| o == "bind" || o == "rbind");
        if bind && !Path::new(text("source")).exists() {
            let (source, destination) = (text("source"), text("destination"));
            return Err(TaskError::Invalid(format!(
                "mount of {source} at {destination}: there is no {source} on the host"
            )));
        }
    }
    Ok(())
}

/// Writes the config.json that a backend sees.
pub fn write(spec: &Value, bundle: &Path) -> Result<(), TaskError> {
    fs::write(bundle.join("config.json"), spec.to_string()).map_err(|e| TaskError::host("writing config.json", e))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_text(text: &str) -> Result<Value, String> {
        parse(text.as_bytes(), Path::new("/bundle")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_bad_spec_is_named() {
        for (text, expected) in
            [("", "EOF"), ("[]", "root.path"), ("{}", "root.path"), (r#"{"root":"x"}"#, "root.path")]
        {
            let error = parse_text(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// What a client writes when it writes well.
    fn good() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["sh"], "env": ["PATH=/bin", "A=b"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro", "bind"]}],
            "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "linux": {"resources": {"memory": {"limit": 1}}, "namespaces": [{"type": "pid"}]},
        })
    }

    proptest! {
        #[test]
        fn a_spec_is_read_with_an_absolute_root_or_refused(text in prop_oneof![
            crate::arbitrary::altered(good()).prop_map(|spec| spec.to_string()),
            crate::arbitrary::json().prop_map(|spec| spec.to_string()),
            crate::arbitrary::text(),
        ]) {
            match parse_text(&text) {
                Ok(spec) => {
                    let root = spec.pointer("/root/path").and_then(Value::as_str).map(Path::new);
                    prop_assert!(root.is_some_and(Path::is_absolute), "{spec}");
                    let _ = (find_program(&spec), find_mounts(&spec)); // whatever they say, they come back
                }
                Err(error) => prop_assert!(error.starts_with("config.json: "), "{error}"),
            }
        }
    }
}
