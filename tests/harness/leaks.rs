//! What a node has on the machine outside its own files: processes, mounts, sockets, cgroups, state directories.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::{Node, wait_until};

/// A process that belongs to a node.
#[derive(Debug)]
pub struct Process {
    /// Its host pid.
    pub pid: i32,
    /// Its command line, joined by spaces.
    pub command: String,
}

/// All processes that name the directory in their command line, environment or working directory.
pub fn processes_of(dir: &Path) -> Vec<Process> {
    let own = std::process::id() as i32;
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let belongs = |pid: &i32| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let names =
            |file: &str| fs::read(proc.join(file)).is_ok_and(|bytes| contains(&bytes, dir.as_os_str().as_bytes()));
        let inside = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        *pid != own && (inside || names("cmdline") || names("environ"))
    };
    let command = |pid| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    pids.filter(belongs).map(|pid| Process { pid, command: command(pid) }).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The socket of the shim that serves a container or pod. A test compares this with what the shim says itself.
pub fn shim_socket(node: &Node, group: &str) -> PathBuf {
    let text = format!("creto/{}/{}/{group}", node.address().display(), node.namespace());
    let digest: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new("/run/containerd/s").join(digest)
}

/// Everything a node has left, in words; only containerd itself, its clients, creto-egress and etcd are allowed to stay.
pub fn of(node: &Node) -> Vec<String> {
    let dir = node.path("");
    let ours = |p: &Process| {
        p.command.contains("containerd-shim")
            || !["/bin/containerd ", "/bin/ctr ", "/creto-egress ", "/bin/etcd "]
                .iter()
                .any(|ours| p.command.contains(ours))
    };
    let small = ["state", "creto/lib", "creto/run"].map(|disk| node.path(disk)); // a test may have put a small disk there
    let mut left: Vec<_> =
        processes_of(&dir).into_iter().filter(ours).map(|p| format!("process {} {}", p.pid, p.command)).collect();
    left.extend(
        mounts_below(&dir).into_iter().filter(|m| !small.contains(m)).map(|m| format!("mount {}", m.display())),
    );
    for id in node.ids() {
        let files = [shim_socket(node, &id), node.bundle(&id)];
        left.extend(files.into_iter().filter(|f| f.exists()).map(|f| format!("file {}", f.display())));
    }
    left.extend(entries(&node.path("creto/run/sandboxes")).map(|dir| format!("state {}", told(&dir))));
    left.extend(cgroups(node).into_iter().map(|c| format!("cgroup {}", c.display())));
    left
}

/// A sandbox's directory with what is in it: that says who made it, and when.
fn told(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("runsc.log")).unwrap_or_default();
    let names: Vec<_> = entries(dir).filter_map(|path| Some(path.file_name()?.to_owned())).collect();
    format!("{} {names:?} {log}", dir.display())
}

/// Mount points below a directory, the last mounted first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

/// The cgroups of the node's containers; that above them is containerd's, or the kubelet's, to keep.
fn cgroups(node: &Node) -> Vec<PathBuf> {
    let groups = entries(Path::new("/sys/fs/cgroup")).chain([PathBuf::from("/sys/fs/cgroup")]);
    groups.flat_map(|tree| entries(&tree.join(node.cgroup()))).filter(|path| path.is_dir()).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Takes by force whatever a node has left, so that a failing test does not spoil the machine for others.
pub fn clear(node: &Node) {
    let dir = node.path("");
    wait_until("the node's processes to go", || {
        let left = processes_of(&dir);
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        left.is_empty()
    });
    for mount in mounts_below(&dir) {
        let _ = umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    for id in node.ids() {
        let _ = fs::remove_file(shim_socket(node, &id));
    }
    for cgroup in cgroups(node) {
        let _ = fs::remove_dir(&cgroup);
    }
    for tree in entries(Path::new("/sys/fs/cgroup")) {
        let _ = fs::remove_dir(tree.join(node.cgroup()));
    }
}
