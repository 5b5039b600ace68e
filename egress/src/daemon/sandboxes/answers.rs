//! What there is to say of fences that stand.

use super::standings::Standing;
use super::{Code, Sandboxes, no_such, own_ids, refused};
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
        let listed = |standing: &std::sync::Arc<Standing>| {
            let (kept, sandbox) = (&standing.kept, &standing.kept.attach.sandbox);
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
        self.standings.all().iter().map(listed).collect()
    }

    /// What holds for a sandbox.
    pub fn get(&self, sandbox: &SandboxKey) -> Result<Document, Refusal> {
        self.standings.get(sandbox).map(|found| found.kept.policy.clone()).ok_or_else(|| no_such(sandbox))
    }

    /// What becomes of a flow, and why.
    pub fn explain(&self, asked: &Explain) -> Result<Explained, Refusal> {
        let found = self.standings.get(&asked.sandbox).ok_or_else(|| no_such(&asked.sandbox))?;
        let Explain { destination, port, protocol, .. } = asked;
        let explained =
            explain(&found.policy, destination, *port, *protocol).map_err(|e| refused(Code::BadQuestion)(&e))?;
        Ok(Explained { generation: found.kept.fence.generation, ..explained })
    }

    /// What the kernel has denied, with the reason that the policy gives for it.
    pub fn denied(&self, denied: Denied) -> Option<Attempt> {
        let Denied { slot, to, port, protocol } = denied;
        let found = self.standings.of_slot(slot)?;
        let decision = found.policy.check(&Flow { target: Target::Address(to), protocol, port });
        let reason = match decision.verdict {
            Verdict::Deny => decision.reason.to_string(),
            Verdict::Allow | Verdict::RequireAuthz => {
                "not by this way: a neighbour, the host, or no connection".to_owned()
            }
        };
        Some(Attempt {
            sandbox: found.kept.attach.sandbox.clone(),
            destination: to.to_string(),
            port,
            protocol,
            outcome: Outcome::Denied(reason),
            rule: decision.rule.map(str::to_owned),
            generation: found.kept.fence.generation,
        })
    }
}
