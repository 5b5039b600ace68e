//! What the DNS has answered, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::{Answer, Refusal};

/// How many messages came to what. All but the last three are answers.
#[derive(Debug, Default)]
pub struct Counters {
    /// A synthetic address, a name of one, or the loopback.
    pub answered: AtomicU64,
    /// NODATA: IPv6 addresses and service bindings of allowed names.
    pub no_data: AtomicU64,
    /// REFUSED or NXDOMAIN, by policy.
    pub denied: AtomicU64,
    /// REFUSED: of a type or class that is never answered, no host name, too long, another's address.
    pub unanswerable: AtomicU64,
    /// REFUSED: no synthetic address for an allowed name, by a limit or because none is free.
    pub no_address: AtomicU64,
    /// REFUSED: from an address that is no sandbox's.
    pub strangers: AtomicU64,
    /// No question, or not well formed.
    pub malformed: AtomicU64,
    /// Dropped: more questions than a sandbox may ask.
    pub limited: AtomicU64,
    /// TCP connections that were turned away: more than a sandbox, or all of them, may have, or from no sandbox.
    pub turned_away: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts an answer.
pub(super) fn count(counters: &Counters, answer: &Answer) {
    Counters::add(match answer {
        Answer::Address(_) | Answer::Pointer(_) | Answer::Loopback => &counters.answered,
        Answer::NoData => &counters.no_data,
        Answer::NoSuchName(refusal) | Answer::Refused(refusal) => match refusal {
            Refusal::Denied { .. } => &counters.denied,
            Refusal::NoHost | Refusal::Kind(_) | Refusal::Class | Refusal::TooLong { .. } | Refusal::NoPointer => {
                &counters.unanswerable
            }
            Refusal::NoAddress(_) => &counters.no_address,
            Refusal::NoSandbox => &counters.strangers,
        },
    });
}
