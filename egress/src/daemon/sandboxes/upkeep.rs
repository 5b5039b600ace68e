//! Keeps what stands standing: after a daemon that was killed, and against whoever changes rules by hand.

use tokio::sync::watch;
use trust::audit::Event;

use super::{Code, Sandboxes, Standing, Standings, bind, refused, silent, stands};
use crate::daemon::fence::{Audit, Fences};
use crate::policy::CompiledPolicy;
use crate::protocol::{Refusal, SandboxKey};

impl Sandboxes {
    /// After a daemon that was killed: what was kept stands again, never open in between, and what has no network any more is
    /// swept. Where a policy cannot be read the one that was enforced goes on.
    pub async fn recover(&self) -> Result<(), Refusal> {
        let mut standing = self.standing.lock().await;
        for kept in self.state.all().map_err(|e| refused(Code::State)(&e))? {
            let kept = match kept {
                Ok(kept) => kept,
                Err((path, error)) => {
                    tracing::error!(path = %path.display(), %error, "what was kept of a fence cannot be read: it stays as it is");
                    continue;
                }
            };
            let (sandbox, policy) = (kept.attach.sandbox.clone(), kept.policy.policy.clone());
            self.recorder.know(&kept.attach);
            let changes = watch::Sender::new(kept.fence.clone());
            standing
                .insert(sandbox.clone(), Standing { kept: kept.clone(), policy: CompiledPolicy::new(policy), changes });
            if !stands(&kept) {
                self.take_down(&mut standing, &kept).await?;
                tracing::info!(%sandbox, "its network is gone: swept");
                continue;
            }
            self.take_over(&mut standing, &sandbox);
            self.worker.bind(bind(&kept)).await.map_err(silent)?;
        }
        for error in self.reload_all(&mut standing).await.errors {
            tracing::error!(error, "policy");
        }
        self.metrics.standing(standing.len());
        Ok(())
    }

    /// Compares all fences with what the kernel has, and sweeps those around nothing.
    pub async fn audit(&self) {
        let sandboxes: Vec<SandboxKey> = self.standing.lock().await.keys().cloned().collect();
        for sandbox in sandboxes {
            let mut standing = self.standing.lock().await; // let go between two, so that nobody waits for all
            let Some(kept) = standing.get(&sandbox).map(|found| found.kept.clone()) else { continue };
            if stands(&kept) {
                self.compare(&mut standing, &sandbox);
            } else if let Err(error) = self.take_down(&mut standing, &kept).await {
                tracing::error!(%sandbox, %error, "its network is gone, and its fence cannot be swept");
            }
        }
    }

    /// What an earlier daemon put up: compared, or put up anew where this one would have put up something else.
    fn take_over(&self, standing: &mut Standings, sandbox: &SandboxKey) {
        let Some(found) = standing.get_mut(sandbox) else { return };
        let now = |slot| self.fences.put(slot, &found.kept.ports, &found.policy.address_rules());
        if found.kept.slot().map(now) == found.kept.put {
            return self.compare(standing, sandbox);
        }
        tracing::info!(%sandbox, "put up anew: the daemon before this one had other settings, or was of another version");
        match self.enforce(found.kept.clone(), &found.policy, Fences::attach) {
            Ok(kept) => {
                found.changes.send_replace(kept.fence.clone());
                found.kept = kept;
            }
            Err(error) => tracing::error!(%sandbox, %error, "what stands stays as it is"),
        }
    }

    /// Is it in the kernel as it was put there? If not it is put there again, loudly.
    fn compare(&self, standing: &mut Standings, sandbox: &SandboxKey) {
        let Some(found) = standing.get_mut(sandbox) else { return };
        let ruleset = &found.kept.fence.ruleset;
        let found_digest =
            match found.kept.slot().map(|slot| self.fences.audit(slot, &found.kept.fence.interfaces, *ruleset)) {
                Some(Ok(Audit::Intact)) => return,
                Some(Ok(Audit::Tampered(now))) => Some(now.to_string()),
                Some(Err(_)) | None => None,
            };
        self.metrics.tampered();
        let mended = self.enforce(found.kept.clone(), &found.policy, Fences::attach);
        let error = match &mended {
            Ok(_) => None,
            Err(refusal) => Some(refusal.to_string()),
        };
        tracing::error!(%sandbox, expected = %ruleset, found = ?found_digest, ?error, "somebody has changed the rules around it");
        let text = |text: &String| text.as_str().into();
        let (expected, found_text, error) =
            (ruleset.to_string().as_str().into(), found_digest.as_ref().map(text), error.as_ref().map(text));
        self.recorder.record(sandbox, Event::FenceTampered { expected, found: found_text, error });
        if let Ok(kept) = mended {
            found.changes.send_replace(kept.fence.clone());
            found.kept = kept;
        }
    }
}
