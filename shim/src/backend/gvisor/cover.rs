//! `maskedPaths` and `readonlyPaths`, which runsc passes over, made so by mounts: an empty directory or file above what is masked,
//! the same again and read-only above what must not be written. What no mount can do is refused by name. Which of gVisor's own
//! files need nothing is settled before (`harden::files`); where a path leads, `view` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::view::{Place, View, What};
use crate::bundle;
use crate::error::TaskError;
use crate::harden::{self, MOST_BINDS};

/// In the container's bundle.
const EMPTY: &str = "empty";

/// Adds the mounts to a spec whose root is in place. `scratch` is the container's own directory.
pub fn cover(spec: &mut Value, scratch: &Path) -> Result<(), TaskError> {
    let (masked, read_only) = (paths(spec, "maskedPaths"), paths(spec, "readonlyPaths"));
    if masked.is_empty() && read_only.is_empty() {
        return Ok(()); // as most specs: all is gVisor's own
    }
    let root = bundle::root(spec).to_owned();
    let covers = Covers::of(spec, &root, &masked, &read_only)?;
    if covers.masks.values().any(|directory| !directory) {
        let writing = |e| TaskError::host("making an empty file for masked paths", e);
        fs::write(scratch.join(EMPTY), "").map_err(writing)?;
    }
    covers.apply(spec, &scratch.join(EMPTY));
    let mounts = spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let binds = mounts.iter().filter(|mount| harden::is_bind(mount)).count();
    if binds > MOST_BINDS {
        let why = format!(
            "with linux.maskedPaths and linux.readonlyPaths {binds} bind mounts; there is room for {MOST_BINDS}"
        );
        return Err(TaskError::Invalid(format!("mounts: {why}")));
    }
    Ok(())
}

/// Those that need a mount.
fn paths(spec: &Value, field: &str) -> Vec<String> {
    let all = spec.pointer(&format!("/linux/{field}")).and_then(Value::as_array).into_iter().flatten();
    let settled = |path: &str| {
        let clean = harden::clean(path);
        let direct = clean == path.trim_end_matches('/');
        direct && harden::is_gvisors(&clean) && (field != "maskedPaths" || harden::hideable(&clean).is_none())
    };
    all.filter_map(Value::as_str).filter(|path| !settled(path)).map(str::to_owned).collect()
}

/// What is to be done, by paths without links.
#[derive(Debug, Default, PartialEq, Eq)]
struct Covers {
    /// Whether it is a directory.
    masks: BTreeMap<PathBuf, bool>,
    /// Mounts, by number, of which nothing would be seen: they would be mounted above the mask.
    hidden: BTreeSet<usize>,
    /// Mounts that become read-only.
    read_only: BTreeSet<usize>,
    /// The whole root does.
    root: bool,
    /// Parts of the root, with their paths on the host.
    parts: BTreeMap<PathBuf, PathBuf>,
}

