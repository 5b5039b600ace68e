//! A claim: a member that waits becomes its caller's. Top to bottom: who asks was settled at the edge; the policy is looked at before
//! anything is taken, so that no member is lost to a typing mistake; one transaction takes; the member's own shim binds it (policy,
//! identity, secrets, statement, record, in that order, and once); the command starts; the record follows.
//!
//! A member that could not be bound is destroyed, never handed out again. Killed at any step: a record that is Claimed is taken up
//! again by its caller's idempotency key under its own claim id, which the shim answers as it did before, or is taken down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{Instrument, debug_span};
use trust::id::{AgentId, ClaimId};
use trust::sandbox_api::{Bound, Proven, RebindRequest};

use crate::admission::admit;
use crate::api::types::{ClaimRequest, Claimed, OnEmpty, Took};
use crate::causes;
use crate::ending::give_up;
use crate::error::{ClaimError, SpawnError};
use crate::making::{First, fresh_id, make_in_turn, micros};
use crate::metrics::Outcome;
use crate::pool::member::{Change, Input};
use crate::pool::template::{Mode, Pool};
use crate::pools::WarmPoolManager;
use crate::ports::{Hand, Ports};
use crate::readiness;
use crate::running::{self, Command, Registered, RunError};
use crate::sandbox::{Claim, Fence, Phase, Sandbox};
use crate::shim::{Shim, ShimError};
use crate::spec::{NetworkPolicy, SandboxSpec};
use crate::store::{StoreError, TakeRequest, Taken};

/// How long a claim may take where its caller does not say.
const PATIENCE: Duration = Duration::from_secs(30);

/// In the place of members that are lost a claim tries so many others.
const OTHERS: u32 = 4;
/// Whoever has a member in hand that a claim took lets it go within so many moments.
const LETS_GO: u32 = 200;
/// A moment.
const MOMENT: Duration = Duration::from_millis(5);

/// For whom, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The agent; none for a sandbox that works for nobody.
    pub agent: Option<AgentId>,
    /// How the caller has shown that: by the agent's token, or as somebody who may say so.
    pub proven: Proven,
}

/// Hands a member over, or what `request` says where none is ready.
pub async fn claim(
    pools: &WarmPoolManager,
    pool: &Pool,
    request: &ClaimRequest,
    caller: &Caller,
) -> Result<Claimed, ClaimError> {
    let began = Instant::now();
    let span = tracing::info_span!("claim", pool = %pool.name);
    let done = all(pools, pool, request, caller, began).instrument(span).await;
    let outcome = match &done {
        Ok(claimed) if claimed.warm => Outcome::Hit,
        Ok(_) => Outcome::Cold,
        Err(ClaimError::Timeout { .. } | ClaimError::Empty(_)) => Outcome::Empty,
        Err(_) => Outcome::Failed,
    };
    pools.ports().metrics.claimed(&pool.name.to_string(), outcome, began.elapsed());
    done
}

async fn all(
    pools: &WarmPoolManager,
    pool: &Pool,
    request: &ClaimRequest,
    caller: &Caller,
    began: Instant,
) -> Result<Claimed, ClaimError> {
    let ports = pools.ports();
    let spec = asked(&pool.template.spec, request);
    if let Some(policy) = &spec.network_policy {
        ports.policies.resolve(&policy.to_ref()).map_err(|e| ClaimError::PolicyInvalid(e.to_string()))?;
    }
    pools.count_claim(&pool.name);

    let commanded = pool.template.mode == Mode::Hold && !spec.command.is_empty();
    let command = commanded.then(|| Command {
        args: spec.command.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: request.user.clone(),
    });
    let mut lost = 0;
    let (member, hand, warm, taken, shim, bound, registered) = loop {
        let (member, hand, warm) = take(pools, pool, request, caller, began).await?;
        if member.phase == Phase::Running {
            let took = Took { total: micros(began.elapsed()), ..Took::default() };
            return Ok(Claimed { sandbox: member, warm, took }); // asked before, and done before
        }
        let taken = began.elapsed();
        let bound = bind(ports, &member, &spec, caller, command.as_ref());
        match bound.instrument(debug_span!("bind", sandbox = %member.id)).await {
            Ok((shim, bound, registered)) => break (member, hand, warm, taken, shim, bound, registered),
            Err(error) => {
                give_up(ports, &hand, error.code(), error.to_string()).await;
                pools.look();
                match error {
                    // It is the member that cannot be claimed, and nothing of the claim's is in it: another one may do.
                    ClaimError::MemberLost(why) if lost < OTHERS => {
                        tracing::warn!(sandbox = %member.id, pool = %pool.name, why, "a member is lost: the claim takes another");
                        lost += 1;
                    }
                    error => return Err(error),
                }
            }
        }
    };
    let bound_at = began.elapsed();
    let expires_at = spec.lifetime().map(|after| ports.now().plus(after));
    let fence = Fence::told(&bound.ruleset);
    let change = Change {
        agent: caller.agent.clone(),
        fence: Some(fence),
        attestation: bound.statement_digest.parse().ok(),
        expires_at,
        spec: Some(spec),
        ..Change::default()
    };
    // Before the record says that it runs: killed in between, whoever asks again by the same key has the command started, too.
    if let Some(registered) = registered {
        let started = match registered {
            Ok(registered) => running::start(&shim, &member.id, registered).instrument(debug_span!("start")).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            give_up(ports, &hand, "start-failed", error.to_string()).await;
            return Err(ClaimError::Spawn(SpawnError::StartFailed(error.to_string())));
        }
    }
    let started = began.elapsed();
    let input = if warm { Input::Bound } else { Input::Started(fence) };
    let advanced = ports.store.advance(&member.id, input, change, ports.now()).instrument(debug_span!("keep"));
    let sandbox = advanced.await.map_err(ClaimError::Store)?;
    let kept = began.elapsed();
    if commanded {
        running::watch(ports, Some(shim), &sandbox.id);
    }
    drop(hand);
    pools.look(); // one more is wanted
    let took = Took {
        take: micros(taken),
        bind: micros(bound_at - taken),
        start: micros(started - bound_at),
        keep: micros(kept - started),
        total: micros(began.elapsed()),
        steps: bound.took.unwrap_or_default().into(),
    };
    tracing::info!(sandbox = %sandbox.id, pool = %pool.name, agent = caller.agent.as_ref().map(tracing::field::display), warm, took = took.total, "claimed");
    Ok(Claimed { sandbox, warm, took })
}

