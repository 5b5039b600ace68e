//! Rules for mounts in gVisor, which has a mount table of its own: what runsc would leave out or make otherwise without a word
//! is refused. What it has other words for, the backend puts into them.

use serde_json::{Map, Value};

use super::shape::{objects, refuse, text};
use super::{BackendKind, Policy, files};
use crate::error::TaskError;

const FIELD: &str = "mounts";
/// What is mounted in the sandbox does not appear on the host.
const PRIVATE: [&str; 6] = ["private", "rprivate", "slave", "rslave", "unbindable", "runbindable"];
const SHARED: [&str; 2] = ["shared", "rshared"];
/// Why, for people.
const NOT_SHARED: &str =
    "gVisor's mounts are its own and appear nowhere on the host; use private, or slave to see the host's";

fn words<'a>(mount: &'a Map<String, Value>, known: &'a [&str]) -> Vec<&'a str> {
    let options = mount.get("options").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    options.filter(|option| known.contains(option)).collect()
}

/// Private and slave are so; shared never is.
pub fn propagation(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    for mount in objects(spec, FIELD)?.into_iter().filter(|mount| files::binds(mount)) {
        let destination = text(mount, "destination");
        if let Some(word) = words(mount, &SHARED).first() {
            return Err(refuse(FIELD, format!("{destination} is {word}: {NOT_SHARED}")));
        }
        let private = words(mount, &PRIVATE);
        if private.iter().any(|word| *word != private[0]) {
            return Err(refuse(FIELD, format!("{destination} is {}; choose one", private.join(" and "))));
        }
    }
    match spec.pointer("/linux/rootfsPropagation") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(word)) if word.is_empty() || PRIVATE[..4].contains(&word.as_str()) => Ok(()),
        Some(word) => Err(refuse("linux.rootfsPropagation", format!("{word}: {NOT_SHARED}"))),
    }
}

/// A file system that runsc does not have would not be mounted, and nobody told. (At `/dev` and `/dev/pts` it mounts its
/// own. There is no `/dev/mqueue` to list; message queues work without.)
pub fn kinds(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    const KINDS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    for mount in objects(spec, FIELD)? {
        let (kind, destination) = (text(mount, "type"), files::clean(text(mount, "destination")));
        if !files::binds(mount) && !KINDS.contains(&kind) && destination != "/dev" {
            let why = format!(
                "{destination} is of type {kind:?}, which gVisor has not; it mounts bind, {}",
                KINDS.join(", ")
            );
            return Err(refuse(FIELD, why));
        }
    }
    Ok(())
}

/// Ids of files as a mount shows them: newer builds do so, and older ones would show others without a word.
pub fn id_mappings(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.kind != BackendKind::Gvisor || policy.build.recent {
        return Ok(());
    }
    let mapped = |mount: &Map<String, Value>| {
        ["uidMappings", "gidMappings"].iter().any(|key| mount.get(*key).is_some_and(|mappings| !mappings.is_null()))
    };
    match objects(spec, FIELD)?.into_iter().find(|mount| mapped(mount)) {
        None => Ok(()),
        Some(mount) => {
            let why = "asks for other ids of files, which this build of runsc would not show; install a newer one";
            Err(refuse(FIELD, format!("{} {why}", text(mount, "destination"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{policy, spec_with};
    use super::super::{Build, Profile, harden};
    use super::*;

    fn said(mount: Value, policy: Policy) -> Option<String> {
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro"]});
        harden(spec_with("/mounts", json!([proc, mount])), policy).err().map(|e| e.to_string())
    }

    #[test]
    fn what_gvisor_would_pass_over_is_refused() {
        let ids = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        let bind =
            |options: &[&str]| json!({"destination": "/x", "type": "bind", "source": "/srv", "options": options});
        let mut mapped = bind(&["rbind"]);
        mapped["uidMappings"] = ids;
        let old = Build { recent: false, ..Build::default() };
        for (mount, build, why) in [
            (bind(&["rbind", "rshared"]), Build::default(), Some("/x is rshared")),
            (bind(&["private", "slave"]), Build::default(), Some("private and slave; choose one")),
            (bind(&["rbind", "rslave"]), Build::default(), None),
            (bind(&["rprivate", "rprivate"]), Build::default(), None),
            (json!({"destination": "/x", "type": "ext4", "source": "/dev/vda"}), Build::default(), Some("\"ext4\"")),
            (json!({"destination": "/x", "type": "none", "source": "/srv"}), Build::default(), Some("\"none\"")),
            (json!({"destination": "/dev/", "type": "devtmpfs", "source": "dev"}), Build::default(), None),
            (mapped.clone(), Build::default(), None),
            (mapped, old, Some("other ids of files")),
        ] {
            let said = said(mount.clone(), Policy { build, ..policy(Profile::Default, BackendKind::Gvisor) });
            match (why, &said) {
                (None, None) => {}
                (Some(why), Some(said)) => assert!(said.starts_with("mounts: ") && said.contains(why), "{said}"),
                _ => panic!("{mount}: {said:?}"),
            }
        }
        for (word, refused) in [("shared", true), ("unbindable", true), ("rslave", false), ("", false)] {
            let spec = spec_with("/linux/rootfsPropagation", json!(word));
            let got = harden(spec, policy(Profile::Default, BackendKind::Gvisor));
            assert_eq!(got.is_err(), refused, "{word}: {got:?}");
        }
    }
}
