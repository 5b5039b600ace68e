//! What Kata Containers needs of a host, and what it leaves there when it is not seen off properly.
//! Observed with containerd-shim-kata-v2 4.1.0; docs/compatibility.md says what was not run here.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mounts;

/// Where Kata keeps its state.
pub const RUN: &str = "/run";

/// Whether this program is Kata's shim.
pub fn is(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim-kata"))
}

/// What this host lacks, for whoever reads that Kata could not make a sandbox. Advice and no check: which of it a build
/// or a configuration of Kata can do without, Kata alone knows.
pub fn advice() -> String {
    const NEEDS: [(&str, &str); 3] = [
        ("/dev/kvm", "hardware virtualization (enable it in the firmware, or nested for a virtual machine)"),
        ("/dev/vhost-vsock", "vsock for QEMU (modprobe vhost_vsock)"),
        ("/dev/log", "a syslog daemon (systemd-journald or rsyslog)"),
    ];
    let lacks: Vec<_> = NEEDS.iter().filter(|(path, _)| !Path::new(path).exists()).collect();
    let said: Vec<_> = lacks.iter().map(|(path, what)| format!("{path}: {what}")).collect();
    if said.is_empty() { String::new() } else { format!("; this host lacks {}", said.join(", ")) }
}

/// Removes what is left of a sandbox below `run` whose shim has ended: its machine, its directories, its mounts.
pub fn sweep(run: &Path, id: &str) {
    let state = state(run, id);
    for pid in machine(&state, id) {
        tracing::warn!(id, pid, "killing what is left of a Kata sandbox");
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let shared = run.join("kata-containers/shared/sandboxes").join(id);
    for mount in mounts_below(&shared) {
        mounts::unmount_all(&mount);
    }
    for dir in [state, run.join("vc/vm").join(id)] {
        let _ = fs::remove_dir_all(dir);
    }
    match mounts_below(&shared).is_empty() {
        true => drop(fs::remove_dir_all(shared)),
        // Below a mount that stays are a volume's own files.
        false => tracing::warn!(dir = %shared.display(), "something is mounted there still: it stays"),
    }
}

/// Whether a sandbox of this name runs. Kata knows sandboxes by their names alone, whatever containerd and namespace they are
/// of: a second one of the name must be neither made nor cleaned up after.
pub fn runs(run: &Path, id: &str) -> bool {
    !machine(&state(run, id), id).is_empty()
}

fn state(run: &Path, id: &str) -> PathBuf {
    run.join("vc/sbs").join(id)
}

/// The living processes of a sandbox's machine. Pids are reused: only one that was told of this sandbox is its machine.
fn machine(state: &Path, id: &str) -> Vec<i32> {
    let persisted = fs::read(state.join("persist.json")).unwrap_or_default();
    let told = |pid: &i32| names(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(), id);
    hypervisor_pids(&persisted).into_iter().filter(told).collect()
}

/// Whether a command line has to do with this sandbox: it has a path through a directory of that name, or Kata's name for
/// its machine (`-name sandbox-ID,…`). An id that only occurs in a word is chance.
fn names(line: &[u8], id: &str) -> bool {
    let ends = |rest: &[u8]| rest.first().is_none_or(|byte| b"/,\0".contains(byte));
    ["/", "sandbox-"].iter().any(|before| {
        let name = format!("{before}{id}");
        let found = line.windows(name.len()).enumerate().filter(|(_, part)| *part == name.as_bytes());
        found.map(|(at, _)| &line[at + name.len()..]).any(ends)
    })
}

/// The machine and its file server, of Kata's persist.json.
fn hypervisor_pids(persisted: &[u8]) -> Vec<i32> {
    let state: serde_json::Value = serde_json::from_slice(persisted).unwrap_or_default();
    let pids = ["Pid", "VirtiofsDaemonPid"].map(|key| state.get("HypervisorState")?.get(key)?.as_i64());
    pids.into_iter().flatten().filter(|pid| *pid > 1).filter_map(|pid| i32::try_from(pid).ok()).collect()
}

/// The last mounted first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// A path of mountinfo, in which some characters are `\` and three octal digits (proc_pid_mountinfo(5)).
fn unescaped(field: &str) -> PathBuf {
    let mut parts = field.split('\\');
    let mut path = parts.next().unwrap_or_default().as_bytes().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(3).unwrap_or((part, ""));
        path.extend(u8::from_str_radix(code, 8));
        path.extend(rest.as_bytes());
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machine_of_this_very_sandbox_is_killed_and_its_directories_go() {
        let _alone = crate::reaper::ALONE.blocking_lock();
        let run = tempfile::tempdir().unwrap();
        // What sh is told after its script is its own business, and names the sandbox.
        let spawn = |name: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "read forever", name]).stdin(std::process::Stdio::piped()).spawn().unwrap()
        };
        let (mut machine, mut stranger) = (spawn("/run/vc/vm/kata-1/clh.sock"), spawn("other"));
        let state = run.path().join("vc/sbs/kata-1");
        fs::create_dir_all(&state).unwrap();
        let pids = format!(r#"{{"HypervisorState":{{"Pid":{},"VirtiofsDaemonPid":{}}}}}"#, machine.id(), stranger.id());
        fs::write(state.join("persist.json"), pids).unwrap();
        // A parent goes on before its child's new command line can be read.
        while !runs(run.path(), "kata-1") {
            std::thread::yield_now();
        }
        assert!(!runs(run.path(), "kata-2"));
        sweep(run.path(), "kata-1");
        assert!(!state.exists());
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(machine.wait().unwrap().signal(), Some(9));
        assert_eq!(stranger.try_wait().unwrap(), None);
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
    }

    #[test]
    fn a_sandbox_is_not_taken_for_one_whose_name_has_its_own_in_it() {
        for (line, expected) in [
            (&b"qemu\0-name\0sandbox-a,debug-threads=on\0"[..], true),
            (b"virtiofsd\0--shared-dir=/run/kata-containers/shared/sandboxes/a/shared\0", true),
            (b"vmm\0/run/vc/vm/a\0", true),
            (b"vmm\0/run/vc/vm/ab\0", false),
            (b"bash\0-c\0make all\0", false),
            (b"/usr/sbin/a-daemon\0", false),
            (b"", false),
        ] {
            assert_eq!(names(line, "a"), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_mount_with_a_blank_in_its_name_is_found() {
        assert_eq!(unescaped("/run/a\\040b\\134c"), Path::new("/run/a b\\c"));
        assert_eq!(unescaped("/run/a"), Path::new("/run/a"));
        assert_eq!(unescaped("/run/a\\9"), Path::new("/run/a"));
    }

    #[test]
    fn garbage_names_no_process() {
        for text in ["", "{", "[]", r#"{"HypervisorState":{"Pid":-1,"VirtiofsDaemonPid":1}}"#] {
            assert_eq!(hypervisor_pids(text.as_bytes()), Vec::<i32>::new(), "{text}");
        }
    }
}
