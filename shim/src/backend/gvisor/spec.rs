//! A container's config.json in runsc's own terms, and what a checkpoint keeps of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::inside::{self, Version};
use crate::error::TaskError;
use crate::harden::seccomp;

/// containerd's own annotation that makes a container part of a pod's sandbox; runsc reads it too.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// A checkpoint's note, beside runsc's files, of what its process was started with.
const SAVED_ARGS: &str = "creto-args.json";

/// Names the pod's sandbox as runsc does, gives the container what it is counted and held by, and says in runsc's words what it has others
/// for. `is_root`: the sandbox is made for it.
pub fn adapt(spec: &mut Value, root_id: &str, inside: Version, is_root: bool) -> Result<(), TaskError> {
    if let Some(sandbox) = spec.get_mut("annotations").and_then(|annotations| annotations.get_mut(SANDBOX_ID)) {
        *sandbox = json!(root_id);
    }
    weigh_pod(spec);
    inside::prepare(spec, inside, is_root);
    own_user_namespace(spec);
    if let Some(profile) = spec.get_mut("linux").and_then(|linux| linux.get_mut("seccomp")) {
        *profile = seccomp::for_runsc(profile)?.unwrap_or_default();
    }
    for mount in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::Array(options)) = mount.get_mut("options") {
            *options = mount_options(options);
        }
    }
    Ok(())
}

/// A pod's user namespace comes by its path, which runsc's processes cannot join: they have threads by then (setns(2)). One with the same maps
/// shows the same ids; the network, which belongs to the pod's, is joined before.
fn own_user_namespace(spec: &mut Value) {
    let is_mapped =
        |spec: &Value, field: &str| spec.pointer(field).and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    if !(is_mapped(spec, "/linux/uidMappings") && is_mapped(spec, "/linux/gidMappings")) {
        return;
    }
    for namespace in spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(namespace) =
            namespace.as_object_mut().filter(|namespace| namespace.get("type") == Some(&json!("user")))
        {
            namespace.remove("path");
        }
    }
}

/// runsc knows `ro`, which holds for all below it, wherever it stands; in config.json the last word counts. It passes over what
/// it does not know, also the words for a mount and all below it.
fn mount_options(options: &[Value]) -> Vec<Value> {
    const DEEP: [(&str, &str); 4] =
        [("rnodev", "nodev"), ("rnoexec", "noexec"), ("rnosuid", "nosuid"), ("rnoatime", "noatime")];
    let mut read_only = false;
    let mut kept = Vec::new();
    for option in options {
        match option.as_str().unwrap_or_default() {
            "ro" | "rro" => read_only = true,
            "rw" | "rrw" => read_only = false,
            word => match DEEP.iter().find(|(deep, _)| *deep == word) {
                Some((_, known)) => kept.push(json!(known)),
                None => kept.push(option.clone()),
            },
        }
    }
    kept.extend(read_only.then(|| json!("ro")));
    kept
}

