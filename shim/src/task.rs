//! The life of one process of a pod (a container's init or an exec): phase and input in, phase and events out. Pure.

use std::fmt;
use std::time::SystemTime;

/// The status of a process that died by SIGKILL, or whose sandbox is gone.
pub const KILLED: u32 = 137;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, not started.
    Created,
    /// Start is on its way to the runtime.
    Starting,
    /// It ended before we heard that it had started.
    DiedEarly(Exit),
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended; waits for Delete.
    Stopped(Exit),
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start was asked for.
    Start,
    /// The runtime says it runs.
    Started,
    /// The runtime could not start it.
    StartFailed(Exit),
    /// It ended.
    Exited(Exit),
    /// It was frozen.
    Paused,
    /// It was thawed.
    Resumed,
}

/// What containerd must hear, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// TaskStart or TaskExecStarted.
    Start,
    /// TaskExit.
    Exit(Exit),
    /// TaskPaused.
    Paused,
    /// TaskResumed.
    Resumed,
}

/// The one table of a process's life; `None` where the input makes no sense in that phase.
pub fn step(phase: Phase, input: Input) -> Option<(Phase, Vec<Heard>)> {
    use Phase::*;
    Some(match (phase, input) {
        (Created, Input::Start) => (Starting, vec![]),
        (Starting, Input::Started) => (Running, vec![Heard::Start]),
        (Starting, Input::Exited(exit)) => (DiedEarly(exit), vec![]),
        // Start is heard before Exit even when the process died at once.
        (DiedEarly(exit), Input::Started) => (Stopped(exit), vec![Heard::Start, Heard::Exit(exit)]),
        (Starting, Input::StartFailed(exit)) | (DiedEarly(_), Input::StartFailed(exit)) => (Stopped(exit), vec![]),
        (Created | Running | Paused, Input::Exited(exit)) => (Stopped(exit), vec![Heard::Exit(exit)]),
        // Exactly one Exit, however often it is reaped.
        (Stopped(exit), Input::Exited(_)) => (Stopped(exit), vec![]),
        (DiedEarly(exit), Input::Exited(_)) => (DiedEarly(exit), vec![]),
        (Running, Input::Paused) => (Paused, vec![Heard::Paused]),
        (Paused, Input::Resumed) => (Running, vec![Heard::Resumed]),
        _ => return None,
    })
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Created => "created",
            Phase::Starting | Phase::DiedEarly(_) => "starting",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopped(_) => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_heard_to_start_before_it_ends_and_ends_once() {
        let exit = Exit { status: 7, at: SystemTime::UNIX_EPOCH };
        let late = Exit { status: 9, at: SystemTime::UNIX_EPOCH };
        for (inputs, expected) in [
            (vec![Input::Start, Input::Started, Input::Exited(exit)], vec![Heard::Start, Heard::Exit(exit)]),
            (vec![Input::Start, Input::Exited(exit), Input::Started], vec![Heard::Start, Heard::Exit(exit)]),
            (vec![Input::Exited(exit), Input::Exited(late)], vec![Heard::Exit(exit)]),
            (vec![Input::Start, Input::StartFailed(exit), Input::Exited(late)], vec![]),
            (
                vec![
                    Input::Start,
                    Input::Started,
                    Input::Paused,
                    Input::Resumed,
                    Input::Exited(exit),
                    Input::Exited(late),
                ],
                vec![Heard::Start, Heard::Paused, Heard::Resumed, Heard::Exit(exit)],
            ),
        ] {
            let mut phase = Phase::Created;
            let mut heard = vec![];
            for input in &inputs {
                let (next, said) = step(phase, *input).unwrap();
                phase = next;
                heard.extend(said);
            }
            assert_eq!(heard, expected, "{inputs:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let exit = Exit { status: 0, at: SystemTime::UNIX_EPOCH };
        for (phase, input) in [
            (Phase::Running, Input::Start),
            (Phase::Stopped(exit), Input::Start),
            (Phase::Created, Input::Paused),
            (Phase::Running, Input::Resumed),
            (Phase::Stopped(exit), Input::Paused),
        ] {
            assert_eq!(step(phase, input), None, "{phase} {input:?}");
        }
    }
}
