//! Which synthetic address stands for which name, for which sandbox. Pure: told what time it is. `names` is what others hold.
//!
//! An address of 198.18.0.0/15 (RFC 2544: never on the Internet) belongs to one sandbox and one name at a time. It keeps them
//! while it is in use: an answer or a connection not longer ago than `hold`, or a flow that holds it. Then it rests, and of
//! those that have rested the one that has for longest is given first, after all that were never given.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use trust::rate::{Bucket, Rate};

use crate::policy::Fqdn;
use crate::protocol::SandboxKey;

/// The first address that is given: 198.18.0.1.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// How many there are, up to 198.19.255.254.
pub const ADDRESSES: u32 = (1 << 17) - 2;

/// What holds for all sandboxes.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long an address keeps its name after it was last used.
    pub hold: Duration,
    /// How long it is nobody's after that.
    pub rest: Duration,
    /// The most names of a sandbox at any time.
    pub names: usize,
    /// How often a sandbox may come with a name that it has no address for.
    pub new_names: Rate,
    /// How many addresses there are: `ADDRESSES`, fewer in tests.
    pub addresses: u32,
}

/// Why a name gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// The sandbox came with too many new names.
    #[error("too many new names at once")]
    TooFast,
    /// The sandbox has as many names as it may.
    #[error("the sandbox has {0} names in use, which is its limit")]
    TooMany(usize),
    /// All addresses are taken, or rest.
    #[error("no synthetic address is free on this node")]
    NoneLeft,
}

/// An address in use, as it is handed over to the next worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Whose.
    pub sandbox: SandboxKey,
    /// For which name.
    pub name: Fqdn,
    /// Which.
    pub address: Ipv4Addr,
}

/// What the next worker must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// An address stands for a name.
    Given(Given),
    /// It stands for none any more.
    Freed(Ipv4Addr),
}

/// That a flow holds an address; given back by `release`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    place: u32,
    serial: u64,
}

/// All synthetic addresses of a node.
#[derive(Debug)]
pub struct Synthetic {
    rules: Rules,
    /// Those with a name, by their place in the range.
    taken: HashMap<u32, Taken>,
    holders: HashMap<SandboxKey, Holder>,
    /// Those that lost their name, and since when; the oldest first.
    resting: VecDeque<(Instant, u32)>,
    /// When a taken address is to be looked at again; at most one entry for each taking.
    due: BinaryHeap<Reverse<(Instant, u32, u64)>>,
    /// Where the walk through the never given began, and how far it has come.
    start: u32,
    walked: u32,
    /// Given before the walk came to them.
    ahead: HashSet<u32>,
    serial: u64,
    /// Since they were last taken.
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Taken {
    sandbox: SandboxKey,
    name: Arc<Fqdn>,
    until: Instant,
    flows: u32,
    /// Whether it stands in `due`.
    queued: bool,
    /// Tells this taking from earlier ones of the same address.
    serial: u64,
}

#[derive(Debug, Default)]
struct Holder {
    places: HashMap<Arc<Fqdn>, u32>,
    new_names: Bucket,
}

impl Synthetic {
    /// All free. `start` is where in the range giving begins: a random one makes it unlikely that an address which a sandbox
    /// remembers from before a restart has another meaning now.
    pub fn new(rules: Rules, start: u32) -> Self {
        let start = start % rules.addresses;
        Self {
            rules,
            taken: HashMap::new(),
            holders: HashMap::new(),
            resting: VecDeque::new(),
            due: BinaryHeap::new(),
            start,
            walked: 0,
            ahead: HashSet::new(),
            serial: 0,
            changes: Vec::new(),
        }
    }

    /// The address of a name for a sandbox, which is in use from now on.
    pub fn give(&mut self, sandbox: &SandboxKey, name: &Fqdn, now: Instant) -> Result<Ipv4Addr, NoAddress> {
        self.reclaim(now);
        let holder = match self.holders.get_mut(sandbox) {
            Some(holder) => holder,
            None => self.holders.entry(sandbox.clone()).or_default(),
        };
        if let Some(place) = holder.places.get(name) {
            if let Some(taken) = self.taken.get_mut(place) {
                taken.until = now + self.rules.hold;
            }
            return Ok(address(*place));
        }
        if holder.places.len() >= self.rules.names {
            return Err(NoAddress::TooMany(self.rules.names));
        }
        if !holder.new_names.take(&self.rules.new_names, now) {
            return Err(NoAddress::TooFast);
        }
        let place = self.free_place(now).ok_or(NoAddress::NoneLeft)?;
        self.take(place, sandbox, name, now);
        Ok(address(place))
    }

    /// The name that an address stands for, if it is this sandbox's and in use.
    pub fn find(&mut self, sandbox: &SandboxKey, at: Ipv4Addr, now: Instant) -> Option<Arc<Fqdn>> {
        self.reclaim(now);
        let taken = self.taken.get(&place(at)?)?;
        (taken.sandbox == *sandbox).then(|| taken.name.clone())
    }

