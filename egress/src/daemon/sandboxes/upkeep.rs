//! Keeps what stands standing: after a daemon that was killed, and against whoever changes rules by hand.

use trust::audit::Event;

use super::standings::Turn;
use super::{Code, Put, Sandboxes, bind, refused, silent, stands};
use crate::daemon::fence::Audit;
use crate::policy::CompiledPolicy;
use crate::protocol::Refusal;

impl Sandboxes {
    /// After a daemon that was killed: what was kept stands again, never open in between, and what has no network any more is
    /// swept. Where a policy cannot be read the one that was enforced goes on.
    pub async fn recover(&self) -> Result<(), Refusal> {
        for kept in self.state.all().map_err(|e| refused(Code::State)(&e))? {
            let kept = match kept {
                Ok(kept) => kept,
                Err((path, error)) => {
                    tracing::error!(path = %path.display(), %error, "what was kept of a fence cannot be read: it stays as it is");
                    continue;
                }
            };
            let turn = self.standings.turn(&kept.attach.sandbox).await;
            let (sandbox, policy) = (turn.sandbox(), kept.policy.policy.clone());
            self.recorder.know(&kept.attach, kept.fence.generation);
            self.standings.put(&turn, kept.clone(), CompiledPolicy::new(policy));
            if !stands(&kept) {
                self.take_down(&turn, &kept).await?;
                tracing::info!(%sandbox, "its network is gone: swept");
                continue;
            }
            self.take_over(&turn).await;
            self.worker.bind(bind(&kept)).await.map_err(silent)?;
        }
        for error in self.reload_all().await.errors {
            tracing::error!(error, "policy");
        }
        self.metrics.standing(self.standings.count());
        Ok(())
    }

    /// Compares all fences with what the kernel has, and sweeps those around nothing.
    pub async fn audit(&self) {
        for sandbox in self.standings.sandboxes() {
            let turn = self.standings.turn(&sandbox).await;
            let Some(found) = self.standings.get(&sandbox) else { continue };
            if stands(&found.kept) {
                self.compare(&turn).await;
            } else if let Err(error) = self.take_down(&turn, &found.kept).await {
                tracing::error!(%sandbox, %error, "its network is gone, and its fence cannot be swept");
            }
        }
    }

    /// What an earlier daemon put up: compared, or put up anew where this one would have put up something else.
    async fn take_over(&self, turn: &Turn) {
        let sandbox = turn.sandbox();
        let Some(found) = self.standings.get(sandbox) else { return };
        let rules = found.policy.address_rules();
        let now = found.kept.slot().map(|slot| self.enforcer.digest(slot, &found.kept.ports, &rules));
        if now == found.kept.put {
            return self.compare(turn).await;
        }
        tracing::info!(%sandbox, "put up anew: the daemon before this one had other settings, or was of another version");
        match self.enforce(found.kept.clone(), &found.policy, Put::Whole).await {
            Ok(kept) => drop(self.standings.put(turn, kept, found.policy.clone())),
            Err(error) => tracing::error!(%sandbox, %error, "what stands stays as it is"),
        }
    }

    /// Is it in the kernel as it was put there? If not it is put there again, loudly.
    async fn compare(&self, turn: &Turn) {
        let sandbox = turn.sandbox();
        let Some(found) = self.standings.get(sandbox) else { return };
        let (ruleset, interfaces) = (found.kept.fence.ruleset, found.kept.fence.interfaces.clone());
        let found_digest = match found.kept.slot() {
            Some(slot) => match self.enforcer.ask(move |fences| fences.audit(slot, &interfaces, ruleset)).await {
                Ok(Audit::Intact) => return,
                Ok(Audit::Tampered(now)) => Some(now.to_string()),
                Err(_) => None,
            },
            None => None,
        };
        self.metrics.tampered();
        let mended = self.enforce(found.kept.clone(), &found.policy, Put::Whole).await;
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
            self.standings.put(turn, kept, found.policy.clone());
        }
    }
}
