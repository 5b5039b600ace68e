//! containerd's bundle, and the one runsc sees: the same spec with paths and grouping in runsc's own terms.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::TaskError;

/// containerd's own annotation that makes a container part of a pod's sandbox; runsc reads it too.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Reads config.json of containerd's bundle; `root_id` is runsc's name of the pod's first container.
pub fn read(bundle: &Path, root_id: &str) -> Result<Value, TaskError> {
    let text = fs::read(bundle.join("config.json")).map_err(|e| TaskError::host("reading config.json", e))?;
    let mut spec: Value = serde_json::from_slice(&text).map_err(|e| TaskError::Invalid(format!("config.json: {e}")))?;
    let Some(path) = spec.pointer("/root/path").and_then(Value::as_str).map(|p| bundle.join(p)) else {
        return Err(TaskError::Invalid("config.json: root.path is missing".into()));
    };
    spec["root"]["path"] = json!(path);
    if let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut) {
        if let Some(key) = annotations.keys().find(|key| key.starts_with("creto.dev/")) {
            return Err(TaskError::Invalid(format!("annotation {key}: not supported by this version")));
        }
        if let Some(sandbox) = annotations.get_mut(SANDBOX_ID) {
            *sandbox = json!(root_id);
        }
    }
    Ok(spec)
}

/// Writes the bundle that runsc sees.
pub fn write(spec: &Value, bundle: &Path) -> Result<(), TaskError> {
    let write = || {
        fs::create_dir_all(bundle)?;
        fs::write(bundle.join("config.json"), spec.to_string())
    };
    write().map_err(|e| TaskError::host("writing the sandbox's bundle", e))
}
