//! Gives up all that the worker does not need, for good: root, capabilities, the file system, and the system calls that could
//! win any of it back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::unistd::{Gid, Uid, chdir, chroot, setgid, setgroups, setuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// System calls of a program that has no files, no programs to run and no processes to see: memory, threads, time, sockets.
/// Opening a socket is among them, for it has to dial; a file is not.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Those of older machines, which newer ones do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] =
    &[libc::SYS_clone, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_arch_prctl, libc::SYS_getppid];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_clone, libc::SYS_getppid];

/// Why it could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("giving up {what}: {why}")]
pub struct NotConfined {
    what: &'static str,
    why: String,
}

/// Gives it up. `root` is an empty directory. Before any thread is started.
pub fn confine(root: &Path, uid: u32, gid: u32) -> Result<(), NotConfined> {
    let giving_up = |what| move |why: &dyn std::fmt::Display| NotConfined { what, why: why.to_string() };
    let errno = |what| move |e: nix::Error| giving_up(what)(&e);
    let capabilities = |e: caps::errors::CapsError| giving_up("capabilities")(&e);
    caps::clear(None, CapSet::Ambient).map_err(capabilities)?;
    for capability in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            && caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(capabilities)?
        {
            caps::drop(None, CapSet::Bounding, capability).map_err(capabilities)?;
        }
    }
    chroot(root).map_err(errno("the file system"))?;
    chdir("/").map_err(errno("the file system"))?;
    setgroups(&[]).map_err(errno("groups"))?;
    setgid(Gid::from_raw(gid)).map_err(errno("the group of root"))?;
    setuid(Uid::from_raw(uid)).map_err(errno("root"))?; // and with it all capabilities
    nix::sys::prctl::set_no_new_privs().map_err(errno("new privileges"))?;
    nix::sys::prctl::set_dumpable(false).map_err(errno("core dumps"))?;
    let filter = filter().map_err(|e| giving_up("system calls")(&e))?;
    seccompiler::apply_filter(&filter).map_err(|e| giving_up("system calls")(&e))
}

/// What is not listed fails with EPERM, so that a library's attempt to open a file is an error and no death.
fn filter() -> Result<BpfProgram, io::Error> {
    let rules: BTreeMap<_, _> = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
