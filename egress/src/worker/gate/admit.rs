//! May this flow be? The policy's decision, and the decision point's where a rule wants that. The only maker of a `Permit`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::refusal::Refusal;
use super::{Authorizer, Effective, Goal};
use crate::policy::{Decision, Verdict};
use crate::worker::{Binding, Unauthorized};

/// That a flow may be, by the policy that held when it was asked for. Without one, nothing is dialled.
#[derive(Clone, Debug)]
pub struct Permit {
    goal: Goal,
    port: u16,
    rule: Option<String>,
    effective: Arc<Effective>,
}

/// That it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Why.
    pub refusal: Refusal,
    /// The rule that decided.
    pub rule: Option<String>,
    /// The generation of the policy that did; 0 where the sandbox is detached.
    pub generation: u64,
}

/// The policies of a sandbox, one after the other.
pub type Policies = watch::Receiver<Option<Arc<Effective>>>;

impl Permit {
    /// Where the flow goes.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }

    /// To which port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The rule that let it.
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// The policy that did.
    pub fn effective(&self) -> &Arc<Effective> {
        &self.effective
    }
}

/// The policy's decision alone: whether there is any use in reading on.
pub fn check(policies: &mut Policies, goal: &Goal, port: u16) -> Result<(), Denied> {
    let effective = current(policies)?;
    let decision = effective.check(&goal.flow(port));
    match decision.verdict {
        Verdict::Allow | Verdict::RequireAuthz => Ok(()),
        Verdict::Deny => Err(denied(Refusal::Policy(decision.reason), &decision, &effective)),
    }
}

/// Decides. Waits for the decision point no longer than `hold`; when the policy changes meanwhile, the new one decides. `asked` is
/// told each time that the decision point is asked, and for which rule of which generation.
pub async fn admit<A: Authorizer>(
    binding: &Binding,
    policies: &mut Policies,
    goal: &Goal,
    port: u16,
    authorizer: &A,
    hold: Duration,
    asked: impl Fn(Option<&str>, u64),
) -> Result<Permit, Denied> {
    let deadline = Instant::now() + hold;
    loop {
        let effective = current(policies)?;
        let decision = effective.check(&goal.flow(port));
        let refused = match decision.verdict {
            Verdict::Allow => None,
            Verdict::Deny => Some(Refusal::Policy(decision.reason)),
            Verdict::RequireAuthz => {
                asked(decision.rule, effective.generation);
                let answer = timeout_at(deadline, authorizer.authorize(binding, goal.authorizable(), port));
                tokio::select! {
                    biased;
                    _ = policies.changed() => continue, // an error means detached, which `current` sees
                    answer = answer => match answer {
                        Ok(Ok(())) => None,
                        Ok(Err(refused)) => Some(Refusal::Authz(refused.to_string())),
                        Err(_) => Some(Refusal::Authz(Unauthorized::Undecided("it took too long".to_owned()).to_string())),
                    },
                }
            }
        };
        return match refused {
            Some(refusal) => Err(denied(refusal, &decision, &effective)),
            None => {
                let rule = decision.rule.map(str::to_owned);
                Ok(Permit { goal: goal.clone(), port, rule, effective: effective.clone() })
            }
        };
    }
}

/// What holds now; later changes are news to `policies`.
fn current(policies: &mut Policies) -> Result<Arc<Effective>, Denied> {
    let detached = Denied { refusal: Refusal::Detached, rule: None, generation: 0 };
    if policies.has_changed().is_err() {
        return Err(detached); // whoever would say so is gone
    }
    policies.borrow_and_update().clone().ok_or(detached)
}

fn denied(refusal: Refusal, decision: &Decision<'_>, effective: &Effective) -> Denied {
    Denied { refusal, rule: decision.rule.map(str::to_owned), generation: effective.generation }
}

#[cfg(test)]
mod tests;
