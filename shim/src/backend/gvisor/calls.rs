//! What is asked of a running sandbox, by one of two ways: its control socket (`control`), or runsc's command line where
//! this build does not answer there as we expect (or an operator says so). Found out once for each build, before the
//! sandbox runs anything of a workload, for what a hostile one answers must not be remembered against others; what it
//! answers later counts for its own pod alone.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use nix::sys::signal::Signal;

use super::attached::{self, Attached};
use super::cli::Runsc;
use super::control::{self, Control};
use super::inside::{self, Counted, Setting, Version};
use super::urpc::CallError;
use crate::cgroup::Resources;
use crate::error::TaskError;
use crate::exec::ExecProcess;
use crate::settings;
use crate::task::{Exit, KILLED};

/// How often `runsc wait` is begun before its process is taken for gone.
const TRIES: u32 = 5;
/// Between two tries.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Under this name it is remembered of a build; the text is [`BY_SOCKET`], or why not.
const KEPT: &str = "calls";
const BY_SOCKET: &str = "by socket";
/// The command line knows no real-time signals.
const LAST_SIGNAL: u32 = 31;

/// A running exec.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its pid inside the sandbox.
    pid: i32,
    /// The runsc that waits for it; none by the control socket.
    attached: Option<Attached>,
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// The container's init.
    Init,
    /// Every process of the container.
    All,
    /// An exec.
    Exec(&'a Running),
    /// Those that the terminal of this exec is with.
    Foreground(&'a Running),
}

impl Target<'_> {
    /// As both ways name it.
    fn inner(self) -> control::Target {
        match self {
            Self::Init => control::Target::Init,
            Self::All => control::Target::All,
            Self::Exec(exec) => control::Target::Process(exec.pid),
            Self::Foreground(exec) => control::Target::Foreground(exec.pid),
        }
    }
}

/// One sandbox, spoken to. Containers are named as runsc names them.
pub struct Calls {
    runsc: Runsc,
    root_id: String,
    control: OnceLock<Control>,
    inside: OnceLock<Version>,
    by_cli: AtomicBool,
    /// The containers in whose name runsc has paused the sandbox; it resumes it and refuses signals by their state.
    frozen: Mutex<HashSet<String>>,
    execs: AtomicU64,
}

impl Calls {
    /// Of a sandbox that may still have to be made. `root_id` is its first container.
    pub fn new(runsc: Runsc, root_id: &str, control: settings::Control) -> Self {
        let by_cli = AtomicBool::new(control == settings::Control::Cli);
        let (control, inside, frozen, execs) = Default::default();
        Self { runsc, root_id: root_id.to_owned(), control, inside, by_cli, frozen, execs }
    }

    /// Finds out which way. The sandbox is made, and runs nothing yet.
    pub async fn learn(&self) {
        if self.by_cli() {
            return; // an operator says so
        }
        let known = self.runsc.known();
        let why = match known.recall(KEPT) {
            Some(kept) => Some(kept).filter(|kept| kept != BY_SOCKET),
            None => {
                let asked = match self.control() {
                    Ok(control) => control.lacks().await,
                    Err(error) => return tracing::debug!(%error, "the sandbox was not asked what it can"),
                };
                match asked {
                    Ok(lacks) => {
                        let why = lacks.map(|(method, why)| format!("{method}: {why}"));
                        known.keep(KEPT, why.as_deref().unwrap_or(BY_SOCKET));
                        why
                    }
                    Err(error) => return tracing::debug!(%error, "the sandbox did not say what it can"),
                }
            }
        };
        if let Some(why) = why {
            self.fall_back(&why);
        }
    }

    fn by_cli(&self) -> bool {
        self.by_cli.load(Ordering::Relaxed)
    }

    fn fall_back(&self, why: &str) {
        if !self.by_cli.swap(true, Ordering::Relaxed) {
            let runsc = self.runsc.known().runsc();
            tracing::warn!(runsc, why, "the sandbox is spoken to by runsc's command line, not by its control socket");
        }
    }

    /// After what the socket has answered: whether to make the call again by the command line. An answer that makes no
    /// sense is none to do that for: the call may have been made.
    fn again(&self, error: &CallError) -> bool {
        match error {
            CallError::Unable { .. } | CallError::Nonsense { .. } => self.fall_back(&error.to_string()),
            _ => return false,
        }
        matches!(error, CallError::Unable { .. })
    }

    fn control(&self) -> Result<&Control, TaskError> {
        if let Some(control) = self.control.get() {
            return Ok(control);
        }
        let socket = self.runsc.control_socket(&self.root_id)?;
        Ok(self.control.get_or_init(|| Control::new(&socket)))
    }

