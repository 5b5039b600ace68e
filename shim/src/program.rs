//! Whether a container has the program it is told to run: found before the sandbox is made, for runsc would find out
//! only after Create has promised a task. The look-up never leaves the rootfs, whatever its symbolic links say.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

/// As in Docker's and containerd's own images, for specs that name none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be run; worded as runc words it, since clients match on it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    /// A bare name, in no directory of PATH.
    #[error("exec: \"{0}\": executable file not found in $PATH")]
    NotInPath(String),
    /// A path that leads nowhere.
    #[error("exec: \"{0}\": stat {0}: no such file or directory")]
    NoSuchFile(String),
    /// A directory, or a file that nobody may execute.
    #[error("exec: \"{0}\": permission denied")]
    NotExecutable(String),
}

/// Looks for a program as execvp(3) would inside the rootfs. `mounts` are where other file systems will cover the
/// rootfs: what lies there cannot be judged yet and is let through.
pub fn find(rootfs: &Path, program: &str, env: &[String], cwd: &str, mounts: &[String]) -> Result<(), Missing> {
    let Ok(root) = open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else {
        return Err(Missing::NoSuchFile(program.to_owned()));
    };
    let covered = |path: &Path| mounts.iter().any(|mount| mount != "/" && path.starts_with(mount));
    let look = |path: &Path| if covered(path) { Found::Yes } else { look(&root, path) };
    if program.contains('/') {
        return match look(&Path::new(cwd).join(program)) {
            Found::Yes => Ok(()),
            Found::No => Err(Missing::NoSuchFile(program.to_owned())),
            Found::NotExecutable => Err(Missing::NotExecutable(program.to_owned())),
        };
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut refused = None;
    for dir in path.split(':') {
        match look(&Path::new(cwd).join(dir).join(program)) {
            Found::Yes => return Ok(()),
            Found::NotExecutable => refused = Some(Missing::NotExecutable(program.to_owned())),
            Found::No => {}
        }
    }
    Err(refused.unwrap_or_else(|| Missing::NotInPath(program.to_owned())))
}

enum Found {
    Yes,
    No,
    NotExecutable,
}

fn look(root: &OwnedFd, path: &Path) -> Found {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = match openat2(root.as_fd(), path, how) {
        Ok(file) => file,
        Err(Errno::EACCES) => return Found::NotExecutable,
        Err(_) => return Found::No,
    };
    let Ok(stat) = fstat(&file) else { return Found::No };
    let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    if regular && stat.st_mode & 0o111 != 0 { Found::Yes } else { Found::NotExecutable }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_program_is_looked_for_inside_the_rootfs_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("bin")).unwrap();
        for (name, mode) in [("bin/run", 0o755), ("bin/data", 0o644)] {
            fs::write(root.join(name), "").unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/bin/run", root.join("bin/absolute")).unwrap();
        symlink("/bin/sh", root.join("bin/outside")).unwrap(); // the host has it, the rootfs has not
        symlink("../../../../bin/sh", root.join("bin/climbing")).unwrap();
        symlink("loop", root.join("bin/loop")).unwrap();
        let missing = |make: fn(String) -> Missing, name: &str| Err(make(name.to_owned()));
        for (program, env, cwd, expected) in [
            ("run", "PATH=/sbin:/bin", "/", Ok(())),
            ("run", "PATH=bin", "/", Ok(())),
            ("run", "PATH=/sbin", "/", missing(Missing::NotInPath, "run")),
            ("run", "HOME=/", "/", Ok(())),
            ("/bin/run", "", "/", Ok(())),
            ("./run", "", "/bin", Ok(())),
            ("absolute", "PATH=/bin", "/", Ok(())),
            ("outside", "PATH=/bin", "/", missing(Missing::NotInPath, "outside")),
            ("/bin/climbing", "", "/", missing(Missing::NoSuchFile, "/bin/climbing")),
            ("/bin/loop", "", "/", missing(Missing::NoSuchFile, "/bin/loop")),
            ("data", "PATH=/bin", "/", missing(Missing::NotExecutable, "data")),
            ("/bin", "", "/", missing(Missing::NotExecutable, "/bin")),
            ("/volume/run", "", "/", Ok(())),
        ] {
            let found = find(root, program, &[env.to_owned()], cwd, &["/volume".to_owned()]);
            assert_eq!(found, expected, "{program} {env} {cwd}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))] // each makes a directory

        #[test]
        fn what_the_rootfs_does_not_have_is_not_found_on_the_host(
            program in prop_oneof![crate::arbitrary::text(), "(/|[.]{1,2}/){0,6}(bin|usr/bin)/(sh|env|link)"],
            path in "((/|[.]{1,2}/){0,4}(bin|usr/bin)?:?){0,3}",
            cwd in prop_oneof![crate::arbitrary::text(), "(/|[.]{1,2}/){0,4}(bin)?"],
            target in "(/|[.]{1,2}/){0,6}(bin/sh|proc/self/exe)",
        ) {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("bin")).unwrap();
            symlink(target, dir.path().join("bin/link")).unwrap();
            let env = [format!("PATH={path}")];
            prop_assert!(find(dir.path(), &program, &env, &cwd, &[]).is_err());
        }
    }
}
