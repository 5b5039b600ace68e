//! What a spec gives a workload, in texts that two specs can be compared by: a hardened spec never gives more. For tests
//! and fuzzing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{files, process};

fn list<'a>(spec: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    spec.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Capabilities, namespaces of others, devices and writable mounts.
pub fn given(spec: &Value) -> BTreeSet<String> {
    let capability = |set: &str| -> Vec<String> {
        let names = list(spec, &format!("/process/capabilities/{set}")).filter_map(Value::as_str);
        let known = names.filter_map(crate::backend::gvisor::capabilities::known);
        known.map(|(_, name)| format!("{set} {name}")).collect()
    };
    let path = |space: &Value| space.get("path").map(|path| format!("namespace {} {path}", space["type"]));
    let writable = list(spec, "/mounts").filter_map(Value::as_object).filter(|mount| files::is_writable(mount));
    let place = |mount: &serde_json::Map<String, Value>| {
        format!("mount {:?} {:?}", mount.get("source"), mount.get("destination"))
    };
    let capabilities = process::SETS.iter().flat_map(|set| capability(set));
    let devices = ["/linux/devices", "/linux/resources/devices"].into_iter().flat_map(|at| list(spec, at));
    let namespaces = list(spec, "/linux/namespaces").filter(|space| space.is_object()).filter_map(path);
    capabilities
        .chain(namespaces)
        .chain(devices.map(|device| format!("device {device}")))
        .chain(writable.map(place))
        .collect()
}
