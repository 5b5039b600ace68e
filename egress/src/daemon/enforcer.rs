//! The thread that speaks with nf_tables. Whoever serves callers does not wait in the kernel; what comes while it is there waits in
//! line, in order of arrival; and other policies that wait behind each other are put in together.
//! Not here: what is put in, and how it is read back (`fence`).

use std::thread;

use tokio::sync::{mpsc, oneshot};
use trust::digest::Digest;

use super::fence::{Change, FenceError, Fences, Stands};
use super::netns::Port;
use super::ruleset::{self, Settings, Slot};
use crate::policy::AddressRule;

/// So many changes are put in together at most.
const TOGETHER: usize = 64;

/// The fences, by their thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Enforcer {
    line: mpsc::UnboundedSender<Job>,
    settings: Settings,
}

enum Job {
    Change(Box<Change>, oneshot::Sender<Result<Stands, FenceError>>),
    Other(Box<dyn FnOnce(&Fences) + Send>),
}

impl Enforcer {
    /// Starts the thread.
    pub fn start(fences: Fences) -> std::io::Result<Self> {
        let ((line, jobs), settings) = (mpsc::unbounded_channel(), fences.settings());
        thread::Builder::new().name("nf_tables".into()).spawn(move || work(&fences, jobs))?;
        Ok(Self { line, settings })
    }

    /// Of what this daemon puts into the kernel for such a fence.
    pub fn digest(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Digest {
        ruleset::digest(&self.settings, slot, ports, rules)
    }

    /// Another policy for a fence that stands.
    pub async fn change(&self, change: Change) -> Result<Stands, FenceError> {
        let (done, answer) = oneshot::channel();
        let _ = self.line.send(Job::Change(Box::new(change), done)); // fails where the thread is gone, and so does the answer
        answer.await.unwrap_or(Err(FenceError::Gone))
    }

    /// Anything else; it is done also where nobody waits for it any more.
    pub async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Fences) -> Result<T, FenceError> + Send + 'static,
    ) -> Result<T, FenceError> {
        let (done, answer) = oneshot::channel();
        let job = move |fences: &Fences| {
            let _ = done.send(ask(fences)); // nobody waits any more
        };
        let _ = self.line.send(Job::Other(Box::new(job)));
        answer.await.unwrap_or(Err(FenceError::Gone))
    }
}

fn work(fences: &Fences, mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut waiting = vec![first];
        while waiting.len() < TOGETHER
            && let Ok(more) = jobs.try_recv()
        {
            waiting.push(more);
        }
        let (mut changes, mut answers) = (Vec::new(), Vec::new());
        for job in waiting {
            match job {
                Job::Change(change, answer) => {
                    changes.push(*change);
                    answers.push(answer);
                }
                Job::Other(job) => {
                    together(fences, &mut changes, &mut answers); // what came before is done before
                    job(fences);
                }
            }
        }
        together(fences, &mut changes, &mut answers);
    }
}

type Answers = Vec<oneshot::Sender<Result<Stands, FenceError>>>;

fn together(fences: &Fences, changes: &mut Vec<Change>, answers: &mut Answers) {
    let done = fences.change(&std::mem::take(changes));
    for (answer, done) in std::mem::take(answers).into_iter().zip(done) {
        let _ = answer.send(done); // nobody waits any more
    }
}
