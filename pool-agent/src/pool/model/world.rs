//! The world of the model: what an agent does step by step, what is real beside its records, and what must hold.

mod jobs;

use std::collections::{BTreeMap, BTreeSet};

use trust::clock::Timestamp;
use trust::id::{ClaimId, NodeId, SandboxId};

use crate::labels::LabelSelector;
use crate::pool::attempts::Attempts;
use crate::pool::member::{Change, Input};
use crate::pool::reconcile::{Act, Member, Why, plan};
use crate::pool::target::{Minute, minute, target};
use crate::pool::template::{AutoScaling, Mode, Origin, Pool, Scaling, Template};
use crate::sandbox::{Generation, Membership, Phase, Sandbox};
use crate::spec::SandboxSpec;
use crate::store::memory::Records;
use crate::store::{StoreError, TakeRequest, Taken};
use jobs::Job;
pub use jobs::Step;

/// What happens next.
#[derive(Clone, Debug)]
pub enum Op {
    Wait(u64),
    /// A new plan; what is left of the last one is forgotten.
    Plan,
    /// One act of the plan, however late.
    Act(usize),
    /// One step of one of the agent's jobs.
    Step(usize),
    /// A claim, by one of a few keys or by none.
    Claim(Option<u8>),
    /// A sandbox that works has done so.
    Done(usize),
    /// A sandbox dies by itself.
    Dies(usize),
    /// kill -9 of the agent.
    Killed,
    Template(u8),
    Scale {
        min: u32,
        more: u32,
        auto: bool,
        aged: bool,
    },
    Drain(bool),
    Fault(Step, bool),
}

/// A sandbox as it is, whatever the records say.
#[derive(Clone, Debug, Default)]
struct Real {
    fenced: bool,
    bound: Option<ClaimId>,
}

pub struct World {
    now: Timestamp,
    records: Records,
    pool: Pool,
    generation: Generation,
    // What outlives the agent: sandboxes, and what callers were told.
    real: BTreeMap<SandboxId, Real>,
    handed: BTreeMap<SandboxId, ClaimId>,
    over: BTreeSet<SandboxId>,
    // What does not.
    jobs: BTreeMap<SandboxId, Job>,
    planned: Vec<Act>,
    attempts: Attempts,
    faults: BTreeSet<Step>,
    claims: Vec<Minute>,
    made: usize,
    asked: usize,
}

fn node() -> NodeId {
    "node-1".parse().unwrap()
}