impl Covers {
    fn of(spec: &Value, root: &Path, masked: &[String], read_only: &[String]) -> Result<Self, TaskError> {
        let refuse = |field: &str, path: &str, why: &str| TaskError::Invalid(format!("linux.{field}: {path}: {why}"));
        let view = View::of(spec, root).map_err(|e| TaskError::Invalid(format!("mounts: {e}")))?;
        let mounts = spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        // At /dev gVisor has devices, whatever the spec says.
        let kind = |place: &Place| match place.mount {
            Some(_) if place.at == Path::new("/dev") => "dev",
            Some(n) => mounts[n]["type"].as_str().unwrap_or_default(),
            None => "",
        };
        let mut covers = Self::default();
        for path in masked {
            let field = "maskedPaths";
            let found = view.find(Path::new(path)).map_err(|e| refuse(field, path, &e.to_string()))?;
            let place = found.place;
            let directory = match found.what {
                _ if found.path == Path::new("/") => return Err(refuse(field, path, "is the whole root; omit it")),
                What::Missing => continue, // as in runc
                What::Directory => true,
                What::File => false,
                What::Gvisors if kind(place) == "tmpfs" && found.path != place.at => continue, // it is empty
                What::Gvisors => {
                    let clean = found.path.display().to_string();
                    let known = harden::hideable(&clean).filter(|_| kind(place) == "proc");
                    let tmpfs = (kind(place) == "tmpfs").then_some(true);
                    known.or(tmpfs).ok_or_else(|| refuse(field, path, "gVisor's own cannot be hidden; omit it"))?
                }
            };
            covers.masks.insert(found.path, directory);
        }
        let all: Vec<PathBuf> = covers.masks.keys().cloned().collect();
        let within = |path: &Path| all.iter().any(|mask| path != mask && path.starts_with(mask));
        covers.masks.retain(|path, _| !within(path));
        for place in view.places() {
            let gone = covers.masks.keys().any(|mask| place.at.starts_with(mask));
            covers.hidden.extend(place.mount.filter(|_| gone));
        }
        let root_is_read_only = spec.pointer("/root/readonly") == Some(&json!(true));
        for path in read_only {
            let field = "readonlyPaths";
            let found = view.find(Path::new(path)).map_err(|e| refuse(field, path, &e.to_string()))?;
            let place = found.place;
            if found.what == What::Missing || covers.masks.keys().any(|mask| found.path.starts_with(mask)) {
                continue;
            }
            match (place.mount, found.what) {
                (Some(n), _) if found.path == place.at => drop(covers.read_only.insert(n)),
                (Some(_), What::Gvisors) if kind(place) == "tmpfs" => {} // nothing is there
                (Some(_), What::Gvisors) => {
                    let why = format!("is in gVisor's own {}, of which no part can be read-only; omit it", kind(place));
                    return Err(refuse(field, path, &why));
                }
                // Others may write to a volume while this one is made, and put a link where the directory was.
                (Some(n), _) if is_writable(&mounts[n]) => {
                    let why = format!("is in the volume at {}; mount it there by itself, with ro", place.at.display());
                    return Err(refuse(field, path, &why));
                }
                (None, _) if found.path == Path::new("/") => covers.root = true,
                (None, _) if !root_is_read_only => {
                    let host = place.host(&found.path).unwrap_or_else(|| root.to_owned());
                    covers.parts.insert(found.path, host);
                }
                _ => {}
            }
        }
        Ok(covers)
    }

    fn apply(self, spec: &mut Value, empty: &Path) {
        if self.root {
            spec["root"]["readonly"] = json!(true);
        }
        let given = match spec["mounts"].take() {
            Value::Array(mounts) => mounts,
            _ => Vec::new(),
        };
        let kept = given.into_iter().enumerate().filter(|(n, _)| !self.hidden.contains(n)).map(|(n, mut mount)| {
            if let Some(mount) = mount.as_object_mut().filter(|_| self.read_only.contains(&n)) {
                make_read_only(mount);
            }
            mount
        });
        let bind = |at: &Path, source: &Path| {
            let options = ["rbind", "rprivate", "ro", "nosuid", "nodev"];
            json!({"destination": at, "type": "bind", "source": source, "options": options})
        };
        let masks = self.masks.iter().map(|(at, directory)| match directory {
            true => {
                let options = ["ro", "nosuid", "nodev", "noexec", "mode=755"];
                json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options})
            }
            false => bind(at, empty),
        });
        let parts = self.parts.iter().map(|(at, host)| {
            let mut part = bind(at, host);
            part["options"] = json!(["rbind", "rprivate", "ro"]); // set-uid programs there stay what they are
            part
        });
        spec["mounts"] = kept.chain(parts).chain(masks).collect();
    }
}

fn is_writable(mount: &Value) -> bool {
    mount.as_object().is_none_or(harden::is_writable)
}