/// A pod's weight comes as an annotation of its sandbox container, which has the least itself. There are limits beside it: the sums of
/// those that its containers have, as if those without had none. Who has what is known when they come (`wall`).
fn weigh_pod(spec: &mut Value) {
    const SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
    if spec.pointer("/annotations/io.kubernetes.cri.container-type").and_then(Value::as_str) != Some("sandbox") {
        return;
    }
    let shares = spec.pointer("/annotations").and_then(|all| all.get(SHARES)?.as_str()?.parse::<i64>().ok());
    if let Some(shares) = shares.filter(|shares| *shares > 0) {
        set(spec, &["linux", "resources", "cpu", "shares"], json!(shares));
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

/// The control group that this bundle's container was to be in.
pub fn cgroup_of(bundle: &Path) -> Option<PathBuf> {
    cgroup(&serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?)
}

/// The same by its spec, where it is a path and not systemd's name for one.
pub fn cgroup(spec: &Value) -> Option<PathBuf> {
    let path = spec.pointer("/linux/cgroupsPath")?.as_str()?;
    path.starts_with('/').then(|| path.into())
}

/// Whether a spec names its control group as systemd does, `slice:prefix:name`. CRI does so without a word in the options, where the
/// kubelet's pods are in slices.
pub fn is_systemds(spec: &Value) -> bool {
    let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str).unwrap_or_default();
    let parts: Vec<_> = path.split(':').collect();
    matches!(parts[..], [slice, _, name] if !slice.contains('/') && !name.is_empty() && !name.contains('/'))
}

/// What the process of this bundle was started with.
pub fn args(bundle: &Path) -> Result<Value, TaskError> {
    let reading = |e| TaskError::host("reading the sandbox's config.json", e);
    let text = fs::read(bundle.join("config.json")).map_err(reading)?;
    let spec: Value = serde_json::from_slice(&text).map_err(|e| reading(e.into()))?;
    Ok(spec.pointer("/process/args").cloned().unwrap_or_default())
}

/// Notes them in a checkpoint.
pub fn save_args(args: &Value, checkpoint: &Path) -> Result<(), TaskError> {
    let saved = fs::write(checkpoint.join(SAVED_ARGS), args.to_string());
    saved.map_err(|e| TaskError::host("noting the checkpoint's args", e))
}

/// A restored process is the checkpoint's, whatever the new spec would start: clients give the image's own args, and runsc
/// restores under the saved ones alone. All else that runsc compares (user, capabilities, seccomp, mounts …) stays as asked,
/// and a difference an error. A checkpoint without the note is restored under the spec as it is.
pub fn restore_args(spec: &mut Value, checkpoint: &Path) -> Result<(), TaskError> {
    let text = match fs::read(checkpoint.join(SAVED_ARGS)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(TaskError::host(format!("reading {SAVED_ARGS} of the checkpoint"), error)),
    };
    let args: Vec<String> = serde_json::from_slice(&text)
        .map_err(|e| TaskError::Invalid(format!("{SAVED_ARGS} of the checkpoint {}: {e}", checkpoint.display())))?;
    set(spec, &["process", "args"], json!(args));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_restored_process_has_the_checkpoints_args_and_the_rest_of_the_new_spec() {
        let dir = tempfile::tempdir().unwrap();
        let new = || json!({"process": {"args": ["sh"], "cwd": "/new"}});
        let mut spec = new();
        restore_args(&mut spec, dir.path()).unwrap();
        assert_eq!(spec, new(), "a checkpoint without the note");
        fs::write(dir.path().join("config.json"), r#"{"process":{"args":["top","-b"],"cwd":"/old"}}"#).unwrap();
        save_args(&args(dir.path()).unwrap(), dir.path()).unwrap();
        restore_args(&mut spec, dir.path()).unwrap();
        assert_eq!(spec, json!({"process": {"args": ["top", "-b"], "cwd": "/new"}}));
        for bad in ["", "{}", "[1]"] {
            fs::write(dir.path().join(SAVED_ARGS), bad).unwrap();
            assert!(restore_args(&mut spec, dir.path()).unwrap_err().to_string().contains(SAVED_ARGS), "{bad:?}");
        }
    }

    #[test]
    fn a_pods_annotations_become_the_sandboxs_weight_and_no_limits() {
        let adapted = |kind: &str| {
            let mut spec = json!({"annotations": {
                "io.kubernetes.cri.container-type": kind, SANDBOX_ID: "pod",
                "io.kubernetes.cri.sandbox-memory": "1000", "io.kubernetes.cri.sandbox-cpu-shares": "512",
            }});
            adapt(&mut spec, "root", Version::V2, true).unwrap();
            spec
        };
        assert_eq!(adapted("sandbox")["linux"]["resources"], json!({"cpu": {"shares": 512}}));
        assert_eq!(adapted("sandbox")["annotations"][SANDBOX_ID], "root");
        assert_eq!(adapted("container").get("linux"), None);
    }

    #[test]
    fn a_control_group_is_a_path_or_systemds_name_for_one() {
        for (path, systemds, at) in [
            ("kubepods-burstable-pod12_34.slice:cri-containerd:abc", true, None),
            ("system.slice:runc:c", true, None),
            (":nerdctl:c", true, None), // below the default slice
            ("/kubepods/burstable/pod12/abc", false, Some("/kubepods/burstable/pod12/abc")),
            ("/a:b:c", false, Some("/a:b:c")),
            ("a:b", false, None),
            ("a:b:c:d", false, None),
            ("", false, None),
        ] {
            let spec = json!({"linux": {"cgroupsPath": path}});
            assert_eq!((is_systemds(&spec), cgroup(&spec).as_deref()), (systemds, at.map(Path::new)), "{path}");
        }
        assert!(!is_systemds(&json!({})));
    }

    #[test]
    fn a_mount_is_read_only_where_the_last_word_says_so() {
        for (given, expected) in [
            (&["rbind", "rro"][..], &["rbind", "ro"][..]),
            (&["bind", "ro", "rw"], &["bind"]),
            (&["rrw", "bind", "ro", "rnoexec", "rnosuid"], &["bind", "noexec", "nosuid", "ro"]),
            (&["bind", "rslave", "bogus"], &["bind", "rslave", "bogus"]),
        ] {
            let mut spec = json!({"mounts": [{"options": given}, {"options": 5}, 7]});
            adapt(&mut spec, "root", Version::V2, true).unwrap();
            assert_eq!(spec["mounts"], json!([{"options": expected}, {"options": 5}, 7]));
        }
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
            adapt(&mut adapted, "root", Version::V2, false).unwrap();
            let sandbox = format!("/annotations/{SANDBOX_ID}");
            let named = spec.pointer(&sandbox).map(|_| json!("root"));
            prop_assert_eq!(adapted.pointer(&sandbox).cloned(), named, "{}", adapted);
        }
    }
}
