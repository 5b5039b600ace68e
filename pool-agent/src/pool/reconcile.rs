//! What a pool needs now: which members to make, which to take down. Pure: it is asked again and again, and whatever failed or
//! crashed in between shows as the records it is given. Not here: doing it, and when to ask again.
//!
//! Promises, tested by `model`: no more members than `max_ready` + `max_warming` are there that nobody has claimed, whatever
//! fails, for what cannot be taken down counts too; nothing that could be handed out is evicted below the target unless it is stale;
//! whatever nobody works at any more is taken down.

use std::time::Duration;

use trust::clock::Timestamp;
use trust::id::SandboxId;

use super::attempts::{Allowance, Attempts};
use super::target::{self, Minute};
use super::template::Pool;
use crate::sandbox::{Generation, Phase, Sandbox};

/// A claim whose caller is gone may be taken up by the same caller again; after so long its member is taken down.
pub const CLAIM_GRACE: Duration = Duration::from_secs(30);
/// More members than the target wants are evicted only after they have waited so long: the next claims may want them.
const EXCESS_GRACE: Duration = Duration::from_secs(60);
/// Of more members than are wanted one in so many goes at once.
const GRADUALLY: usize = 10;

/// What the plan needs to know of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one.
    pub id: SandboxId,
    /// Where it is in its life.
    pub phase: Phase,
    /// The template it was made by.
    pub generation: Generation,
    /// Whether a claim ever took it.
    pub claimed: bool,
    /// When its phase changed last.
    pub since: Timestamp,
    /// Whether this process is making it, binding it or taking it down right now.
    pub in_hand: bool,
}

impl Member {
    /// Of a record; none of a cold spawn.
    pub fn of(sandbox: &Sandbox, in_hand: bool) -> Option<Self> {
        Some(Self {
            id: sandbox.id.clone(),
            phase: sandbox.phase,
            generation: sandbox.pool.as_ref()?.generation.clone(),
            claimed: sandbox.claim.is_some(),
            since: sandbox.changed_at,
            in_hand,
        })
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make a member, by the pool's current template.
    Warm,
    /// Take this member down, if it is still Ready (`Input::Evicted`): a claim may have been faster.
    Evict(SandboxId, Why),
    /// Take down what is left of this one (`Input::Swept`), and then remove its record; unless somebody of this process has begun to work
    /// at it since.
    Remove(SandboxId, Why),
}

/// Why a member goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its template is no longer the pool's.
    Stale,
    /// The pool drains.
    Draining,
    /// It has waited too long.
    Aged,
    /// There are more than are wanted.
    Excess,
    /// Whoever was making or binding it is gone.
    Interrupted,
    /// It has failed or ended, and something of it is left.
    Over,
}

impl Why {
    /// For programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Stale => "evicted-stale",
            Self::Draining => "evicted-draining",
            Self::Aged => "evicted-aged",
            Self::Excess => "evicted-excess",
            Self::Interrupted => "interrupted",
            Self::Over => "over",
        }
    }

    /// For people.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Stale => "its pool has another template now",
            Self::Draining => "its pool, its runtime or the node drains",
            Self::Aged => "it has waited as long as it may",
            Self::Excess => "more members wait than are wanted",
            Self::Interrupted => "whoever was making or binding it is gone",
            Self::Over => "it had ended",
        }
    }
}

/// What to do for `pool` now. `members` are all sandboxes made for it on this node, in any order; `claims` the last minutes'; what `drained` says
/// holds for the pool's backend or for the whole node.
pub fn plan(
    pool: &Pool,
    members: &[Member],
    claims: &[Minute],
    attempts: &Attempts,
    drained: bool,
    now: Timestamp,
) -> Vec<Act> {
    let generation = pool.generation();
    let draining = pool.draining || drained;
    let mut acts = Vec::new();
    for member in members.iter().filter(|member| !member.in_hand) {
        match member.phase {
            Phase::Warming => acts.push(Act::Remove(member.id.clone(), Why::Interrupted)),
            Phase::Claimed if now.since(member.since) >= CLAIM_GRACE => {
                acts.push(Act::Remove(member.id.clone(), Why::Interrupted));
            }
            Phase::Failed | Phase::Terminating => acts.push(Act::Remove(member.id.clone(), Why::Over)),
            Phase::Ready | Phase::Claimed | Phase::Running => {}
        }
    }

    let target = if draining { 0 } else { target::target(&pool.scaling, claims, now) } as usize;
    let mut ready: Vec<_> = members.iter().filter(|member| member.phase == Phase::Ready).collect();
    ready.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id))); // oldest first
    let (stale, ready): (Vec<_>, Vec<_>) = ready.into_iter().partition(|member| member.generation != generation);
    let is_aged = |member: &&Member| {
        let max_age = pool.scaling.max_age.map(|max_age| target::own_max_age(max_age, &member.id));
        max_age.is_some_and(|max_age| now.since(member.since) >= max_age)
    };
    let (aged, fresh): (Vec<&Member>, Vec<&Member>) = ready.iter().copied().partition(is_aged);

    acts.extend(stale.iter().map(|member| Act::Evict(member.id.clone(), Why::Stale)));
    if draining {
        acts.extend(ready.iter().map(|member| Act::Evict(member.id.clone(), Why::Draining)));
        return acts;
    }
    // The old go as the new come: never below the target.
    let spare = ready.len().saturating_sub(target);
    let aged_out = aged.len().min(spare);
    acts.extend(aged.iter().take(aged_out).map(|member| Act::Evict(member.id.clone(), Why::Aged)));
    let kept = ready.len() - aged_out;
    let over_max = kept.saturating_sub(pool.scaling.max_ready as usize);
    let over_target = match pool.scaling.auto_scaling.enabled {
        true => kept.saturating_sub(target),
        false => 0, // what an operator has spawned beside may wait, up to the maximum
    };
    let gradually = over_max.max(over_target).div_ceil(GRADUALLY);
    let rested = |member: &&&Member| over_max > 0 || now.since(member.since) >= EXCESS_GRACE;
    let excess = fresh.iter().filter(rested).take(gradually.min(kept.saturating_sub(target)));
    acts.extend(excess.map(|member| Act::Evict(member.id.clone(), Why::Excess)));

    acts.extend(std::iter::repeat_n(
        Act::Warm,
        to_warm(pool, &generation, members, fresh.len(), target, attempts.allowance(now)),
    ));
    acts
}

/// How many members to begin now.
fn to_warm(
    pool: &Pool,
    generation: &Generation,
    members: &[Member],
    fresh: usize,
    target: usize,
    allowance: Allowance,
) -> usize {
    let (max_ready, max_warming) = (pool.scaling.max_ready as usize, pool.scaling.max_warming as usize);
    let warming = || members.iter().filter(|member| member.phase == Phase::Warming);
    let of_now = warming().filter(|member| member.in_hand && member.generation == *generation).count();
    let of_all = warming().count();
    let unclaimed = members.iter().filter(|member| !member.claimed).count();
    let wanted = target.saturating_sub(fresh + of_now);
    let allowed = match allowance {
        Allowance::Free => max_warming.saturating_sub(of_all),
        Allowance::One => usize::from(of_all == 0),
        Allowance::NotBefore(_) => 0,
    };
    wanted.min(allowed).min((max_ready + max_warming).saturating_sub(unclaimed))
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