    /// The same, for a flow: it keeps its name until the lease is released, and for `hold` after that.
    pub fn hold(&mut self, sandbox: &SandboxKey, at: Ipv4Addr, now: Instant) -> Option<(Arc<Fqdn>, Lease)> {
        self.reclaim(now);
        let place = place(at)?;
        let taken = self.taken.get_mut(&place).filter(|taken| taken.sandbox == *sandbox)?;
        taken.flows += 1;
        Some((taken.name.clone(), Lease { place, serial: taken.serial }))
    }

    /// Ends what `hold` began.
    pub fn release(&mut self, lease: Lease, now: Instant) {
        let Some(taken) = self.taken.get_mut(&lease.place).filter(|taken| taken.serial == lease.serial) else {
            return; // the sandbox was forgotten meanwhile
        };
        taken.flows -= 1;
        taken.until = now + self.rules.hold;
        if taken.flows == 0 && !taken.queued {
            taken.queued = true;
            self.due.push(Reverse((taken.until, lease.place, lease.serial)));
        }
    }

    /// Takes all addresses of a sandbox from it, held by flows or not.
    pub fn forget(&mut self, sandbox: &SandboxKey, now: Instant) {
        for place in self.holders.remove(sandbox).map(|holder| holder.places).unwrap_or_default().into_values() {
            self.taken.remove(&place);
            self.resting.push_back((now, place));
            self.changes.push(Change::Freed(address(place)));
        }
    }

    /// What has changed since this was last asked, in order.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Takes over what was in use before; what contradicts what is known already is left out.
    pub fn restore(&mut self, given: &[Given], now: Instant) {
        for Given { sandbox, name, address } in given {
            let known = self.holders.get(sandbox).is_some_and(|holder| holder.places.contains_key(name));
            let Some(place) = place(*address).filter(|place| *place < self.rules.addresses) else { continue };
            let walked = (place + self.rules.addresses - self.start) % self.rules.addresses < self.walked;
            if !known && !walked && self.ahead.insert(place) {
                self.take(place, sandbox, name, now);
            }
        }
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.taken.len()
    }

    /// How many flows hold an address.
    #[cfg(test)]
    pub(super) fn flows(&self, at: Ipv4Addr) -> u32 {
        place(at).and_then(|place| self.taken.get(&place)).map_or(0, |taken| taken.flows)
    }

    fn take(&mut self, place: u32, sandbox: &SandboxKey, name: &Fqdn, now: Instant) {
        self.serial += 1;
        let given = Given { sandbox: sandbox.clone(), name: name.clone(), address: address(place) };
        self.changes.push(Change::Given(given));
        let (name, until, serial) = (Arc::new(name.clone()), now + self.rules.hold, self.serial);
        self.holders.entry(sandbox.clone()).or_default().places.insert(name.clone(), place);
        self.taken.insert(place, Taken { sandbox: sandbox.clone(), name, until, flows: 0, queued: true, serial });
        self.due.push(Reverse((until, place, serial)));
    }

    fn free_place(&mut self, now: Instant) -> Option<u32> {
        while self.walked < self.rules.addresses {
            let place = (self.start + self.walked) % self.rules.addresses;
            self.walked += 1;
            if !self.ahead.remove(&place) {
                return Some(place);
            }
        }
        let rested = self.resting.front().is_some_and(|(since, _)| now.duration_since(*since) >= self.rules.rest);
        if rested { self.resting.pop_front().map(|(_, place)| place) } else { None }
    }

    /// Takes the names from addresses that are not in use any more. Each is looked at about once for each `hold`.
    fn reclaim(&mut self, now: Instant) {
        while let Some(Reverse((at, place, serial))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            let Some(taken) = self.taken.get_mut(&place).filter(|taken| taken.serial == serial) else { continue };
            if taken.flows > 0 {
                taken.queued = false; // looked at again when its last flow has ended
                continue;
            }
            if taken.until > now {
                self.due.push(Reverse((taken.until, place, serial)));
                continue;
            }
            if let Some(Taken { sandbox, name, .. }) = self.taken.remove(&place) {
                self.resting.push_back((now, place));
                self.changes.push(Change::Freed(address(place)));
                if let Some(holder) = self.holders.get_mut(&sandbox) {
                    holder.places.remove(&name);
                    if holder.places.is_empty() && holder.new_names.is_full(now) {
                        self.holders.remove(&sandbox);
                    }
                }
            }
        }
    }
}

fn address(place: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST + place)
}

fn place(address: Ipv4Addr) -> Option<u32> {
    address.to_bits().checked_sub(FIRST).filter(|place| *place < ADDRESSES)
}

#[cfg(test)]
mod tests;
