//! The end of a downstream shim: asked for, brought about, and what it left behind removed.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, Empty, KillRequest, ShutdownRequest};
use containerd_shim_protos::api::{WaitRequest, WaitResponse};
use nix::sys::signal::Signal;

use super::forward::Downstream;
use super::{Shim, kata};
use crate::{paths, reaper};

/// For each call to a shim whose pod is being removed.
const BRIEF: Duration = Duration::from_secs(1);
/// For its `delete`: containerd gives ours 5 s for all.
const DELETE: Duration = Duration::from_secs(3);
/// For all that a killed shim's `delete` may take.
const BUDGET: Duration = Duration::from_millis(4500);

impl Shim {
    /// Asks it to end and sees to it; what it left behind of the `untidy` containers is removed as well.
    pub async fn dismiss(&self, shim: Option<&Downstream>, untidy: BTreeSet<String>) {
        if let Some(shim) = shim {
            let request = ShutdownRequest { id: self.place.group.clone(), ..Default::default() };
            // Some end before they have answered.
            let _ = shim.call::<_, Empty>("Shutdown", &request, BRIEF).await;
        }
        self.gone().await;
        for id in untidy {
            self.tidy(&id).await;
        }
    }

    async fn tidy(&self, id: &str) {
        self.delete(id, DELETE).await;
        if kata::is(&self.program) {
            kata::sweep(Path::new(kata::RUN), id);
        }
    }

    /// Kills one container and deletes it; whether that went well. Kata neither kills nor ends one that it has not started,
    /// and deletes it all the same, but not all that belongs to it.
    pub async fn end(&self, shim: &Downstream, id: &str) -> bool {
        let (all, signal) = (true, Signal::SIGKILL as u32);
        let kill = KillRequest { id: id.to_owned(), signal, all, ..Default::default() };
        let killed = shim.call::<_, Empty>("Kill", &kill, BRIEF).await;
        let wait = WaitRequest { id: id.to_owned(), ..Default::default() };
        let ended = killed.is_ok() && shim.call::<_, WaitResponse>("Wait", &wait, BRIEF).await.is_ok();
        self.forget(shim, id).await && ended
    }

    /// Deletes one container that has ended; whether that went well.
    pub async fn forget(&self, shim: &Downstream, id: &str) -> bool {
        let request = DeleteRequest { id: id.to_owned(), ..Default::default() };
        let deleted = shim.call::<_, DeleteResponse>("Delete", &request, DELETE).await;
        deleted.inspect_err(|error| tracing::debug!(id, %error, "the downstream shim did not delete it")).is_ok()
    }

    /// What a killed shim of ours has left of one container, or with the first one of the pod.
    async fn sweep(&self, id: &str) {
        let all = id == self.place.group;
        let ids = if all { paths::bundles(&self.place.dir) } else { vec![id.to_owned()] };
        // It was never started: whatever has these names is another's.
        let Some(address) = self.address() else { return self.gone().await };
        let shim = Downstream::connect(&self.name, &address).await.ok();
        let mut untidy = BTreeSet::new();
        for id in ids {
            let well = match &shim {
                Some(shim) => self.end(shim, &id).await,
                None => false,
            };
            if !well {
                untidy.insert(id);
            }
        }
        if all {
            return self.dismiss(shim.as_ref(), untidy).await;
        }
        for id in untidy {
            self.tidy(&id).await;
        }
    }
}

/// Removes what a killed shim of ours has left of one container, without an async runtime of the caller's.
pub fn sweep(shim: &Shim, id: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(reaper::run());
        let swept = tokio::time::timeout(BUDGET, shim.sweep(id)).await;
        swept.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{}'s shim does not let go", shim.name)))
    })
}
