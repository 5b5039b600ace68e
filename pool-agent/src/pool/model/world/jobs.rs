//! What the agent of the model does, step by step: it can fail at each, and be killed before each.

use trust::clock::Timestamp;
use trust::id::SandboxId;

use super::{Real, World};
use crate::pool::member::Input;
use crate::sandbox::Fence;

/// Where a job can fail, and where the agent can be killed: before each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Create,
    Fence,
    Publish,
    Bind,
    HandOut,
    Destroy,
    Forget,
}

/// Work that the agent has in hand.
#[derive(Clone, Debug)]
pub struct Job {
    pub next: Step,
    pub began: Timestamp,
}

impl World {
    /// One step of a job; each is one thing that another process does, or one transaction.
    pub fn step(&mut self, id: &SandboxId) {
        let Job { next, began } = self.jobs[id].clone();
        if self.faults.contains(&next) {
            return self.failed(id, next, began);
        }
        let done = match next {
            Step::Create => {
                self.real.insert(id.clone(), Real::default());
                Some(Step::Fence)
            }
            Step::Fence => self.real.get_mut(id).map(|real| {
                real.fenced = true;
                Step::Publish
            }),
            Step::Publish => match self.advance(id, Input::Warmed(Fence::Sealed)) {
                Ok(_) => {
                    self.attempts.succeeded();
                    self.jobs.remove(id);
                    return;
                }
                Err(_) => None,
            },
            Step::Bind => {
                let record = self.records.iter().find(|sandbox| sandbox.id == *id).unwrap();
                let claim = record.claim.as_ref().unwrap().id.clone();
                self.real.get_mut(id).map(|real| {
                    assert!(real.fenced, "{id} is bound and not fenced");
                    assert_eq!(real.bound.get_or_insert(claim.clone()), &claim, "{id} is bound twice");
                    Step::HandOut
                })
            }
            Step::HandOut => match self.advance(id, Input::Bound) {
                Ok(sandbox) => {
                    let claim = sandbox.claim.unwrap().id;
                    assert_eq!(self.handed.insert(id.clone(), claim), None, "{id} is handed out twice");
                    self.jobs.remove(id);
                    return;
                }
                Err(_) => None,
            },
            Step::Destroy => {
                self.real.remove(id);
                Some(Step::Forget)
            }
            Step::Forget => {
                assert!(self.records.remove(id).unwrap(), "{id} was forgotten twice");
                self.jobs.remove(id);
                return;
            }
        };
        match done {
            Some(next) => self.jobs.get_mut(id).unwrap().next = next,
            None => self.failed(id, next, began),
        }
    }

    fn failed(&mut self, id: &SandboxId, step: Step, began: Timestamp) {
        match step {
            Step::Destroy | Step::Forget => {
                self.jobs.remove(id); // the next plan finds it Terminating, in nobody's hand
                return;
            }
            Step::Bind | Step::HandOut => {}
            Step::Create | Step::Fence | Step::Publish => {
                self.attempts.failed(&format!("{step:?}"), began, self.now);
            }
        }
        self.advance(id, Input::failed("fault", "")).unwrap();
        self.take_down(id.clone());
        self.advance(id, Input::ended("over", "")).unwrap();
    }
}
