//! Holds the containers of a pod to their memory limits: gVisor counts for each what it has and enforces nothing, the host's kernel sees the
//! sandbox as a whole. Looks, and kills whoever has too much. Above, the pure part: when somebody has, and when to look again; below,
//! the looking. Not here: the wall behind it (`wall`), and a container that has its sandbox to itself, which the kernel holds.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::calls::{Calls, Target};
use super::member::{Members, Watched};
use crate::cgroup::Cgroup;
use crate::error::TaskError;
use crate::paths;

/// Bytes a second that are taken for the fastest that a container can grow: it is looked at so often that one which grows like that is caught
/// within [`SHORTEST`].
const RATE: u64 = 1 << 30;
/// Between two looks, where somebody is about to be over the limit.
const SHORTEST: Duration = Duration::from_millis(10);
/// Between two looks at a sandbox that has not grown since the last one.
const QUIET: Duration = Duration::from_millis(250);
/// Between two looks at any.
const LONGEST: Duration = Duration::from_millis(500);
/// So many bytes more or less are no growth.
const STILL: u64 = 256 << 10;

/// Whether a container stays within its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So many bytes are left.
    Within(u64),
    /// It has too much.
    Over,
}

/// Of what is counted for a container, the files that it maps are not its own: the kernel can drop them. How much that is, gVisor says only for
/// the whole sandbox (`files`), so all of it counts for this container: nobody is killed who is within the limit, and one whose
/// neighbours map files may be over it by as much.
pub fn judge(counted: u64, files: u64, limit: u64) -> Verdict {
    let own = counted.saturating_sub(files);
    if own > limit { Verdict::Over } else { Verdict::Within(limit - own) }
}

/// When to look again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    seen: u64,
    pause: Duration,
}

impl Pace {
    /// After a look that has found so many bytes in use, and so many left to whoever has least.
    pub fn next(&mut self, seen: u64, room: u64) -> Duration {
        let soon = Duration::from_micros(room.saturating_mul(1_000_000) / RATE).clamp(SHORTEST, LONGEST);
        let still = self.seen.abs_diff(seen) <= STILL;
        self.pause = if still { (self.pause * 2).min(QUIET).max(soon) } else { soon };
        self.seen = seen;
        self.pause
    }
}

/// Looks as long as the shim lives; asleep while there is nobody with a limit. `sandbox` is its control group on the host.
pub async fn watch(members: Arc<Members>, calls: Arc<Calls>, sandbox: Option<Cgroup>) {
    let mut pace = Pace::default();
    loop {
        let watched = members.watched();
        let Some(least) = watched.iter().map(|one| one.limit).min() else {
            members.changed().await;
            continue;
        };
        // Nobody has more than all have together, and to read that costs next to nothing.
        let all = sandbox.as_ref().and_then(Cgroup::memory);
        let pause = match all.filter(|all| *all <= least) {
            Some(all) => pace.next(all, least - all),
            None => match look(&members, &calls, &watched).await {
                Ok((seen, room)) => pace.next(seen, room),
                Err(TaskError::Unimplemented(why)) => {
                    return tracing::warn!(
                        why,
                        "memory limits of a pod's containers are not held one by one, only the sandbox's"
                    );
                }
                Err(error) => {
                    tracing::debug!(%error, "the sandbox does not say what its containers use");
                    LONGEST
                }
            },
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = members.changed() => {}
        }
    }
}

/// Asks gVisor, and kills. What all have, and what is left to whoever has least left.
async fn look(members: &Members, calls: &Calls, watched: &[Watched]) -> Result<(u64, u64), TaskError> {
    let ids: Vec<_> = watched.iter().map(|one| paths::runsc_id(&one.id)).collect();
    let (counted, files) = calls.memory(&ids).await?;
    let (mut all, mut least) = (0_u64, u64::MAX);
    for (one, counted) in watched.iter().zip(counted) {
        let Some(counted) = counted else { continue }; // it has just ended
        all = all.saturating_add(counted);
        match judge(counted, files, one.limit) {
            Verdict::Within(room) => least = least.min(room),
            Verdict::Over => {
                members.is_over(&one.id, true); // first: its end may come before the answer
                tracing::info!(container = one.id, limit = one.limit, counted, files, "over its memory limit: killed");
                let killed = calls.signal(&paths::runsc_id(&one.id), Target::All, Signal::SIGKILL as u32).await;
                if let Err(error) = killed {
                    members.is_over(&one.id, false);
                    tracing::debug!(container = one.id, %error, "it was not killed");
                    least = 0;
                }
            }
        }
    }
    Ok((all, least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_has_more_than_the_limit_is_killed_and_nobody_for_the_files_that_are_mapped() {
        for (counted, files, limit, verdict) in [
            (0, 0, 1, Verdict::Within(1)),
            (64 * MIB, 0, 64 * MIB, Verdict::Within(0)),
            (64 * MIB + 1, 0, 64 * MIB, Verdict::Over),
            (64 * MIB + 1, 4 * MIB, 64 * MIB, Verdict::Within(4 * MIB - 1)),
            (300 * MIB, 298 * MIB, 64 * MIB, Verdict::Within(62 * MIB)),
            (300 * MIB, 200 * MIB, 64 * MIB, Verdict::Over),
            (5, u64::MAX, 1, Verdict::Within(1)),
            (u64::MAX, 0, u64::MAX, Verdict::Within(0)),
        ] {
            assert_eq!(judge(counted, files, limit), verdict, "{counted} {files} {limit}");
        }
    }

    #[test]
    fn the_nearer_the_limit_the_sooner_the_next_look_and_what_is_still_is_left_alone() {
        let mut pace = Pace::default();
        for (seen, room, millis) in [
            (10 * MIB, 1024 * MIB, 500), // has grown, with much room
            (20 * MIB, 102 * MIB, 99),
            (80 * MIB, 21 * MIB, 20),
            (100 * MIB, MIB, 10),
            (101 * MIB, 0, 10),
            (101 * MIB, 0, 20), // still from here on
            (101 * MIB, 0, 40),
            (101 * MIB, 0, 80),
            (101 * MIB, 0, 160),
            (101 * MIB, 0, 250),
            (101 * MIB, 0, 250),
            (101 * MIB, 1024 * MIB, 500), // the limit was raised
            (102 * MIB, 0, 10),           // it moves again
            (0, u64::MAX, 500),
        ] {
            assert_eq!(pace.next(seen, room).as_millis(), millis, "{seen} {room}");
        }
    }

    #[test]
    fn whoever_grows_no_faster_than_the_rate_is_caught_within_the_shortest_pause() {
        let (limit, mut used, mut pace) = (500 * MIB, 5 * MIB, Pace::default());
        while used <= limit {
            let pause = pace.next(used, limit - used);
            used += RATE * pause.as_millis() as u64 / 1000;
        }
        assert!(used - limit <= RATE / 1000 * SHORTEST.as_millis() as u64 + MIB, "{} over", used - limit);
    }
}