impl World {
    pub fn new() -> Self {
        let pool = Pool {
            name: "demo".parse().unwrap(),
            template: template(0),
            scaling: Scaling::fixed(2, 4).unwrap(),
            draining: false,
            origin: Origin::Api,
            created_at: Timestamp::from_unix(0),
            revision: 0,
        };
        let mut records = Records::default();
        let pool = records.put_pool(&pool).unwrap();
        Self {
            now: Timestamp::from_unix(1_000_000),
            records,
            generation: pool.generation(),
            pool,
            real: BTreeMap::new(),
            handed: BTreeMap::new(),
            over: BTreeSet::new(),
            jobs: BTreeMap::new(),
            planned: Vec::new(),
            attempts: Attempts::default(),
            faults: BTreeSet::new(),
            claims: Vec::new(),
            made: 0,
            asked: 0,
        }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Wait(seconds) => self.now = Timestamp::from_unix(self.now.unix() + seconds),
            Op::Plan => self.plan(),
            Op::Act(n) => {
                if !self.planned.is_empty() {
                    let act = self.planned.swap_remove(n % self.planned.len());
                    self.act(act);
                }
            }
            Op::Step(n) => {
                if let Some(id) = pick(self.jobs.keys(), *n) {
                    self.step(&id);
                }
            }
            Op::Claim(key) => self.claim(*key),
            Op::Done(n) => {
                if let Some(id) = pick(self.in_phase(Phase::Running).iter(), *n) {
                    self.advance(&id, Input::ended("done", "")).unwrap();
                    self.over.insert(id);
                }
            }
            Op::Dies(n) => {
                if let Some(id) = pick(self.real.keys(), *n) {
                    self.real.remove(&id);
                    self.advance(&id, Input::failed("exited", "")).unwrap();
                    self.over.insert(id);
                }
            }
            Op::Killed => {
                self.jobs.clear();
                self.planned.clear();
                self.attempts = Attempts::default();
            }
            Op::Template(n) => self.change(|pool| pool.template = template(*n)),
            Op::Scale { min, more, auto, aged } => self.change(|pool| {
                pool.scaling = Scaling::fixed(*min, min + more).unwrap();
                pool.scaling.auto_scaling = AutoScaling { enabled: *auto, headroom: 1.5 };
                pool.scaling.max_age = aged.then(|| std::time::Duration::from_secs(100));
            }),
            Op::Drain(draining) => self.change(|pool| pool.draining = *draining),
            Op::Fault(step, on) => {
                if *on {
                    self.faults.insert(*step)
                } else {
                    self.faults.remove(step)
                };
            }
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Pool)) {
        let mut pool = self.pool.clone();
        change(&mut pool);
        self.pool = self.records.put_pool(&pool).unwrap();
        self.generation = self.pool.generation();
    }

    fn advance(&mut self, id: &SandboxId, input: Input) -> Result<Sandbox, StoreError> {
        self.records.advance(id, input, Change::default(), self.now)
    }

    fn in_phase(&self, phase: Phase) -> Vec<SandboxId> {
        self.records.iter().filter(|sandbox| sandbox.phase == phase).map(|sandbox| sandbox.id.clone()).collect()
    }

    /// Members that could be handed out.
    fn available(&self) -> usize {
        let fits = |sandbox: &&Sandbox| {
            let member = sandbox.pool.as_ref();
            sandbox.phase == Phase::Ready && member.is_some_and(|member| member.generation == self.generation)
        };
        self.records.iter().filter(fits).count()
    }

    fn unclaimed(&self) -> usize {
        self.records.iter().filter(|sandbox| sandbox.claim.is_none()).count()
    }

    fn target(&self) -> usize {
        if self.pool.draining { 0 } else { target(&self.pool.scaling, &self.claims, self.now) as usize }
    }

    fn plan(&mut self) {
        let member = |sandbox: &Sandbox| Member::of(sandbox, self.jobs.contains_key(&sandbox.id));
        let members: Vec<_> = self.records.iter().filter_map(member).collect();
        self.planned = plan(&self.pool, &members, &self.claims, &self.attempts, false, self.now);
        let warm = self.planned.iter().filter(|act| **act == Act::Warm).count();
        let most = (self.pool.scaling.max_ready + self.pool.scaling.max_warming) as usize;
        assert!(warm == 0 || self.unclaimed() + warm <= most, "{warm} beside {} of {most}", self.unclaimed());
        let early = self.planned.iter().filter(|act| matches!(act, Act::Evict(_, Why::Aged | Why::Excess))).count();
        assert!(
            early == 0 || self.available() - early >= self.target(),
            "what could be handed out goes below the target"
        );
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Warm => {
                self.made += 1;
                let id: SandboxId = format!("box-{}", self.made).parse().unwrap();
                let member = Membership { pool: self.pool.name.clone(), generation: self.generation.clone() };
                let spec = self.pool.template.spec.clone();
                // The record first: what is made and then forgotten would run for ever.
                self.records.insert(&Sandbox::wished(id.clone(), node(), Some(member), spec, self.now)).unwrap();
                self.jobs.insert(id, Job { next: Step::Create, began: self.now });
            }
            Act::Evict(id, why) => {
                if let Ok(sandbox) = self.advance(&id, Input::evicted(why.code(), "")) {
                    assert!(sandbox.claim.is_none(), "{id} was evicted from its claim");
                    self.take_down(id);
                }
            }
            Act::Remove(id, why) => {
                if !self.jobs.contains_key(&id) && self.advance(&id, Input::swept(why.code(), "")).is_ok() {
                    self.take_down(id);
                }
            }
        }
    }

    fn take_down(&mut self, id: SandboxId) {
        self.jobs.insert(id, Job { next: Step::Destroy, began: self.now });
    }

    fn claim(&mut self, key: Option<u8>) {
        self.asked += 1;
        match self.claims.iter_mut().find(|m| m.minute == minute(self.now)) {
            Some(m) => m.claims += 1,
            None => self.claims.push(Minute { minute: minute(self.now), claims: 1 }),
        }
        let request = TakeRequest {
            pool: self.pool.name.clone(),
            node: node(),
            claim: format!("claim-{}", self.asked).parse().unwrap(),
            idempotency_key: key.map(|key| format!("key-{key}").try_into().unwrap()),
            agent: None,
            selector: LabelSelector::default(),
            backend: None,
            now: self.now,
        };
        match self.records.take(&request).unwrap() {
            Taken::Taken(member) => {
                assert!(!self.pool.draining, "claimed in a drain");
                let generation = member.pool.as_ref().unwrap().generation.clone();
                assert_eq!(generation, self.generation, "{} is stale", member.id);
                assert!(!self.handed.contains_key(&member.id) && !self.jobs.contains_key(&member.id), "{}", member.id);
                self.jobs.insert(member.id.clone(), Job { next: Step::Bind, began: self.now });
            }
            // Its caller was cut off, and asks again: whoever left it there is gone.
            Taken::AlreadyTaken(member) if member.phase == Phase::Claimed && !self.jobs.contains_key(&member.id) => {
                self.jobs.insert(member.id.clone(), Job { next: Step::Bind, began: self.now });
            }
            Taken::AlreadyTaken(_) => {}
            Taken::Empty { ready } => {
                assert_eq!((ready, self.available()), (0, 0), "a claim went away from members that wait")
            }
            Taken::Draining => assert!(self.pool.draining),
            Taken::NoSuchPool => panic!("the pool is lost"),
        }
    }

    /// Holds at every moment.
    pub fn check(&self) {
        let all: BTreeMap<_, _> = self.records.iter().map(|sandbox| (&sandbox.id, sandbox)).collect();
        for id in self.real.keys() {
            assert!(all.contains_key(id), "{id} runs, and nobody knows it");
        }
        for id in self.handed.keys().filter(|id| !self.over.contains(id)) {
            let phase = all.get(id).map(|sandbox| sandbox.phase);
            assert_eq!(phase, Some(Phase::Running), "{id} was handed out and then taken away");
        }
        for (id, sandbox) in &all {
            match (sandbox.phase, self.real.get(id)) {
                (Phase::Ready | Phase::Claimed | Phase::Running, None) => {
                    panic!("{id} is {} and not there", sandbox.phase)
                }
                (Phase::Ready | Phase::Claimed | Phase::Running, Some(real)) => {
                    assert!(real.fenced && sandbox.fence.is_some(), "{id} is {} and not fenced", sandbox.phase);
                }
                _ => {}
            }
            let bound = self.real.get(id).and_then(|real| real.bound.as_ref());
            assert!(
                bound.is_none() || bound == sandbox.claim.as_ref().map(|claim| &claim.id),
                "{id} has another's identity"
            );
        }
    }

    /// When faults end and the agent works on, the pool has what it should have, and nothing else is left.
    pub fn settle(&mut self) {
        self.faults.clear();
        if self.pool.draining {
            self.change(|pool| pool.draining = false);
        }
        let (mut rounds, mut quiet) = (0, 0);
        // A count of claims falls for as many minutes as it looks back.
        while rounds < 60 && quiet < 6 {
            rounds += 1;
            self.apply(&Op::Wait(61));
            self.plan();
            while let Some(act) = self.planned.pop() {
                self.act(act);
            }
            quiet = if self.jobs.is_empty() { quiet + 1 } else { 0 };
            while let Some(id) = pick(self.jobs.keys(), 0) {
                self.step(&id);
                self.check();
            }
        }
        let ready = self.available();
        let scaling = &self.pool.scaling;
        // Members of an age of their own may just have been joined by those that will replace them.
        let surge = scaling.max_age.map_or(0, |_| scaling.max_warming);
        let max_ready = (scaling.max_ready + surge) as usize;
        assert!((self.target()..=max_ready).contains(&ready), "{ready} of {} to {max_ready} are ready", self.target());
        for sandbox in self.records.iter() {
            assert!(
                matches!(sandbox.phase, Phase::Ready | Phase::Running),
                "{} is {} for ever",
                sandbox.id,
                sandbox.phase
            );
            let handed = self.handed.get(&sandbox.id);
            assert_eq!(handed, sandbox.claim.as_ref().map(|claim| &claim.id), "{} works for nobody", sandbox.id);
        }
        let kept: BTreeSet<_> = self.records.iter().map(|sandbox| sandbox.id.clone()).collect();
        assert_eq!(kept, self.real.keys().cloned().collect(), "what runs is what is known");
    }
}

fn template(n: u8) -> Template {
    let spec = SandboxSpec::of(format!("python:3.{n}").parse().unwrap());
    Template { spec, mode: Mode::Hold, readiness: None }
}

fn pick<'a>(ids: impl Iterator<Item = &'a SandboxId> + Clone, n: usize) -> Option<SandboxId> {
    let count = ids.clone().count();
    if count == 0 { None } else { ids.clone().nth(n % count).cloned() }
}
