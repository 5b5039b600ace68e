//! File systems of a node's own, where a test or a bench wants them: in memory, small, or with a journal.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Setup;

/// Mounts what the setup asks for, in a node's directory.
pub fn mount_all(setup: &Setup, dir: &Path) {
    for (sub, kib) in [("state", setup.bundles_kib), ("creto/run", setup.run_kib)] {
        let Some(kib) = kib else { continue };
        let (place, size) = (dir.join(sub), format!("mode=755,size={kib}k"));
        fs::create_dir_all(&place).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
    }
    if let Some(mib) = setup.lib_mib {
        let (image, place) = (dir.join("lib.img"), dir.join("creto/lib"));
        fs::create_dir_all(&place).unwrap();
        File::create(&image).unwrap().set_len(u64::from(mib) << 20).unwrap();
        for (program, args) in [("mkfs.ext4", &["-q", "-J", "size=32"][..]), ("mount", &["-o", "loop"])] {
            let mut command = Command::new(program);
            command.args(args).arg(&image).args((program == "mount").then_some(&place));
            assert!(command.status().unwrap().success(), "{command:?}");
        }
    }
}

/// Most nodes have none.
pub fn unmount_all(dir: &Path) {
    for sub in ["state", "creto/run", "creto/lib"] {
        let _ = umount2(&dir.join(sub), MntFlags::MNT_DETACH);
    }
}
