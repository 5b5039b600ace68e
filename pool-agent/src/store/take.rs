//! Which member a claim gets, and what else a store has to decide: the same for all stores. Pure.

use trust::digest::Digest;
use trust::id::{AgentId, PoolName};

use super::{Drain, StoreError, TakeRequest};
use crate::pool::member::{self, Change, Input, WrongPhase};
use crate::pool::template::Pool;
use crate::sandbox::{Claim, IdempotencyKey, Phase, Sandbox};

/// Whether nothing may be taken, by what the pool says and what is drained of the node.
pub fn is_draining(pool: &Pool, drained: &[Drain]) -> bool {
    let backend = pool.template.spec.backend;
    pool.draining || drained.iter().any(|drain| drain.backend.is_none_or(|drained| drained == backend))
}

/// Whether this member, which is Ready on the right node and of the current template, may be the claim's.
pub fn fits(request: &TakeRequest, member: &Sandbox) -> bool {
    request.backend.is_none_or(|backend| member.spec.backend == backend)
        && request.selector.matches(&member.spec.labels)
}

/// The member as the claim's.
pub fn taken(request: &TakeRequest, member: &Sandbox) -> Result<Sandbox, WrongPhase> {
    let claim = Claim {
        id: request.claim.clone(),
        pool: request.pool.clone(),
        idempotency_key: request.idempotency_key.clone(),
        agent: request.agent.clone(),
        at: request.now,
    };
    member::advance(member, Input::Taken(claim), Change::default(), request.now)
}

/// Under which name a claim's idempotency key is kept: an agent's own, of one pool. None without a key.
pub fn repeat_of(request: &TakeRequest) -> Option<String> {
    repeat(&request.pool, request.agent.as_ref(), request.idempotency_key.as_ref()?)
}

/// The same of a sandbox that has been claimed, or that was spawned for a claim.
pub fn repeat_of_sandbox(sandbox: &Sandbox) -> Option<String> {
    let claim = sandbox.claim.as_ref()?;
    repeat(&claim.pool, claim.agent.as_ref(), claim.idempotency_key.as_ref()?)
}

fn repeat(pool: &PoolName, agent: Option<&AgentId>, key: &IdempotencyKey) -> Option<String> {
    let agent = agent.map(ToString::to_string).unwrap_or_default();
    Some(Digest::of(format!("{pool} {agent} {key}").as_bytes()).hex()) // none of them has a space in it
}

/// A record goes only when its sandbox has ended: else something would run that nobody knows.
pub fn removable(sandbox: &Sandbox) -> Result<(), StoreError> {
    match sandbox.phase {
        Phase::Terminating | Phase::Failed => Ok(()),
        phase => {
            Err(WrongPhase { sandbox: sandbox.id.clone(), phase, verb: "be forgotten before it has ended" }.into())
        }
    }
}
