//! Network namespaces of a test's own; gone with it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// A network namespace under a name that no other has.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one, in which nothing but `lo` is, and that is up.
    pub fn new(what: &str) -> Self {
        static ALL: AtomicU32 = AtomicU32::new(0);
        let name = format!("cr-{what}-{}-{}", std::process::id(), ALL.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let new = Self { name };
        new.ip("link set lo up");
        new
    }

    /// By this name `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// By this path everybody does.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip` inside, with these words as arguments.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        run(&["ip", "-n", &self.name].into_iter().chain(words.split_whitespace()).collect::<Vec<_>>());
    }

    /// Sets `net.…`, here alone. That of a protocol or a module the kernel does not have is an error.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(move || std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// A command that will run inside. Its mounts are those of the caller.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Runs a function inside, on a thread of its own, to its end.
    #[track_caller]
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                self.enter();
                work()
            });
            done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves this thread there for good.
    pub fn enter(&self) {
        setns(File::open(self.path()).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A program to its end, which must be a good one.
#[track_caller]
pub fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{words:?}: {e}: run scripts/setup system"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