/// What the sandbox is to be: the template's wishes, and over them the claim's.
fn asked(template: &SandboxSpec, request: &ClaimRequest) -> SandboxSpec {
    let mut spec = template.clone();
    if !request.command.is_empty() {
        spec.command.clone_from(&request.command);
    }
    spec.env.extend(request.env.clone());
    spec.cwd = request.cwd.clone().or(spec.cwd);
    spec.user = request.user.clone().or(spec.user);
    spec.network_policy = request.network_policy.clone().or(spec.network_policy);
    if !request.secrets.is_empty() {
        spec.secrets.clone_from(&request.secrets);
    }
    spec.ttl = request.ttl.or(spec.ttl);
    spec
}

/// A member that is the claim's, in hand; and whether it was ready.
async fn take(
    pools: &WarmPoolManager,
    pool: &Pool,
    request: &ClaimRequest,
    caller: &Caller,
    began: Instant,
) -> Result<(Sandbox, Hand, bool), ClaimError> {
    let ports = pools.ports();
    let patience = request.timeout.unwrap_or(PATIENCE);
    let id = fresh_id("claim").map_err(ClaimError::Spawn)?.to_string();
    let claim: ClaimId = id.parse().map_err(|e: trust::id::BadId| ClaimError::BindFailed(e.to_string()))?;
    let asked = |now| TakeRequest {
        pool: pool.name.clone(),
        node: ports.node.clone(),
        claim: claim.clone(),
        idempotency_key: request.idempotency_key.clone(),
        agent: caller.agent.clone(),
        selector: request.selector.clone().unwrap_or_default(),
        backend: None,
        now,
    };
    let queue = pools.queue(&pool.name);
    // Whoever came before is served before; a claim that does not wait does not stand in line either.
    let _place = match request.on_empty {
        OnEmpty::Wait => match tokio::time::timeout(patience, queue.line.lock()).await {
            Ok(place) => Some(place),
            Err(_) => return Err(ClaimError::Timeout { waited: began.elapsed(), ready: 0 }),
        },
        OnEmpty::Cold | OnEmpty::Fail => None,
    };
    loop {
        let freed = queue.ready.notified(); // before the look, or a member that comes between is missed
        let ready = match ports.store.take(&asked(ports.now())).instrument(debug_span!("take")).await {
            Ok(Taken::Taken(member)) => {
                let hand = in_hand(ports, &member).await?;
                return Ok((*member, hand, true));
            }
            Ok(Taken::AlreadyTaken(member)) => return again(ports, *member).await,
            Ok(Taken::Empty { ready }) => ready,
            Ok(Taken::Draining) => return Err(ClaimError::Draining(pool.name.clone())),
            Ok(Taken::NoSuchPool) => return Err(ClaimError::PoolNotFound(pool.name.clone())),
            Err(error) => return Err(ClaimError::Store(error)),
        };
        match request.on_empty {
            OnEmpty::Fail => return Err(ClaimError::Empty(pool.name.clone())),
            OnEmpty::Cold => {
                let (member, hand) =
                    cold(ports, pool, &asked(ports.now()), patience.saturating_sub(began.elapsed())).await?;
                return Ok((member, hand, false));
            }
            OnEmpty::Wait => {
                pools.look();
                let left = patience.saturating_sub(began.elapsed());
                if tokio::time::timeout(left, freed).await.is_err() {
                    return Err(ClaimError::Timeout { waited: began.elapsed(), ready });
                }
            }
        }
    }
}

