//! The `delete` action, which a caller must take for what it is (§1, §5): no success, then a panic, then slow.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leftovers::Leftovers;
use crate::{Call, Failure, events, linger};

/// The real one takes 30 s, which is the agent's deadline; a test has not so much patience.
const AGENT_DEADLINE: Duration = Duration::from_secs(3);

/// Runs the action.
pub fn run(call: &Call) -> Result<(), Failure> {
    let leftovers = Leftovers::of(&call.id)?;
    let dir = leftovers.sandbox();
    if !dir.exists() {
        // §1: after a good end too
        return Err(format!("open {}: no such file or directory", dir.display()).into());
    }
    let [vmm, virtiofsd] = leftovers.pids()?;
    if end(vmm, &leftovers) {
        // §5: the guest is powered off, then the shim falls over; nothing on stdout
        eprintln!("panic: runtime error: invalid memory address or nil pointer dereference\n\ngoroutine 1 [running]:");
        eprintln!(
            "github.com/kata-containers/kata-containers/src/runtime/virtcontainers.(*cloudHypervisor).isClhRunning"
        );
        std::process::exit(2);
    }
    linger(AGENT_DEADLINE);
    end(virtiofsd, &leftovers);
    leftovers.remove_but_shared();
    let exited_at = MessageField::some(events::timestamp(SystemTime::now()));
    let answer = DeleteResponse { exit_status: 137, exited_at, ..Default::default() };
    Ok(answer.write_to_writer(&mut io::stdout())?)
}

/// Kills a process of this VM, and sees it end; `false` where it has ended before. Its pid may be another's by now.
fn end(pid: i32, leftovers: &Leftovers) -> bool {
    let is_alive = || {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| Path::new(word) == leftovers.vm())
    };
    let was_alive = is_alive();
    while is_alive() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may just have ended
        linger(Duration::from_millis(5));
    }
    was_alive
}
