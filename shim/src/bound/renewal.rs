//! What ends before the sandbox does, and is renewed: its token, as long as its agent may have one, and its statement.

use std::sync::Arc;
use std::time::Duration;

use trust::audit::{Audit, Event};
use trust::identity::workload;

use super::Bound;
use crate::error::TaskError;
use crate::run_dir::{Readers, TOKEN};

/// After a renewal that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// What is due is looked at so often: the clock may be set, and stands still for timers while the machine sleeps.
const LOOK: Duration = Duration::from_secs(60);

impl Bound {
    /// A token for the same key, in place of the one that is about to end; none where the agent was shut out since. Its
    /// sandbox goes on all the same: to end it is for whoever began it.
    async fn renew_token(&self) -> Result<(), TaskError> {
        let doing = |e: &dyn std::fmt::Display| TaskError::host("renewing the sandbox's token", e);
        let bond = self.bond();
        let still = self.ports.binder.still(&bond.identity).await;
        let mut state = self.state();
        if !Arc::ptr_eq(&bond, &state.bond) || state.claim.is_spoilt() {
            return Ok(()); // a claim came in between: with a token of its own, or none any more
        }
        if let Err(why) = still {
            let why = why.to_string();
            if state.refused.as_ref() != Some(&why) {
                self.ports.record.record(&bond.about, Event::TokenRenewalRefused { reason: why.as_str().into() });
                state.refused = Some(why.clone());
            }
            return Err(TaskError::Rejected(format!("the sandbox's token is not renewed: {why}")));
        }
        state.refused = None;
        let signer = self.ports.keyring.signer().map_err(|e| doing(&e))?;
        let now = self.ports.clock().timestamp();
        let (issuer, lifetime) = (&self.ports.issuer, self.ports.token_lifetime);
        workload::renew(&mut state.credential, &signer, issuer, &bond.identity, now, lifetime)
            .map_err(|e| doing(&e))?;
        for dir in state.dirs.values() {
            dir.put(TOKEN, state.credential.token.as_bytes(), Readers::Workload).map_err(|e| doing(&e))?;
        }
        Ok(())
    }

    /// Renews what ends before the sandbox does, for as long as somebody holds it.
    pub fn keep_fresh(self: &Arc<Self>) {
        let bound = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut next = Duration::ZERO;
            loop {
                tokio::time::sleep(next).await;
                let Some(bound) = bound.upgrade().filter(|bound| bound.lives()) else { return };
                next = match bound.refresh().await {
                    Ok(()) => bound.until_next(),
                    Err(error) => {
                        tracing::error!(sandbox = bound.place.group, %error, "will try again");
                        AGAIN
                    }
                };
            }
        });
    }

    pub(super) async fn refresh(&self) -> Result<(), TaskError> {
        let now = self.ports.clock().timestamp();
        let (token, statement) = {
            let state = self.state();
            let current = state.current.as_ref();
            (state.credential.renew_at <= now, current.is_some_and(|current| current.renew_at <= now))
        };
        let renewed = if token { self.renew_token().await } else { Ok(()) };
        if statement {
            self.updated()?; // whatever becomes of the token
        }
        renewed
    }

    fn until_next(&self) -> Duration {
        let (now, state) = (self.ports.clock().timestamp(), self.state());
        let statement = state.current.as_ref().map_or(state.credential.renew_at, |current| current.renew_at);
        state.credential.renew_at.min(statement).since(now).clamp(Duration::from_secs(1), LOOK)
    }
}