    /// Starts a process in a container. `bundle` is a directory of the container's, for what passes between runsc and us.
    pub async fn exec(
        &self,
        cid: &str,
        process: &ExecProcess,
        pty: bool,
        fds: [OwnedFd; 3],
        bundle: PathBuf,
    ) -> Result<Running, TaskError> {
        let doing = || format!("exec of {:?} in the sandbox", process.program());
        if !self.by_cli() {
            match self.control()?.exec(cid, process, pty, &fds).await {
                Ok(pid) => return Ok(Running { pid, attached: None }),
                Err(error) if self.again(&error) => {}
                Err(error) => return Err(TaskError::host(doing(), error)),
            }
        }
        let scratch = bundle.join(format!("exec-{}", self.execs.fetch_add(1, Ordering::Relaxed)));
        let made = Attached::exec(&self.runsc, cid, process, pty, fds, &scratch).await;
        let (pid, attached) = made.map_err(|error| TaskError::host(doing(), error))?;
        Ok(Running { pid, attached: Some(attached) })
    }

    /// Resolves with the end of an exec.
    pub async fn exec_exit(&self, cid: &str, exec: &Running) -> Exit {
        if let Some(attached) = exec.attached.clone() {
            return attached.exit().await;
        }
        let asked = match self.control() {
            Ok(control) => control.wait_pid(cid, exec.pid).await,
            Err(_) => Ok(KILLED),
        };
        self.exit(cid, Some(exec.pid), asked).await
    }

    /// Resolves with the end of a container's init that was started.
    pub async fn container_exit(&self, cid: &str) -> Exit {
        let asked = match (self.by_cli(), self.control()) {
            (true, _) => None,
            (false, Ok(control)) => Some(control.wait(cid).await),
            (false, Err(_)) => Some(Ok(KILLED)),
        };
        match asked {
            Some(asked) => self.exit(cid, None, asked).await,
            None => exit(self.wait(cid, None).await),
        }
    }

    /// A sandbox that cannot say how a process ended is gone, and the process with it.
    async fn exit(&self, cid: &str, pid: Option<i32>, asked: Result<u32, CallError>) -> Exit {
        match asked {
            Ok(status) => exit(Some(status)),
            Err(error) if self.again(&error) => exit(self.wait(cid, pid).await),
            Err(error) => {
                tracing::debug!(%error, "no exit status from the sandbox");
                exit(None)
            }
        }
    }

