//! What this program does within the "VM", re-executed: stand for the VMM, keep a container's mounts, become a process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, chroot, fchdir, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// What of config.json makes a container.
#[derive(Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub root: Root,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    pub process: ProcessSpec,
}

/// `root` of config.json.
#[derive(Clone, Serialize, Deserialize)]
pub struct Root {
    pub path: PathBuf,
    #[serde(default)]
    readonly: bool,
}

/// One of `mounts` of config.json, or of a root file system given with Create.
#[derive(Clone, Serialize, Deserialize)]
pub struct Mount {
    #[serde(default)]
    pub destination: PathBuf,
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub options: Vec<String>,
}

/// `process` of config.json, or of Exec.
#[derive(Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    #[serde(default)]
    pub terminal: bool,
    pub args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    cwd: PathBuf,
    #[serde(default)]
    user: User,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

/// A process to be, and where.
#[derive(Serialize, Deserialize)]
pub struct Place {
    pub holder: u32,
    pub root: PathBuf,
    pub process: ProcessSpec,
}

/// The VMM (and virtiofsd): reaps what is left to it, until it is killed.
pub fn idle() -> Result<(), Failure> {
    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block()?;
    loop {
        children.wait()?;
        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }
}

/// Makes a container's mounts, says so, then answers for each process given as a line whether its program is there.
pub fn container(spec: &str) -> Result<(), Failure> {
    let spec: ContainerSpec = serde_json::from_str(spec)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let root = &spec.root.path;
    mount(Some(root), root, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    for one in &spec.mounts {
        in_root(root, one).map_err(|error| format!("mounting {}: {error}", one.destination.display()))?;
    }
    // A /dev of the container's own has no devices yet.
    let own_dev = spec.mounts.iter().any(|one| one.destination == Path::new("/dev"));
    for device in ["null", "zero", "full", "random", "urandom", "tty"].iter().filter(|_| own_dev) {
        let path = format!("/dev/{device}");
        let bind =
            Mount { destination: path.clone().into(), kind: "bind".into(), source: path, options: vec!["bind".into()] };
        in_root(root, &bind).map_err(|error| format!("device {device}: {error}"))?;
    }
    if spec.root.readonly {
        mount(none, root, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)?;
    }
    enter(root)?;
    println!("ready");
    for line in io::stdin().lines() {
        let process: ProcessSpec = serde_json::from_str(&line?)?;
        println!("{}", if program(&process).is_some() { "found" } else { "missing" });
        io::stdout().flush()?;
    }
    Ok(())
}

/// Becomes a process of a container.
pub fn process(place: &str) -> Result<(), Failure> {
    let Place { holder, root, process } = serde_json::from_str(place)?;
    SigSet::empty().thread_set_mask()?;
    setsid()?;
    if process.terminal {
        File::open("/proc/self/fd/0")?; // the first terminal that a session's leader opens is the session's
    }
    setns(File::open(format!("/proc/{holder}/ns/mnt"))?, CloneFlags::CLONE_NEWNS)?;
    enter(&root)?;
    std::env::set_current_dir(&process.cwd)?;
    let path = program(&process).ok_or("the program has gone")?;
    let groups: Vec<Gid> = process.user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(process.user.gid))?;
    setuid(Uid::from_raw(process.user.uid))?;
    let env = process.env.iter().filter_map(|pair| pair.split_once('='));
    let mut command = Command::new(path);
    command.arg0(&process.args[0]).args(&process.args[1..]).env_clear().envs(env);
    Err(command.exec().into())
}

fn enter(root: &Path) -> io::Result<()> {
    chroot(root)?;
    std::env::set_current_dir("/")
}

/// The program of `process`, looked for from within its root.
fn program(process: &ProcessSpec) -> Option<PathBuf> {
    let name = process.args.first()?;
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return Some(process.cwd.join(name)).filter(executable);
    }
    let path = process.env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or("/bin:/usr/bin");
    path.split(':').map(|dir| Path::new(dir).join(name)).find(executable)
}

/// Mounts inside a root whose links lead nowhere else: the destination is resolved by the kernel, chrooted, while the
/// source of a bind is the working directory (or a file in it), which lies outside.
fn in_root(root: &Path, one: &Mount) -> io::Result<()> {
    if matches!(one.kind.as_str(), "cgroup" | "cgroup2") {
        return Ok(());
    }
    let outside = File::open("/")?;
    let (mut from, mut is_file) = (one.source.clone(), false);
    if one.is_bind() {
        let source = fs::canonicalize(&one.source)?;
        is_file = !source.is_dir();
        let dir = if is_file { source.parent().unwrap_or(Path::new("/")) } else { &source };
        std::env::set_current_dir(dir)?;
        let name = if is_file { source.file_name().unwrap_or_default() } else { ".".as_ref() };
        from = format!("./{}", name.to_string_lossy());
    }
    chroot(root)?;
    let mounted = make_destination(&one.destination, is_file).and_then(|()| one.mount(&from, &one.destination));
    fchdir(&outside)?;
    chroot(".")?;
    mounted
}

fn make_destination(path: &Path, is_file: bool) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if is_file {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        return File::create(path).map(drop);
    }
    fs::create_dir_all(path)
}

impl Mount {
    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
    }

    /// Mounts `source` on `target`.
    pub fn mount(&self, source: &str, target: &Path) -> io::Result<()> {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in &self.options {
            flags |= match option.as_str() {
                "bind" => MsFlags::MS_BIND,
                "rbind" => MsFlags::MS_BIND | MsFlags::MS_REC,
                "ro" => MsFlags::MS_RDONLY,
                "nosuid" => MsFlags::MS_NOSUID,
                "nodev" => MsFlags::MS_NODEV,
                "noexec" => MsFlags::MS_NOEXEC,
                "relatime" => MsFlags::MS_RELATIME,
                "strictatime" => MsFlags::MS_STRICTATIME,
                "noatime" => MsFlags::MS_NOATIME,
                "rw" | "defaults" | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => continue,
                other => {
                    data.push(other);
                    continue;
                }
            };
        }
        if self.is_bind() {
            flags |= MsFlags::MS_BIND;
        }
        let data = Some(data.join(",")).filter(|data| !data.is_empty());
        let kind = Some(self.kind.as_str()).filter(|_| !self.is_bind());
        mount(Some(source), target, kind, flags, data.as_deref())?;
        if self.is_bind() && flags.contains(MsFlags::MS_RDONLY) {
            let again = (flags | MsFlags::MS_REMOUNT).difference(MsFlags::MS_REC);
            mount(None::<&str>, target, None::<&str>, again, None::<&str>)?; // a bind takes its flags only then
        }
        Ok(())
    }
}
