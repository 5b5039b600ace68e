//! Root file systems that show other ids than they have: `uidmap=` and `gidmap=` of containerd's snapshotters, for containers with a
//! user namespace. The kernel shows them so through a mount, and an overlay through its layers' mounts. Source: mount_setattr(2).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::sys;

/// A user namespace that nobody is in, by which ids are mapped.
#[derive(Debug)]
pub struct Ids(OwnedFd);

impl Ids {
    /// Takes the mapping out of a mount's options; `None` where there is none.
    pub fn take(options: &mut Vec<String>) -> io::Result<Option<Self>> {
        let mut maps = [const { String::new() }; 2];
        options.retain(|option| {
            for (map, key) in maps.iter_mut().zip(["uidmap=", "gidmap="]) {
                if let Some(value) = option.strip_prefix(key) {
                    value.clone_into(map);
                    return false;
                }
            }
            true
        });
        match maps.each_ref().map(|map| lines(map)) {
            [None, None] if maps.iter().all(String::is_empty) => Ok(None),
            [Some(users), Some(groups)] => sys::user_namespace(&users, &groups).map(|fd| Some(Self(fd))),
            _ => Err(io::Error::other(format!(
                "uidmap={} gidmap={}: give both, each as INSIDE:HOST:SIZE",
                maps[0], maps[1]
            ))),
        }
    }

    /// Shows what is at `from` with other ids at `at`, to read: nothing is ever written or removed through it.
    fn show(&self, from: &Path, at: &Path) -> io::Result<()> {
        sys::mount_with_ids(from, at, &self.0)
    }
}

/// Of `0:100000:65536`, several by commas, the lines of `/proc/PID/uid_map`.
fn lines(map: &str) -> Option<String> {
    let line = |one: &str| {
        let numbers: Vec<u32> = one.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let [inside, host, size] = numbers[..] else { return None };
        Some(format!("{inside} {host} {size}\n"))
    };
    map.split(',').map(line).collect()
}

/// The layers of an overlay with other ids, until it is mounted.
#[derive(Debug)]
pub struct Layers(Vec<PathBuf>);

impl Layers {
    /// Mounts each of the overlay's lower layers in `scratch` and names it so in the options.
    pub fn mount(options: &mut [String], ids: &Ids, scratch: &Path) -> io::Result<Self> {
        let mut layers = Self(Vec::new());
        for option in options.iter_mut() {
            let Some(lower) = option.strip_prefix("lowerdir=") else { continue };
            let mut shown = Vec::new();
            for from in lower.split(':') {
                let at = scratch.join(format!("layer-{}", layers.0.len()));
                fs::create_dir(&at)?;
                layers.0.push(at.clone());
                ids.show(Path::new(from), &at)?;
                shown.push(at.display().to_string());
            }
            *option = format!("lowerdir={}", shown.join(":"));
        }
        Ok(layers)
    }
}

/// An overlay keeps its layers; where they were mounted meanwhile is of no use.
impl Drop for Layers {
    fn drop(&mut self) {
        for at in &self.0 {
            let _ = umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            let _ = fs::remove_dir(at); // never what is in it
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_whole_or_an_error() {
        for (map, expected) in [
            ("0:100000:65536", Some("0 100000 65536\n")),
            ("0:1:2,5:6:7", Some("0 1 2\n5 6 7\n")),
            ("", None),
            ("0:1", None),
            ("0:1:2:3", None),
            ("0:-1:2", None),
        ] {
            assert_eq!(lines(map).as_deref(), expected, "{map}");
        }
        let options = |list: &[&str]| list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        let mut none = options(&["ro", "index=off"]);
        assert!(Ids::take(&mut none).unwrap().is_none());
        assert_eq!(none, options(&["ro", "index=off"]));
        for half in [&["uidmap=0:1:2"][..], &["uidmap=0:1:2", "gidmap=x"]] {
            assert!(Ids::take(&mut options(half)).unwrap_err().to_string().contains("INSIDE:HOST:SIZE"));
        }
    }
}
