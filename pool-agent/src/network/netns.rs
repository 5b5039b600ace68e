//! Named network namespaces: a file that the namespace is mounted on, as `ip netns` makes them, so that it stays without a process in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::own_thread;

/// A new one, with nothing in it but `lo`, which is down. The path must be free.
pub async fn make(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    File::create_new(path)?;
    let place = path.to_owned();
    let made = own_thread::run("creto-netns", move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Some("/proc/thread-self/ns/net");
        Ok(mount(own, &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    })
    .await;
    if made.is_err() {
        remove(path)?;
    }
    made
}

/// Whether a namespace is mounted there. An agent that was killed while it made or removed one has left the file alone, which plugins
/// cannot enter.
pub fn is_there(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|found| found.dev());
    let Some(own) = device(path) else { return false };
    path.parent().and_then(device).is_some_and(|around| around != own)
}

/// Removes it; one that is gone already is no error. A process in it keeps the namespace itself.
pub fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing is mounted there: a half-made one, or after a reboot.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
