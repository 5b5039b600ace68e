//! Which step of its order a claim is in, for whoever reads why it failed; and how long each took, for whoever waits.

use std::time::Instant;

use trust::sandbox_api::Took;

/// A step, in the order of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Identity,
    Policy,
    Secrets,
    Token,
    Network,
    Fence,
    Delivery,
    Attestation,
    Record,
}

impl Step {
    /// As it is recorded.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Policy => "policy",
            Self::Secrets => "secrets",
            Self::Token => "token",
            Self::Network => "network",
            Self::Fence => "fence",
            Self::Delivery => "delivery",
            Self::Attestation => "attestation",
            Self::Record => "record",
        }
    }
}

/// The steps so far.
pub struct Steps {
    /// The one that is being taken.
    pub now: Step,
    began: Instant,
    took: Took,
}

impl Steps {
    /// At the first one.
    pub fn begin() -> Self {
        Self { now: Step::Identity, began: Instant::now(), took: Took::default() }
    }

    /// The one before is done.
    pub fn enter(&mut self, next: Step) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let took = match self.now {
            Step::Identity => &mut self.took.identity,
            Step::Policy => &mut self.took.policy,
            Step::Secrets => &mut self.took.secrets,
            Step::Token | Step::Network => &mut self.took.token,
            Step::Fence => &mut self.took.fence,
            Step::Delivery => &mut self.took.delivery,
            Step::Attestation => &mut self.took.attestation,
            Step::Record => &mut self.took.record,
        };
        *took += micros;
        (self.now, self.began) = (next, Instant::now());
    }

    /// How long they took, the last one with them.
    pub fn end(mut self) -> Took {
        self.enter(Step::Record);
        self.took
    }
}
