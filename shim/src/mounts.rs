//! Rootfs mounts that containerd asks for, and their undo.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::idmap::{Ids, Layers};

/// Mount options that are flags; `(name, flag, whether it clears)`.
const FLAGS: [(&str, MsFlags, bool); 18] = [
    ("ro", MsFlags::MS_RDONLY, false),
    ("rw", MsFlags::MS_RDONLY, true),
    ("bind", MsFlags::MS_BIND, false),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), false),
    ("nosuid", MsFlags::MS_NOSUID, false),
    ("suid", MsFlags::MS_NOSUID, true),
    ("nodev", MsFlags::MS_NODEV, false),
    ("dev", MsFlags::MS_NODEV, true),
    ("noexec", MsFlags::MS_NOEXEC, false),
    ("exec", MsFlags::MS_NOEXEC, true),
    ("noatime", MsFlags::MS_NOATIME, false),
    ("atime", MsFlags::MS_NOATIME, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, false),
    ("diratime", MsFlags::MS_NODIRATIME, true),
    ("relatime", MsFlags::MS_RELATIME, false),
    ("norelatime", MsFlags::MS_RELATIME, true),
    ("strictatime", MsFlags::MS_STRICTATIME, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, false),
];

/// Options of a mount as the kernel takes them.
fn parse(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, false)) => flags |= *flag,
            Some((_, flag, true)) => flags &= !*flag,
            None if option == "loop" || option.starts_with("X-") => {} // for userspace, not for the kernel
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// Mounts all at `rootfs`; what was mounted before a failure is unmounted again.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), String> {
    for (n, m) in mounts.iter().enumerate() {
        let target =
            if m.target.is_empty() { rootfs.to_owned() } else { rootfs.join(m.target.trim_start_matches('/')) };
        if let Err(error) = mount_one(m, &target) {
            if n > 0 {
                unmount_all(rootfs);
            }
            return Err(format!("mounting {} ({}) at {}: {error}", m.source, m.type_, target.display()));
        }
    }
    Ok(())
}

fn mount_one(m: &Mount, target: &Path) -> Result<(), String> {
    let mut options = m.options.clone();
    let failed = |e: std::io::Error| format!("showing other ids: {e}");
    let ids = Ids::take(&mut options).map_err(failed)?;
    let layers = match &ids {
        Some(ids) if m.type_ == "overlay" => {
            Some(Layers::mount(&mut options, ids, target.parent().unwrap_or(target)).map_err(failed)?)
        }
        Some(_) => return Err(format!("a {} cannot show other ids; the snapshotter overlayfs can", m.type_)),
        None => None,
    };
    mount_plain(m, &options, target).map_err(|e| e.to_string())?;
    drop(layers);
    Ok(())
}

fn mount_plain(m: &Mount, options: &[String], target: &Path) -> nix::Result<()> {
    let (flags, data) = parse(options);
    let kind = (!m.type_.is_empty()).then_some(m.type_.as_str());
    let data = (!data.is_empty()).then_some(data.as_str());
    mount(Some(m.source.as_str()), target, kind, flags, data)?;
    // A bind mount takes its flags only when it is mounted again.
    if flags.contains(MsFlags::MS_BIND) && flags.intersects(!(MsFlags::MS_BIND | MsFlags::MS_REC)) {
        mount(None::<&str>, target, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>)?;
    }
    Ok(())
}

/// A root that nobody can write to (containerd mounts a view so) has no place for a mount that the image does not foresee: one
/// is made in a layer of ours above it, at `rootfs`, with its files in `scratch`. Whether there is such a layer.
pub fn make_room(root: &Path, rootfs: &Path, scratch: &Path) -> Result<bool, String> {
    if !statvfs(root).is_ok_and(|of| of.flags().contains(FsFlags::ST_RDONLY)) {
        return Ok(false);
    }
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    for dir in [&upper, &work, &rootfs.to_owned()] {
        fs::create_dir_all(dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
    }
    let layers = format!("lowerdir={},upperdir={},workdir={}", root.display(), upper.display(), work.display());
    mount(Some("overlay"), rootfs, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .map_err(|e| format!("mounting a layer above {}: {e}", root.display()))?;
    Ok(true)
}

/// Unmounts everything stacked at a rootfs; nothing mounted is fine. Lazily, since a dying sandbox may hold it still.
pub fn unmount_all(rootfs: &Path) {
    const STACKED: usize = 64;
    for _ in 0..STACKED {
        if umount2(rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_the_rest_stays_data() {
        let options = |list: &[&str]| list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        for (given, flags, data) in [
            (options(&["rbind", "ro"]), MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY, ""),
            (options(&["ro", "rw"]), MsFlags::empty(), ""),
            (options(&["lowerdir=/a:/b", "index=off"]), MsFlags::empty(), "lowerdir=/a:/b,index=off"),
            (options(&["loop", "ro"]), MsFlags::MS_RDONLY, ""),
        ] {
            assert_eq!(parse(&given), (flags, data.to_owned()), "{given:?}");
        }
    }
}
