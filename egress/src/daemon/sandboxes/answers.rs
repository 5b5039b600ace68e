//! What there is to say of fences that stand.

use super::{Code, Sandboxes, Standing, no_such, own_ids, refused};
use crate::daemon::nflog::Denied;
use crate::explain::explain;
use crate::policy::{Document, Flow, Target, Verdict};
use crate::protocol::{Explain, Explained, Listed, Refusal, SandboxKey};
use crate::worker::control::Busy;
use crate::worker::{Attempt, Outcome};

impl Sandboxes {
    /// All fences.
    pub async fn list(&self) -> Vec<Listed> {
        let report = self.worker.report().await.unwrap_or_default();
        let standing = self.standing.lock().await;
        let listed = |(sandbox, Standing { kept, .. }): (&SandboxKey, &Standing)| {
            let busy = report.busy.iter().find(|busy| busy.sandbox == *sandbox);
            let Busy { flows, pending, .. } = busy.cloned().unwrap_or_else(|| Busy::none(sandbox));
            Listed {
                fence: kept.fence.clone(),
                agent: kept.attach.agent.clone(),
                policy: kept.attach.policy.clone(),
                own_rules: own_ids(&kept.own_rules),
                flows,
                pending,
            }
        };
        standing.iter().map(listed).collect()
    }

    /// What holds for a sandbox.
    pub async fn get(&self, sandbox: &SandboxKey) -> Result<Document, Refusal> {
        let standing = self.standing.lock().await;
        standing.get(sandbox).map(|found| found.kept.policy.clone()).ok_or_else(|| no_such(sandbox))
    }

    /// What becomes of a flow, and why.
    pub async fn explain(&self, asked: &Explain) -> Result<Explained, Refusal> {
        let standing = self.standing.lock().await;
        let found = standing.get(&asked.sandbox).ok_or_else(|| no_such(&asked.sandbox))?;
        let Explain { destination, port, protocol, .. } = asked;
        let explained =
            explain(&found.policy, destination, *port, *protocol).map_err(|e| refused(Code::BadQuestion)(&e))?;
        Ok(Explained { generation: found.kept.fence.generation, ..explained })
    }

    /// What the kernel has denied, with the reason that the policy gives for it.
    pub async fn denied(&self, denied: Denied) -> Option<Attempt> {
        let Denied { slot, to, port, protocol } = denied;
        let standing = self.standing.lock().await;
        let (sandbox, found) = standing.iter().find(|(_, found)| found.kept.slot() == Some(slot))?;
        let decision = found.policy.check(&Flow { target: Target::Address(to), protocol, port });
        let reason = match decision.verdict {
            Verdict::Deny => decision.reason.to_string(),
            Verdict::Allow | Verdict::RequireAuthz => {
                "not by this way: a neighbour, the host, or no connection".to_owned()
            }
        };
        Some(Attempt {
            sandbox: sandbox.clone(),
            destination: to.to_string(),
            port,
            protocol,
            outcome: Outcome::Denied(reason),
            rule: decision.rule.map(str::to_owned),
            generation: found.kept.fence.generation,
        })
    }
}
