//! System calls the standard library and `nix` do not wrap safely: the only `unsafe` of this crate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

/// Holds all threads of this process, and what they start, to a filter of system calls. Not by `seccompiler`, which would also set
/// no_new_privs: children that change to another user's rights by exec would no longer do so, and root needs no such promise.
pub fn install_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    install(program, libc::SECCOMP_FILTER_FLAG_TSYNC)
}

/// This thread alone: a test has no process to itself.
#[cfg(test)]
pub fn install_filter_here(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers; it lets a test without privileges install a filter.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    install(program, 0)
}

/// A system call with arguments that no call takes.
#[cfg(test)]
pub fn call_for_test(number: libc::c_long) -> io::Result<()> {
    // SAFETY: null pointers and zeros; each of the calls tested refuses them, or takes none.
    match unsafe { libc::syscall(number, 0, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn install(program: &[seccompiler::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the program, whose instructions have the same layout in both crates (linux/filter.h), and
    // keeps no pointer into it.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) } {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has another filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptor on which a re-executed shim finds its listening socket.
pub const LISTENER_FD: RawFd = 3;

/// A user namespace with these lines in `/proc/PID/uid_map` and `gid_map`; nobody is in it.
pub fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: a fork, of which the child does nothing but wait to be killed: it touches no lock that another thread may hold.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0_usize, 0_usize, 0_usize, 0_usize) };
    match pid {
        0 => loop {
            // SAFETY: pause(2) takes nothing and touches no memory.
            unsafe { libc::pause() };
        },
        ..0 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    let made = || {
        std::fs::write(format!("/proc/{pid}/uid_map"), users)?;
        std::fs::write(format!("/proc/{pid}/gid_map"), groups)?;
        std::fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    };
    let made = made();
    let child = nix::unistd::Pid::from_raw(pid as i32);
    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(child, None); // the reaper may have been faster
    made
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Mounts the tree at `from` at `at`, read-only, with its ids mapped by a user namespace. What is mounted below is left out.
pub fn mount_with_ids(from: &std::path::Path, at: &std::path::Path, user_namespace: &OwnedFd) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    // Of linux/mount.h.
    const OPEN_TREE_CLONE: libc::c_long = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_long = 4;
    let path = |path: &std::path::Path| std::ffi::CString::new(path.as_os_str().as_bytes());
    let (from, at) = (path(from)?, path(at)?);
    let done = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let here = libc::c_long::from(libc::AT_FDCWD);
    // SAFETY: a path that ends with NUL; the result is a descriptor of our own, or -1.
    let tree = done(unsafe {
        libc::syscall(libc::SYS_open_tree, here, from.as_ptr(), OPEN_TREE_CLONE | libc::c_long::from(libc::O_CLOEXEC))
    })?;
    // SAFETY: the descriptor was made by the call above and belongs to nobody else.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as RawFd) };
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        user_namespace: user_namespace.as_raw_fd() as u64,
    };
    let (tree, nothing) = (libc::c_long::from(tree.as_raw_fd()), c"".as_ptr());
    let empty = libc::c_long::from(libc::AT_EMPTY_PATH);
    // SAFETY: descriptors that are open, paths that end with NUL, and a struct of the size that is given; the kernel keeps none.
    done(unsafe {
        let size = size_of::<MountAttributes>();
        libc::syscall(libc::SYS_mount_setattr, tree, nothing, empty, &raw const attributes, size)
    })?;
    // SAFETY: the same.
    done(unsafe { libc::syscall(libc::SYS_move_mount, tree, nothing, here, at.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH) })?;
    Ok(())
}

/// Makes orphaned descendants our children, so that sandboxes started through a short-lived CLI are reaped by us.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One heap for all threads: the few that are not ours (audit, file hashing) would each begin one of their own.
#[cfg(target_env = "gnu")]
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes two integers; called before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back what a Create or Start needed and nobody needs any more, the heap and the code: a node multiplies it by its sandboxes.
/// Code that is called again is still in the page cache, at a minor fault for 64 KiB of it.
#[cfg(target_env = "gnu")]
pub fn give_memory_back() {
    unsafe extern "C" {
        // Of the linker: ld(1), "Source Code Reference".
        static __executable_start: libc::c_char;
        static etext: libc::c_char;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    // SAFETY: malloc_trim(3) takes an integer. Between the two symbols lie the program's headers and code, mapped from its
    // file and never written to, so that dropping the pages loses nothing: they are read again from the same file.
    unsafe {
        libc::malloc_trim(0);
        libc::madvise(start.cast_mut().cast(), end.addr() - start.addr(), libc::MADV_DONTNEED);
    }
}

/// Other C libraries do so by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

/// The same.
#[cfg(not(target_env = "gnu"))]
pub fn give_memory_back() {}

/// The listening socket that `start` handed over; call once, before any other descriptor is opened.
pub fn inherited_listener() -> io::Result<OwnedFd> {
    // SAFETY: fcntl only inspects the number; it fails with EBADF where nothing was handed over.
    if unsafe { libc::fcntl(LISTENER_FD, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and `start` gave it to this process alone.
    Ok(unsafe { OwnedFd::from_raw_fd(LISTENER_FD) })
}

/// Gives the child these descriptors as 3, 4, … and, with `own_session`, a session of its own.
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>, own_session: bool) {
    use std::os::unix::process::CommandExt;
    // Made here, since a forked child must not allocate.
    let mut parked = vec![-1; fds.len()];
    let hook = move || {
        // First out of the way of the targets, then to their places: dup2 also clears close-on-exec.
        let above = LISTENER_FD + fds.len() as RawFd;
        for (fd, parked) in fds.iter().zip(&mut parked) {
            // SAFETY: between fork and exec only async-signal-safe calls are made, on descriptors we own.
            *parked = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
            if *parked < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (target, parked) in (LISTENER_FD..).zip(&parked) {
            // SAFETY: as above, on the duplicates made in the first loop.
            if unsafe { libc::dup2(*parked, target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: setsid takes nothing; it fails only for a group leader, which a fresh child is not.
        if own_session && unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the hook allocates nothing and takes no lock; see its blocks.
    unsafe { command.pre_exec(hook) };
}

/// A descriptor that came with a message.
pub fn received_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: SCM_RIGHTS made this descriptor for us; the caller took it out of the message, once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Size of a terminal, in characters.
pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes a pipe holds.
pub fn unread(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which lives until the call returns.
    match unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut bytes) } {
        0 => Ok(bytes as usize),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor whose readiness can be awaited.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` answers `as_raw_fd` with the same open descriptor until it is dropped, and `AsyncFd`
    // deregisters before it drops what it owns.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Hands a listening socket to the ttrpc server, which then owns it.
pub fn add_listener(
    server: containerd_shim_protos::ttrpc::r#async::Server,
    listener: RawFd,
) -> containerd_shim_protos::ttrpc::Result<containerd_shim_protos::ttrpc::r#async::Server> {
    // SAFETY: the caller gave the descriptor up with `into_raw_fd`, so nobody else closes it.
    unsafe { server.add_unix_listener(listener) }
}