fn make_read_only(mount: &mut Map<String, Value>) {
    match mount.get_mut("options") {
        Some(Value::Array(options)) => options.push(json!("ro")), // the last word counts
        _ => drop(mount.insert("options".into(), json!(["ro"]))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{root, spec};
    use super::*;

    fn covered(masked: &[&str], read_only: &[&str]) -> Result<(tempfile::TempDir, Value), String> {
        let dir = root();
        let mut spec = spec(dir.path());
        spec["linux"] = json!({"maskedPaths": masked, "readonlyPaths": read_only});
        cover(&mut spec, dir.path()).map_err(|e| e.to_string())?;
        Ok((dir, spec))
    }

    fn at<'a>(spec: &'a Value, path: &str) -> Vec<&'a Value> {
        spec["mounts"].as_array().unwrap().iter().filter(|mount| mount["destination"] == path).collect()
    }

    #[test]
    fn what_is_masked_is_empty_and_what_is_mounted_below_it_too() {
        for (path, leads, kind) in [
            ("/etc/shadow", "/etc/shadow", "bind"),
            ("/etc", "/etc", "tmpfs"),
            ("/bin", "/usr/bin", "tmpfs"),
            ("/var/run/../etc/shadow", "/etc/shadow", "bind"),
            ("/into/file", "/vol/sub/file", "bind"),
            ("/vol", "/vol", "tmpfs"),
            ("/new", "/new", "tmpfs"),
            ("/proc/meminfo", "/proc/meminfo", "bind"),
            ("/switches", "/proc/sys", "tmpfs"),
        ] {
            let (dir, spec) = covered(&[path], &[]).unwrap();
            let [mask] = at(&spec, leads)[..] else { panic!("{path}: {spec}") };
            assert_eq!(mask["type"], kind, "{path}");
            assert!(
                !is_writable(mask) && (kind != "bind" || mask["source"] == json!(dir.path().join(EMPTY))),
                "{mask}"
            );
        }
        let (_dir, spec) = covered(&["/run", "/run/lock"], &[]).unwrap();
        assert!(at(&spec, "/var/run/lock/inner").is_empty() && at(&spec, "/run/lock").is_empty(), "{spec}");
        for nothing in ["/nowhere", "/climbs", "/vol/out", "/new/x", "/etc/shadow/x"] {
            let (_dir, spec) = covered(&[nothing], &[nothing]).unwrap();
            assert_eq!(spec["mounts"].as_array().unwrap().len(), 5, "{nothing}: {spec}");
        }
    }

    #[test]
    fn what_is_read_only_is_the_same_again_and_cannot_be_written() {
        let (dir, spec) = covered(&[], &["/bin", "/etc/shadow", "/vol", "/new", "/proc/irq"]).unwrap();
        for (path, host) in [("/usr/bin", "root/usr/bin"), ("/etc/shadow", "root/etc/shadow"), ("/vol", "volume")] {
            let [one] = at(&spec, path)[..] else { panic!("{path}: {spec}") };
            assert!(!is_writable(one) && one["source"] == json!(dir.path().join(host)), "{one}");
        }
        let [new] = at(&spec, "/new")[..] else { panic!("{spec}") };
        assert!(!is_writable(new) && spec["mounts"].as_array().unwrap().len() == 7, "{spec}");
        let (_dir, spec) = covered(&[], &["/"]).unwrap();
        assert_eq!((&spec["root"]["readonly"], spec["mounts"].as_array().unwrap().len()), (&json!(true), 5));
        let (_dir, spec) = covered(&["/etc"], &["/etc/shadow"]).unwrap();
        assert!(at(&spec, "/etc/shadow").is_empty(), "{spec}");
    }

    #[test]
    fn what_no_mount_can_do_is_refused_by_name() {
        for (masked, read_only, field, why) in [
            (Some("/"), None, "linux.maskedPaths: /: ", "the whole root"),
            (Some("/bin/../.."), None, "linux.maskedPaths: /bin/../..: ", "the whole root"),
            (Some("/round"), None, "linux.maskedPaths: /round: ", "circle"),
            (Some("/switches/net"), None, "linux.maskedPaths: /switches/net: ", "cannot be hidden"),
            (None, Some("/round"), "linux.readonlyPaths: /round: ", "circle"),
            (None, Some("/vol/sub"), "linux.readonlyPaths: /vol/sub: ", "by itself"),
            (Some("/dev/null"), None, "linux.maskedPaths: /dev/null: ", "cannot be hidden"),
            (None, Some("/dev/null"), "linux.readonlyPaths: /dev/null: ", "gVisor's own dev"),
            (None, Some("/switches"), "linux.readonlyPaths: /switches: ", "gVisor's own proc"),
        ] {
            let list = |path: Option<&'static str>| path.into_iter().collect::<Vec<_>>();
            let said = covered(&list(masked), &list(read_only)).unwrap_err();
            assert!(said.starts_with(field) && said.contains(why), "{said}");
        }
    }
}
