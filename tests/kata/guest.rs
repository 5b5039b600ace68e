//! The "VM" from outside: a pid namespace, and the network namespace that Kata makes where the spec names none, whose first process stands for the VMM. Whoever kills that process kills all
//! that runs in it: the kernel sees to it.

use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::inside::{ContainerSpec, ProcessSpec};
use crate::leftovers::Leftovers;

/// A running VM.
pub struct Guest {
    vmm: Child,
    virtiofsd: Child,
    spawner: Sender<(Command, Sender<io::Result<Child>>)>,
}

impl Guest {
    /// Boots one.
    pub fn boot(leftovers: &Leftovers) -> io::Result<Self> {
        let (spawner, orders) = channel::<(Command, Sender<io::Result<Child>>)>();
        // Children of this thread alone are born into the namespace.
        std::thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET);
            for (mut command, answer) in orders {
                let child = entered.map_err(io::Error::from).and_then(|()| command.spawn());
                drop(command); // it holds the child's end of a terminal
                let _ = answer.send(child);
            }
        });
        let mut program = itself("vmm", &leftovers.vm().to_string_lossy())?;
        program.stdin(Stdio::null());
        let vmm = spawn(&spawner, program)?;
        let mut program = itself("virtiofsd", &leftovers.vm().to_string_lossy())?;
        let virtiofsd = program.stdin(Stdio::null()).spawn()?;
        leftovers.make(vmm.id(), virtiofsd.id())?;
        Ok(Self { vmm, virtiofsd, spawner })
    }

    /// The pid that everything has (§3).
    pub fn pid(&self) -> u32 {
        self.vmm.id()
    }

    /// Starts a program in the VM.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        spawn(&self.spawner, command)
    }

    /// Makes a container's mounts and root; nothing of the workload runs.
    pub fn container(&self, spec: &ContainerSpec) -> io::Result<Holder> {
        let mut program = itself("container", &serde_json::to_string(spec)?)?;
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(program)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { unreachable!("piped") };
        let mut stdout = BufReader::new(stdout);
        if line(&mut stdout)? != "ready" {
            let said = child.stderr.take().map(io::read_to_string).transpose()?;
            child.wait()?;
            return Err(io::Error::other(said.unwrap_or_default()));
        }
        let namespace = Arc::new(File::open(format!("/proc/{}/ns/mnt", child.id()))?);
        let scope = Scope { namespace, holder: child.id() };
        Ok(Holder { child, stdin, stdout, scope })
    }

    /// Takes its power, and what belongs to it. A holder that is not waited for would keep the VMM a zombie for ever.
    pub fn kill<'a>(&mut self, holders: impl Iterator<Item = &'a mut Holder>) {
        let _ = self.vmm.kill();
        holders.for_each(Holder::end);
        let _ = self.vmm.wait();
        let _ = self.virtiofsd.kill();
        let _ = self.virtiofsd.wait();
    }

    /// The same at the daemon's own end, when nobody waits for anything.
    pub fn kill_and_forget(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.virtiofsd.kill();
    }
}

fn spawn(spawner: &Sender<(Command, Sender<io::Result<Child>>)>, command: Command) -> io::Result<Child> {
    let (answer, child) = channel();
    let gone = || io::Error::other("the VM is gone");
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// This program again, in another part.
pub fn itself(part: &str, argument: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([part, argument]);
    Ok(command)
}

/// The process that keeps a container's mounts for those that are to run on them.
pub struct Holder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// The container's processes.
    pub scope: Scope,
}

impl Holder {
    /// Its host pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program of `process` is there.
    pub fn finds(&mut self, process: &ProcessSpec) -> io::Result<bool> {
        writeln!(self.stdin, "{}", serde_json::to_string(process)?)?;
        Ok(line(&mut self.stdout)? == "found")
    }

    /// Kills what runs in the container, and lets go of its mounts.
    pub fn end(&mut self) {
        self.scope.signal(Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    /// The workload may run on; a zombie in its namespace would keep the VMM one for ever.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes of a container: those that see its mounts.
#[derive(Clone)]
pub struct Scope {
    /// Open, so that no other namespace gets its number: strangers would be killed.
    namespace: Arc<File>,
    holder: u32,
}

impl Scope {
    /// Signals them all.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), signal); // it may just have ended
        }
    }

    /// Their host pids.
    pub fn processes(&self) -> Vec<i32> {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let number = |file: io::Result<Metadata>| file.ok().map(|file| file.ino());
        let own = number(self.namespace.metadata());
        let ours = |pid: &u32| *pid != self.holder && number(fs::metadata(format!("/proc/{pid}/ns/mnt"))) == own;
        pids.filter(ours).map(|pid| pid as i32).collect()
    }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Whether a process is there and not about to end: one that is has no memory any more, hence no command line. A VMM
/// that was killed counts as dead before the kernel has killed what runs in it.
pub fn is_alive(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}