    async fn wait(&self, cid: &str, pid: Option<i32>) -> Option<u32> {
        // runsc may fail for what another runsc does to the same sandbox at this moment: then nothing has ended.
        for _ in 0..TRIES {
            match attached::wait(&self.runsc, cid, pid).await {
                Ok(Some(status)) => return Some(status),
                Ok(None) => tracing::debug!(cid, "runsc wait failed"),
                Err(error) => tracing::warn!(%error, "runsc wait could not be run"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        None
    }

    /// Signals one process or all of a container.
    pub async fn signal(&self, cid: &str, target: Target<'_>, signal: u32) -> Result<(), TaskError> {
        if !self.by_cli() {
            match self.control()?.signal(cid, target.inner(), signal).await {
                Ok(()) => return Ok(()),
                Err(error) if self.again(&error) => {}
                // The number was checked before; what is left is that nobody is there.
                Err(CallError::Refused(why)) => return Err(TaskError::NotFound(format!("process: {why}"))),
                Err(CallError::Gone(_)) => return Err(TaskError::NotFound("the sandbox's process".into())),
                Err(error) => return Err(TaskError::host("signalling the sandbox", error)),
            }
        }
        if let Target::Foreground(Running { attached: Some(attached), .. }) = target {
            attached.signal(signal);
            return Ok(());
        }
        if signal > LAST_SIGNAL {
            let why = format!("signal {signal}: runsc's command line knows none above {LAST_SIGNAL}");
            return Err(TaskError::Unimplemented(why));
        }
        if self.frozen().contains(cid) {
            if signal != Signal::SIGKILL as u32 {
                let why = "runsc's command line signals nothing that is paused; resume it first";
                return Err(TaskError::Unimplemented(format!("signal {signal}: {why}")));
            }
            self.pause_by_cli(cid, false).await?; // what is killed need not be frozen any more
        }
        self.runsc.kill(cid, target.inner(), signal).await.map_err(|e| TaskError::NotFound(format!("process: {e}")))
    }

    /// Connects a stream with a TCP port of the sandbox's loopback. The command line would stay in between, one process for
    /// each port: it is not asked.
    pub async fn connect(&self, cid: &str, port: u16, stream: OwnedFd) -> Result<(), TaskError> {
        let connected = self.control()?.connect(cid, port, stream).await;
        connected.map_err(|error| TaskError::host(format!("connecting with port {port} of the sandbox"), error))
    }

    /// What a container uses; nothing of one that has no control group inside yet, or no more.
    pub async fn counted(&self, cid: &str) -> Result<Option<Counted>, TaskError> {
        let version = self.inside();
        let said = self.counting()?.read_groups(&inside::questions(version, cid)).await.map_err(uncounted)?;
        Ok(inside::counted(version, &said.into_iter().map(Result::ok).collect::<Vec<_>>()))
    }

    /// The memory of each container, and of the files that all of them map, which is in each one's.
    pub async fn memory(&self, cids: &[String]) -> Result<(Vec<Option<u64>>, u64), TaskError> {
        let (version, control) = (self.inside(), self.counting()?);
        let files: Vec<_> = cids.iter().map(|cid| inside::memory(version, cid)).collect();
        // First, for what is mapped between the two must not be taken for a container's own.
        let said = control.read_groups(&files).await.map_err(uncounted)?;
        let mapped = control.mapped().await.map_err(uncounted)?;
        Ok((said.into_iter().map(|said| said.ok()?.trim().parse().ok()).collect(), mapped))
    }

    /// Writes a container's limits into its control group inside. An error is one about what gVisor would hold it to.
    pub async fn limit(&self, cid: &str, limits: &Resources) -> Result<(), TaskError> {
        let settings = inside::settings(self.inside(), cid, limits);
        let said = self.counting()?.write_groups(&settings).await.map_err(uncounted)?;
        let failed = settings.iter().zip(said).filter_map(|(setting, said)| Some((setting, said.err()?)));
        let (held, shown): (Vec<_>, Vec<_>) = failed.partition(|(setting, _)| Setting::is_enforced(setting));
        for (setting, why) in shown {
            tracing::debug!(cid, file = setting.name(), why, "a limit is not shown inside");
        }
        match held.first() {
            None => Ok(()),
            Some((setting, why)) => {
                Err(TaskError::host(format!("writing {} of {cid} inside the sandbox", setting.name()), why))
            }
        }
    }

    /// Which control groups this build has inside.
    pub fn inside(&self) -> Version {
        *self.inside.get_or_init(|| self.runsc.inside())
    }

    /// Whether the sandbox can be asked what its containers use.
    pub fn counts(&self) -> bool {
        !self.by_cli()
    }

    fn counting(&self) -> Result<&Control, TaskError> {
        match self.counts() {
            true => self.control(),
            false => Err(TaskError::Unimplemented(
                "runsc's command line does not say what one container of a sandbox uses".into(),
            )),
        }
    }

    /// Freezes or thaws the whole sandbox, in the name of one of its containers.
    pub async fn pause(&self, cid: &str, pause: bool) -> Result<(), TaskError> {
        if !self.by_cli() {
            match self.control()?.pause(pause).await {
                Ok(()) => return Ok(()),
                Err(error) if self.again(&error) => {}
                Err(error) => return Err(TaskError::host("freezing or thawing the sandbox", error)),
            }
        }
        self.pause_by_cli(cid, pause).await
    }

    /// Thawing what is not frozen does nothing: a kill has done it already.
    async fn pause_by_cli(&self, cid: &str, pause: bool) -> Result<(), TaskError> {
        if !pause && !self.frozen().contains(cid) {
            return Ok(());
        }
        self.runsc.pause(cid, pause).await?;
        match pause {
            true => self.frozen().insert(cid.to_owned()),
            false => self.frozen().remove(cid),
        };
        Ok(())
    }

    fn frozen(&self) -> MutexGuard<'_, HashSet<String>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A build that lacks these calls lacks nothing else.
fn uncounted(error: CallError) -> TaskError {
    match error {
        CallError::Unable { .. } => TaskError::Unimplemented(error.to_string()),
        error => TaskError::host("asking the sandbox about its containers' control groups", error),
    }
}

fn exit(status: Option<u32>) -> Exit {
    Exit { status: status.unwrap_or(KILLED), at: SystemTime::now() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Control::{Auto, Cli};

    #[test]
    fn only_what_was_certainly_not_done_is_done_again_the_other_way() {
        let (method, why) = ("containerManager.ExecuteAsync", String::new());
        for (error, again, by_cli) in [
            (CallError::Unable { method, why: why.clone() }, true, true),
            (CallError::Nonsense { method, why }, false, true),
            (CallError::Refused("no such process".into()), false, false),
            (CallError::Gone(std::io::ErrorKind::ConnectionRefused.into()), false, false),
            (CallError::Silent(method), false, false),
        ] {
            let calls = Calls::new(Runsc::new(Path::new("/nonexistent")), "root", Auto);
            assert_eq!((calls.again(&error), calls.by_cli()), (again, by_cli), "{error}");
        }
        assert!(Calls::new(Runsc::new(Path::new("/nonexistent")), "root", Cli).by_cli());
    }
}