/// A member that is the claim's, in hand. Somebody may just be finding out that it is not to be evicted any more.
async fn in_hand(ports: &Ports, member: &Sandbox) -> Result<Hand, ClaimError> {
    for _ in 0..LETS_GO {
        if let Some(hand) = ports.hands.take(&member.id) {
            return Ok(hand);
        }
        tokio::time::sleep(MOMENT).await;
    }
    Err(ClaimError::BindFailed(format!("somebody has {} in hand", member.id)))
}

/// The same claim, once more: what became of it, or its continuation.
async fn again(ports: &Arc<Ports>, member: Sandbox) -> Result<(Sandbox, Hand, bool), ClaimError> {
    let gone = |what: &str| ClaimError::KeyReused(format!("its sandbox {} {what}", member.id));
    let busy = || ClaimError::BindFailed(format!("the claim of {} is under way: ask again", member.id));
    match member.phase {
        Phase::Claimed | Phase::Running => {
            let hand = ports.hands.take(&member.id).ok_or_else(busy)?;
            Ok((member, hand, true))
        }
        Phase::Warming => Err(busy()),
        Phase::Ready | Phase::Terminating | Phase::Failed => Err(gone("has ended")),
    }
}

/// A sandbox for a claim that found no member: made as a member is, but the pool never has it.
async fn cold(
    ports: &Arc<Ports>,
    pool: &Pool,
    asked: &TakeRequest,
    within: Duration,
) -> Result<(Sandbox, Hand), ClaimError> {
    let began = Instant::now();
    admit(ports, pool.template.spec.backend).await.map_err(ClaimError::Spawn)?;
    let id = fresh_id(&pool.name.to_string()).map_err(ClaimError::Spawn)?;
    let hand = ports.hands.take(&id).ok_or_else(|| ClaimError::BindFailed("the id is taken".into()))?;
    let mut wished = Sandbox::wished(id, ports.node.clone(), None, pool.template.spec.clone(), asked.now);
    let TakeRequest { claim, idempotency_key, agent, .. } = asked.clone();
    wished.claim = Some(Claim { id: claim, pool: pool.name.clone(), idempotency_key, agent, at: asked.now });
    let wished = match ports.store.insert(&wished).await {
        Ok(wished) => wished,
        Err(StoreError::AlreadyClaimed(id)) => {
            return Err(ClaimError::BindFailed(format!("the claim of {id} is under way: ask again")));
        }
        Err(error) => return Err(ClaimError::Store(error)),
    };
    let first = First::of_member(&pool.template);
    let made = async {
        let made = make_in_turn(ports, &wished, first).await?;
        readiness::wait(ports, &wished.id, pool.template.readiness.as_ref()).await.map(|()| made)
    };
    let made = match tokio::time::timeout(within, made).await {
        Ok(made) => made,
        Err(_) => Err(SpawnError::Timeout { waited: within, step: "making a sandbox for the claim".into() }),
    };
    match made {
        Ok(_) => {
            ports.metrics.spawned(pool.template.spec.backend.name(), began.elapsed());
            Ok((wished, hand))
        }
        Err(error) => {
            give_up(ports, &hand, error.code(), error.to_string()).await;
            Err(ClaimError::Spawn(error))
        }
    }
}

/// The member's shim does it, once; under its claim's id it may be asked again. Beside that it is told of the command, which is started
/// when the member is bound, and not before.
async fn bind(
    ports: &Ports,
    member: &Sandbox,
    spec: &SandboxSpec,
    caller: &Caller,
    command: Option<&Command>,
) -> Result<(Shim, Bound, Option<Result<Registered, RunError>>), ClaimError> {
    let claim = member.claim.as_ref().ok_or_else(|| ClaimError::BindFailed("its record names no claim".into()))?;
    let generation = member.pool.as_ref().map(|member| member.generation.to_string()).unwrap_or_default();
    let request = RebindRequest {
        sandbox: member.id.to_string(),
        claim_id: claim.id.to_string(),
        agent: caller.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
        proven: if caller.agent.is_some() { caller.proven as i32 } else { Proven::Unspecified as i32 },
        policy: spec.network_policy.as_ref().map(NetworkPolicy::to_shim),
        secrets: spec.secrets.iter().map(ToString::to_string).collect(),
        pool: claim.pool.to_string(),
        pool_generation: generation,
    };
    let shim = ports.shim(&member.id).await.map_err(|error| match error {
        ShimError::NotFound(why) => ClaimError::MemberLost(why), // containerd has no such task any more
        error => causes::of_claim(error),
    })?;
    let register = async {
        match command {
            Some(command) => Some(running::register(ports, &shim, &member.id, command).await),
            None => None,
        }
    };
    let (bound, registered) = tokio::join!(shim.rebind(&request), register);
    let bound = bound.map_err(causes::of_claim)?;
    Ok((shim, bound, registered))
}
