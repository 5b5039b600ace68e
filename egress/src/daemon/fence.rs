//! The fence: what holds a sandbox's packets to its policy, however it sends them. Look at its network (`netns`), make the
//! rules (`ruleset`), install them in one transaction (`kernel`), read them back: that is what is attested.
//! Not here: names (`worker`), which policy a sandbox has, and remembering fences over a restart (the kernel keeps the rules).

use std::io;

use nix::errno::Errno;
use trust::digest::Digest;

use super::kernel::{Entry, Kernel};
use super::netlink::refusal;
use super::netns::Port;
use super::nf_tables::{self, Family};
use super::ruleset::{self, MAPS, MAX_INTERFACES, Settings, Slot};
use crate::policy::AddressRule;
use crate::protocol::Interface;

/// The fences of this network namespace: the one in which this was opened. One process at a time may have it.
#[derive(Debug)]
pub struct Fences {
    kernel: Kernel,
    settings: Settings,
}

/// What stands around a sandbox, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stands {
    /// Of all that decides on its packets: what is attested.
    pub ruleset: Digest,
    /// Of all of that but the rules that its policy is made into. Under another policy it is the same.
    pub frame: Digest,
}

/// Another policy for a fence that stands.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose.
    pub slot: Slot,
    /// What it stands around.
    pub ports: Vec<Port>,
    /// What it is to permit.
    pub rules: Vec<AddressRule>,
    /// What stands there beside the policy's rules, as it was last read back.
    pub frame: Digest,
}

/// Why there is no fence, or none that we know of.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// nf_tables refused.
    #[error(
        "cannot {doing} in nf_tables: root, CAP_NET_ADMIN and Linux 5.16 with nf_tables (inet, netdev, nat) are needed"
    )]
    Kernel {
        /// What was to be done.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// Nobody speaks with the kernel any more.
    #[error("the thread that speaks with nf_tables has ended; the log says why: restart creto-egress")]
    Gone,
    /// More than the rules have room for.
    #[error("{0} network interfaces in one sandbox: give it at most {MAX_INTERFACES}")]
    TooManyInterfaces(usize),
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> FenceError {
    move |source| FenceError::Kernel { doing, source }
}

/// A table or a chain that was read back, if there is one.
type Part = Option<Vec<u8>>;

/// What an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// The rules are as they were.
    Intact,
    /// They are not: what they are now.
    Tampered(Digest),
}

impl Fences {
    /// Makes what all fences share; takes over the fences that an earlier process left.
    pub fn open(settings: Settings) -> Result<Self, FenceError> {
        let kernel = Kernel::open().map_err(failed("open a socket"))?;
        kernel.commit(&ruleset::shared(&settings)).map_err(failed("make the tables"))?;
        Ok(Self { kernel, settings })
    }

