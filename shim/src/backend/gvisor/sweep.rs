//! What is left where runsc could not take it away: of a container whose sandbox had gone or never came up, and of all that a killed shim had.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cli::Runsc;
use super::spec;
use crate::backend::Place;
use crate::{cgroup, paths};

/// What is killed takes so long to go, at most: on a busy machine seconds. containerd gives `delete` 5 s for all.
const BUDGET: Duration = Duration::from_millis(4500);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// Removes a container's control group, where runsc has not: it knew nothing of it, or could not ask the sandbox. With the sandbox's own
/// (`is_root`) all goes that runs of it.
pub async fn group(runsc: &Runsc, group: &Path, is_root: bool) {
    let is_gone = || cgroup::remove(group).unwrap_or(true);
    if is_gone() {
        return;
    }
    if is_root {
        runsc.kill_rest();
    }
    let ends = Instant::now() + BUDGET;
    while !runsc.is_shared(group) && !is_gone() && Instant::now() < ends {
        tokio::time::sleep(LOOK).await;
    }
}

/// What a killed shim has left of one container.
pub fn all(place: &Place, id: &str, theirs: &Path) -> io::Result<()> {
    let ends = Instant::now() + BUDGET;
    let runsc = Runsc::new(&place.dir);
    runsc.settle_blocking();
    if id == place.group {
        // The sandbox takes the pod's other containers with it, and runsc knows of them only as long as it is there.
        for other in paths::bundles(&place.dir).iter().filter(|other| *other != id) {
            runsc.delete_blocking(&paths::runsc_id(other))?;
        }
    }
    if place.dir.exists() {
        runsc.delete_blocking(&paths::runsc_id(id))?;
    }
    if id == place.group {
        runsc.kill_rest();
    }
    // A runsc that was killed had made it and told nobody. Ours may be gone already, by a shim that ended meanwhile.
    let ours = paths::bundle(&place.dir, id);
    if let Some(group) = spec::cgroup_of(&ours).or_else(|| spec::cgroup_of(theirs)) {
        while !runsc.is_shared(&group) && !cgroup::remove(&group)? && Instant::now() < ends {
            #[expect(clippy::disallowed_methods, reason = "the `delete` action has no other tasks")]
            std::thread::sleep(LOOK); // what was killed is not reaped yet
        }
    }
    Ok(())
}
