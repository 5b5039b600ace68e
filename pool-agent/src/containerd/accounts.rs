//! The users of an image, and who a sandbox runs as. `/etc/passwd` and `/etc/group` are what whoever built the image wanted them to be:
//! they are read inside the image's tree, which is mounted for that thread alone, and nothing but plain files of a bounded size is read.
//! Source: OCI image spec 1.1 `config.User`; passwd(5), group(5).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};

use crate::own_thread;

/// A larger file is not read; the largest that are known have some thousand lines.
const LARGEST: u64 = 1 << 20;
/// Above this is no user of Linux's; runc has the same limit.
const MOST: u32 = i32::MAX as u32;
/// The kernel takes a page of mount options.
const OPTIONS: usize = 4000;
/// Where the image is mounted: a directory that every Linux has, and that nothing of a snapshot is below.
const PLACE: &str = "/sys";

/// Users and groups of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its groups, that one among them, ascending.
    pub groups: Vec<u32>,
}

/// Why nobody can be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUser {
    /// The image does not know the name.
    #[error("user {0:?}: the image has no such name in /etc/passwd; give a number, or a name that it has")]
    NoUser(String),
    /// The image does not know the group's name.
    #[error("group {0:?}: the image has no such name in /etc/group; give a number, or a name that it has")]
    NoGroup(String),
    /// Not `user[:group]`.
    #[error("user {0:?}: write USER[:GROUP], names of the image or numbers up to {MOST}")]
    Malformed(String),
}

impl Accounts {
    /// Out of the text of both files; lines that are none are left out, as libc does.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Account { name: name.to_owned(), uid: number(uid)?, gid: number(gid)? })
        };
        let of = |line: &str| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            let members = fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty());
            Some(Group { name: name.to_owned(), gid: number(gid)?, members: members.map(str::to_owned).collect() })
        };
        Self { users: passwd.lines().filter_map(user).collect(), groups: group.lines().filter_map(of).collect() }
    }

    /// Who `user[:group]` is; "" is root. A number that the image does not know is as good as any, with group 0.
    pub fn resolve(&self, text: &str) -> Result<User, BadUser> {
        let malformed = || BadUser::Malformed(text.to_owned());
        let (user, group) = match text.split_once(':') {
            Some((user, group)) if !user.is_empty() && !group.is_empty() => (user, Some(group)),
            Some(_) => return Err(malformed()),
            None => (if text.is_empty() { "0" } else { text }, None),
        };
        let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        let (uid, known) = if is_number(user) {
            let uid = number(user).ok_or_else(malformed)?;
            (uid, self.users.iter().find(|known| known.uid == uid))
        } else {
            let known = self.users.iter().find(|known| known.name == user);
            (known.ok_or_else(|| BadUser::NoUser(user.to_owned()))?.uid, known)
        };
        let gid = match group {
            None => known.map_or(0, |known| known.gid),
            Some(group) if is_number(group) => number(group).ok_or_else(malformed)?,
            Some(group) => {
                let known = self.groups.iter().find(|known| known.name == group);
                known.ok_or_else(|| BadUser::NoGroup(group.to_owned()))?.gid
            }
        };
        let has = |group: &&Group| known.is_some_and(|known| group.members.contains(&known.name));
        let mut groups: Vec<u32> = self.groups.iter().filter(has).map(|group| group.gid).chain([gid]).collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(User { uid, gid, groups })
    }
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number <= MOST)
}