    /// What they are made with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Puts a fence around a sandbox, in place of whatever this slot has: flows that it does not permit end with their next packet,
    /// in either direction, and the others go on. Returns what then stands in the kernel.
    pub fn attach(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Result<Stands, FenceError> {
        if ports.len() > MAX_INTERFACES {
            return Err(FenceError::TooManyInterfaces(ports.len()));
        }
        let interfaces = interfaces(ports);
        let mut stale = if self.is_free(slot)? { vec![] } else { self.entries_of(slot)? };
        // An address may have been another sandbox's that is gone.
        stale.extend(
            self.entries_at(slot, &interfaces)?.into_iter().filter(|entry| Slot::of_chain(&entry.chain) != Some(slot)),
        );
        let mut changes = take(stale);
        changes.extend(ruleset::attach(&self.settings, slot, ports, rules));
        self.kernel.commit(&changes).map_err(failed("install a fence"))?;
        self.read_back(&self.shared()?, slot, &interfaces)
    }

    /// Other policies for fences that stand, of as many sandboxes as wait for one: in one transaction, for the kernel looks through a
    /// whole table at the end of each. Where it refuses that, each has one of its own, and what is wrong with one is not the
    /// others'. Nothing is put but the policy's rules; a fence of which all the rest is not as it was last read back is put up anew.
    pub fn change(&self, all: &[Change]) -> Vec<Result<Stands, FenceError>> {
        let put = |some: &[Change]| {
            let changes = some.iter().flat_map(|one| ruleset::policy(&self.settings, one.slot, &one.rules));
            self.kernel.commit(&changes.collect::<Vec<_>>())
        };
        let joined = all.len() > 1 && put(all).is_ok();
        let shared = match joined {
            true => self.shared().ok(), // else each reads it for itself, and says why it cannot
            false => None,
        };
        let change = |one: &Change| {
            let Change { slot, ports, rules, frame } = one;
            if !joined && let Err(error) = put(std::slice::from_ref(one)) {
                tracing::warn!(mark = slot.mark(), %error, "a fence is not as it was put up: it is put up anew");
                return self.attach(*slot, ports, rules);
            }
            let stands = match &shared {
                Some(shared) => self.read_back(shared, *slot, &interfaces(ports))?,
                None => self.read_back(&self.shared()?, *slot, &interfaces(ports))?,
            };
            if stands.frame == *frame { Ok(stands) } else { self.attach(*slot, ports, rules) }
        };
        all.iter().map(change).collect()
    }

    /// Removes all that belongs to a slot; it makes no difference what of it is there. `interfaces`: those that it was put around,
    /// as far as is known.
    pub fn detach(&self, slot: Slot, interfaces: &[Interface]) -> Result<(), FenceError> {
        let own = |entry: &Entry| Slot::of_chain(&entry.chain) == Some(slot);
        let remove = |entries: Vec<Entry>| {
            let changes = [take(entries.into_iter().filter(own).collect()), ruleset::detach(slot)].concat();
            self.kernel.commit(&changes)
        };
        match remove(self.entries_at(slot, interfaces)?) {
            // Something else leads there.
            Err(error) if refusal(&error) == Some(Errno::EBUSY) => remove(self.entries_of(slot)?),
            removed => removed,
        }
        .map_err(failed("remove a fence"))
    }

    /// Whether nothing is there of a slot.
    pub fn is_free(&self, slot: Slot) -> Result<bool, FenceError> {
        self.kernel.any(&slot.chains(MAX_INTERFACES)).map(|any| !any).map_err(failed("read a chain"))
    }

    /// Whether a sandbox's rules, and those that all share, are still what they were when `was` was returned.
    pub fn audit(&self, slot: Slot, interfaces: &[Interface], was: Digest) -> Result<Audit, FenceError> {
        let now = self.read_back(&self.shared()?, slot, interfaces)?.ruleset;
        Ok(if now == was { Audit::Intact } else { Audit::Tampered(now) })
    }

    /// What all sandboxes share: the tables, and the chains that packets pass first.
    fn shared(&self) -> Result<Vec<Part>, FenceError> {
        let mut parts = self.kernel.tables(&[Family::Inet, Family::Netdev]).map_err(failed("read a table"))?;
        let chains = ruleset::SHARED.map(|name| (Family::Inet, name.to_owned()));
        parts.extend(self.kernel.chains(&chains).map_err(failed("read a chain"))?);
        Ok(parts)
    }

    /// All that decides on a sandbox's packets: what all share, its own chains, and what leads to them.
    fn read_back(&self, shared: &[Part], slot: Slot, interfaces: &[Interface]) -> Result<Stands, FenceError> {
        let chains = slot.chains(MAX_INTERFACES);
        let own = self.kernel.chains(&chains).map_err(failed("read a chain"))?;
        let mut entries = self.entries_at(slot, interfaces)?;
        entries.sort();
        let (mut all, mut frame) = (Vec::new(), Vec::new());
        let named = shared.iter().map(|part| (false, part));
        let named = named.chain(chains.iter().zip(&own).map(|((_, name), part)| (slot.is_policys(name), part)));
        for (is_policys, part) in named {
            let bytes = part.as_deref().unwrap_or_default();
            let length = (bytes.len() as u64).to_be_bytes();
            for into in [Some(&mut all), (!is_policys).then_some(&mut frame)].into_iter().flatten() {
                into.push(part.is_some().into());
                into.extend(length);
                into.extend(bytes);
            }
        }
        for Entry { map, key, chain } in entries {
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let line = format!("{map} {key} {chain}\n");
            all.extend(line.bytes());
            frame.extend(line.bytes());
        }
        Ok(Stands { ruleset: Digest::of(&all), frame: Digest::of(&frame) })
    }

    /// What leads to a sandbox's chains, by looking through all that is there.
    fn entries_of(&self, slot: Slot) -> Result<Vec<Entry>, FenceError> {
        let mut all = Vec::new();
        for map in MAPS {
            all.extend(self.kernel.entries(map).map_err(failed("read a map"))?);
        }
        all.retain(|entry| Slot::of_chain(&entry.chain) == Some(slot));
        Ok(all)
    }

    /// What stands where a sandbox's entries belong.
    fn entries_at(&self, slot: Slot, interfaces: &[Interface]) -> Result<Vec<Entry>, FenceError> {
        let keys: Vec<_> = ruleset::elements(slot, interfaces).into_iter().map(|(map, key, _)| (map, key)).collect();
        self.kernel.entries_at(&keys).map_err(failed("read a map"))
    }
}

fn take(entries: Vec<Entry>) -> Vec<nf_tables::Change> {
    entries.into_iter().map(|entry| nf_tables::Change::Take(entry.map, entry.key)).collect()
}

fn interfaces(ports: &[Port]) -> Vec<Interface> {
    ports.iter().map(|port| port.interface.clone()).collect()
}
