//! What a container will find at a path: its root, above it the mounts of its spec, and the links among them, which lead nowhere
//! but inside. Not here: what is done about it (`cover`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::harden::is_bind;

/// As many as Linux follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// A file system in the container.
#[derive(Debug)]
pub struct Place {
    /// Where, without a link.
    pub at: PathBuf,
    /// Which of the spec's mounts; the root is none.
    pub mount: Option<usize>,
    /// The host's files; `None` where gVisor makes them.
    source: Option<PathBuf>,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// Anything else, of which nothing is said.
    File,
    /// In a file system that gVisor makes; what, nobody knows before.
    Gvisors,
    /// Nothing, or a link to nothing.
    Missing,
}

/// Where a path has led.
#[derive(Debug)]
pub struct Found<'a> {
    /// Without a link or `..`.
    pub path: PathBuf,
    /// In this file system.
    pub place: &'a Place,
    /// What is there.
    pub what: What,
}

/// A container's file systems.
#[derive(Debug)]
pub struct View(Vec<Place>);

/// Links lead round in a circle.
#[derive(Debug, thiserror::Error)]
#[error("links lead round in a circle")]
pub struct Circle;

impl View {
    /// Of a spec. The shorter a mount's path is, the earlier runsc mounts it.
    pub fn of(spec: &Value, root: &Path) -> Result<Self, Circle> {
        let mut view = Self(vec![Place { at: "/".into(), mount: None, source: Some(root.to_owned()) }]);
        let mounts = spec.get("mounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let text = |mount: &'_ Value, key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut order: Vec<usize> = (0..mounts.len()).collect();
        order.sort_by_key(|n| text(&mounts[*n], "destination").len());
        for n in order {
            let at = view.find(Path::new(&text(&mounts[n], "destination")))?.path;
            let source = is_bind(&mounts[n]).then(|| text(&mounts[n], "source").into());
            view.0.push(Place { at, mount: Some(n), source });
        }
        Ok(view)
    }

    /// All its file systems, the root first.
    pub fn places(&self) -> &[Place] {
        &self.0
    }

    /// Follows a path, its last link too, as the kernel does in the container. What is not there has no links: the rest of the
    /// path is taken as it stands.
    pub fn find(&self, path: &Path) -> Result<Found<'_>, Circle> {
        let mut rest = parts(path);
        let (mut at, mut what, mut links) = (PathBuf::from("/"), What::Directory, 0);
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                at.pop();
                what = What::Directory;
                continue;
            }
            let next = at.join(&part);
            what = match (what, self.look(&next)) {
                (What::Missing | What::File, _) => What::Missing,
                (_, Look::Is(what)) => what,
                (_, Look::Link(target)) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Circle);
                    }
                    if target.is_absolute() {
                        at = "/".into();
                    }
                    let mut all = parts(&target);
                    all.append(&mut rest);
                    rest = all;
                    what = What::Directory;
                    continue;
                }
            };
            at = next;
        }
        Ok(Found { place: self.place(&at), path: at, what })
    }

    /// The last mounted of the innermost.
    fn place(&self, path: &Path) -> &Place {
        let inner = self.0.iter().filter(|place| path.starts_with(&place.at));
        inner.max_by_key(|place| place.at.as_os_str().len()).unwrap_or(&self.0[0])
    }

    fn look(&self, path: &Path) -> Look {
        let place = self.place(path);
        let Some(host) = place.host(path) else { return Look::Is(What::Gvisors) };
        let is = |meta: fs::Metadata| Look::Is(if meta.is_dir() { What::Directory } else { What::File });
        match fs::symlink_metadata(&host) {
            Err(_) => Look::Is(What::Missing),
            Ok(meta) if !meta.is_symlink() => is(meta),
            // A mount's own source was followed when it was mounted.
            Ok(_) if path == place.at => fs::metadata(&host).map_or(Look::Is(What::Missing), is),
            Ok(_) => fs::read_link(&host).map_or(Look::Is(What::Missing), Look::Link),
        }
    }
}

impl Place {
    /// The host's path of a path in here that has no links.
    pub fn host(&self, path: &Path) -> Option<PathBuf> {
        let inner = path.strip_prefix(&self.at).unwrap_or(path);
        self.source
            .as_ref()
            .map(|source| if inner.as_os_str().is_empty() { source.clone() } else { source.join(inner) })
    }
}

enum Look {
    Is(What),
    Link(PathBuf),
}

/// Names and `..`.
fn parts(path: &Path) -> VecDeque<OsString> {
    let name = |part: Component| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    /// A root with links of all kinds, and a volume.
    pub fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["root/etc", "root/usr/bin", "root/run/lock", "root/var", "root/vol", "root/proc", "volume/sub"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for file in ["root/etc/shadow", "volume/sub/file", "secret"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        for (target, link) in [
            ("usr/bin", "root/bin"),
            ("/run", "root/var/run"),
            ("../../../../../secret", "root/climbs"),
            ("/etc/../../../secret", "root/climbs-too"),
            ("round", "root/round"),
            ("/vol/sub", "root/into"),
            ("../../secret", "volume/out"),
            ("/proc/sys", "root/switches"),
        ] {
            symlink(target, dir.path().join(link)).unwrap();
        }
        dir
    }

    pub fn spec(dir: &Path) -> Value {
        json!({"root": {"path": dir.join("root")}, "mounts": [
            {"destination": "/var/run/lock/inner", "type": "tmpfs"},
            {"destination": "/proc", "type": "proc"},
            {"destination": "/vol", "type": "bind", "source": dir.join("volume"), "options": ["rbind", "rw"]},
            {"destination": "/new", "type": "tmpfs"},
            {"destination": "/dev", "type": "tmpfs"},
        ]})
    }

    #[test]
    fn a_path_leads_where_it_leads_the_container_and_never_out() {
        let dir = root();
        let spec = spec(dir.path());
        let view = View::of(&spec, &dir.path().join("root")).unwrap();
        for (path, leads, what, mount) in [
            ("/etc/shadow", "/etc/shadow", What::File, None),
            ("/bin/../bin/", "/usr/bin", What::Directory, None), // kernels follow a link before they climb
            ("/var/run/../etc/shadow", "/etc/shadow", What::File, None),
            ("/climbs", "/secret", What::Missing, None),
            ("/climbs-too", "/secret", What::Missing, None),
            ("/../../../etc", "/etc", What::Directory, None),
            ("/etc/shadow/x", "/etc/shadow/x", What::Missing, None),
            ("/nowhere/x", "/nowhere/x", What::Missing, None),
            ("/into/file", "/vol/sub/file", What::File, Some(2)),
            ("/vol/out", "/secret", What::Missing, None),
            ("/vol", "/vol", What::Directory, Some(2)),
            ("/switches", "/proc/sys", What::Gvisors, Some(1)),
            ("/new/x", "/new/x", What::Gvisors, Some(3)),
            ("/run/lock/inner", "/run/lock/inner", What::Gvisors, Some(0)), // mounted by way of a link
        ] {
            let found = view.find(Path::new(path)).unwrap();
            assert_eq!((found.path.to_str().unwrap(), found.what, found.place.mount), (leads, what, mount), "{path}");
        }
        view.find(Path::new("/round")).unwrap_err();
    }
}