/// Reads those of an image, given how its snapshot is mounted.
pub(super) async fn read(mounts: Vec<Mount>) -> io::Result<Accounts> {
    own_thread::run("creto-accounts", move || {
        unshare(CloneFlags::CLONE_NEWNS)?; // and with it the working directory and the root
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        // An image without layers has nothing to mount, or an empty directory.
        match &mounts[..] {
            [one] => mount_at_place(one)?,
            [] => return Ok(Accounts::default()),
            _ => return Err(io::Error::other("its snapshotter needs several mounts")),
        }
        chroot(PLACE)?;
        chdir("/")?;
        Ok(Accounts::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    })
    .await
}

/// The text of a file of an image's; "" where there is none, or anything else.
fn text(path: &str) -> io::Result<String> {
    // Not blocking: it may be a FIFO. Devices do not open on this mount.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits();
    let Ok(file) = File::options().read(true).custom_flags(flags).open(path) else { return Ok(String::new()) };
    let data = file.metadata()?;
    if !data.is_file() || data.len() > LARGEST {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn mount_at_place(of: &Mount) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    if of.r#type == "bind" {
        mount(Some(&*of.source), PLACE, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        return Ok(mount(
            None::<&str>,
            PLACE,
            None::<&str>,
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
            None::<&str>,
        )?);
    }
    if of.r#type.contains('/') {
        return Err(io::Error::other(format!("mounts of type {} are containerd's own", of.r#type)));
    }
    let of_kernel = |option: &&String| !matches!(option.as_str(), "ro" | "rw" | "nodev" | "nosuid" | "noexec");
    let options: Vec<&str> = of.options.iter().filter(of_kernel).map(String::as_str).collect();
    let (dir, options) = shortened(&options);
    if let Some(dir) = dir {
        chdir(&dir)?;
    }
    Ok(mount(Some(&*of.source), PLACE, Some(&*of.r#type), flags, Some(&*options))?)
}

/// Mount options that fit into a page: where an overlay has too many layers, their paths from a directory above them all.
fn shortened(options: &[&str]) -> (Option<PathBuf>, String) {
    let joined = options.join(",");
    if joined.len() < OPTIONS {
        return (None, joined);
    }
    let layers = options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap_or_default();
    let mut paths = layers.split(':').map(Path::new);
    let mut above = paths.next().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
    for path in paths {
        while !path.starts_with(&above) && above.pop() {}
    }
    let from_there = |path: &str| {
        let rest = Path::new(path).strip_prefix(&above).map(Path::as_os_str).unwrap_or(OsStr::new(path));
        rest.to_string_lossy().into_owned()
    };
    let shorter = layers.split(':').map(from_there).collect::<Vec<_>>().join(":");
    let all = options.iter().map(|option| {
        if option.starts_with("lowerdir=") { format!("lowerdir={shorter}") } else { (*option).to_owned() }
    });
    let all = all.collect::<Vec<_>>().join(",");
    (Some(above), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nada:x:1000:1001::/:/bin/sh\nbig:x:4294967296:0::/:\n";
    const GROUP: &str = "root:x:0:\nada:x:1001:\nvideo:x:44:ada,eve\naudio:x:29:eve\nwheel:x:10:ada,root\n";

    #[test]
    fn a_user_is_who_the_image_says() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        let user = |uid, gid, groups: &[u32]| Ok(User { uid, gid, groups: groups.to_vec() });
        for (text, who) in [
            ("", user(0, 0, &[0, 10])),
            ("root", user(0, 0, &[0, 10])),
            ("0", user(0, 0, &[0, 10])),
            ("ada", user(1000, 1001, &[10, 44, 1001])),
            ("1000", user(1000, 1001, &[10, 44, 1001])),
            ("ada:video", user(1000, 44, &[10, 44])),
            ("ada:7", user(1000, 7, &[7, 10, 44])),
            ("1234", user(1234, 0, &[0])),
            ("1234:5678", user(1234, 5678, &[5678])),
            ("eve", Err(BadUser::NoUser("eve".into()))),
            ("broken", Err(BadUser::NoUser("broken".into()))),
            ("big", Err(BadUser::NoUser("big".into()))),
            ("ada:nobody", Err(BadUser::NoGroup("nobody".into()))),
            (":", Err(BadUser::Malformed(":".into()))),
            ("ada:", Err(BadUser::Malformed("ada:".into()))),
            ("2147483648", Err(BadUser::Malformed("2147483648".into()))),
            ("-1", Err(BadUser::NoUser("-1".into()))),
        ] {
            assert_eq!(accounts.resolve(text), who, "{text:?}");
        }
    }

    #[test]
    fn an_image_without_accounts_has_numbers() {
        let none = Accounts::default();
        assert_eq!(none.resolve("").unwrap(), User { uid: 0, gid: 0, groups: vec![0] });
        assert!(none.resolve("root").is_err());
    }

    #[test]
    fn many_layers_fit_into_a_page() {
        let layers = |dir: &str, end: &str| (100..199).map(|n| format!("{dir}{n}{end}")).collect::<Vec<_>>().join(":");
        let base = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let long = format!("lowerdir={}", layers(&format!("{base}/"), "/fs"));
        let (dir, options) = shortened(&["index=off", &long]);
        // All of these begin with a 1, which is no directory.
        assert_eq!(dir.as_deref(), Some(Path::new(base)));
        assert_eq!(options, format!("index=off,lowerdir={}", layers("", "/fs")));
        assert_eq!(shortened(&["index=off", "lowerdir=/a:/b"]), (None, "index=off,lowerdir=/a:/b".to_owned()));
    }
}
