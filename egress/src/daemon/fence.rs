//! The fence: what holds a sandbox's packets to its policy, however it sends them. Look at its network (`netns`), make the
//! rules (`ruleset`), install them in one transaction (`kernel`), read them back: that is what is attested.
//! Not here: names (`worker`), which policy a sandbox has, and remembering fences over a restart (the kernel keeps the rules).

use std::io;

use nix::errno::Errno;
use trust::digest::Digest;

use super::kernel::{Entry, Kernel};
use super::netlink::refusal;
use super::netns::Port;
use super::nf_tables::{Change, Family};
use super::ruleset::{self, MAPS, MAX_INTERFACES, Settings, Slot};
use crate::policy::AddressRule;
use crate::protocol::Interface;

/// The fences of this network namespace: the one in which this was opened. One process at a time may have it.
#[derive(Debug)]
pub struct Fences {
    kernel: Kernel,
    settings: Settings,
}

/// How a fence gets into the kernel: [`Fences::attach`], or [`Fences::change`] where it stands.
pub type Put = fn(&Fences, Slot, &[Port], &[AddressRule]) -> Result<Digest, FenceError>;

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
    /// More than the rules have room for.
    #[error("{0} network interfaces in one sandbox: give it at most {MAX_INTERFACES}")]
    TooManyInterfaces(usize),
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> FenceError {
    move |source| FenceError::Kernel { doing, source }
}

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

    /// Puts a fence around a sandbox, in place of whatever this slot has: flows that it does not permit end with their next packet,
    /// in either direction, and the others go on. Returns the digest of what then stands in the kernel.
    pub fn attach(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Result<Digest, FenceError> {
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
        self.read_back(slot, &interfaces)
    }

    /// Other rules in a fence that stands, as this daemon put it, around the same ports: nothing is looked for that cannot be there, so
    /// it costs the same however many fences there are. Every rule is put anew; where the kernel does not have the chains that
    /// belong there and no others, all of the fence is.
    pub fn change(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Result<Digest, FenceError> {
        let changes = ruleset::change(&self.settings, slot, ports, rules);
        let (expected, interfaces) = (slot.chains(ports.len()).len(), interfaces(ports));
        if let Err(error) = self.kernel.commit(&changes) {
            tracing::warn!(mark = slot.mark(), %error, "a fence is not as it was put up: it is put up anew");
            return self.attach(slot, ports, rules);
        }
        match self.standing(slot, &interfaces)? {
            (chains, digest) if chains == expected => Ok(digest),
            _ => self.attach(slot, ports, rules),
        }
    }

    /// The digest of what this daemon puts into the kernel for such a fence: another one where its version or its settings are
    /// others.
    pub fn put(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Digest {
        let changes = [ruleset::shared(&self.settings), ruleset::attach(&self.settings, slot, ports, rules)];
        Digest::of(changes.iter().flatten().map(|change| format!("{change}\n")).collect::<String>().as_bytes())
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
        let now = self.read_back(slot, interfaces)?;
        Ok(if now == was { Audit::Intact } else { Audit::Tampered(now) })
    }

    /// The digest of all that decides on a sandbox's packets: the shared chains, its own, and what leads to them.
    pub fn read_back(&self, slot: Slot, interfaces: &[Interface]) -> Result<Digest, FenceError> {
        self.standing(slot, interfaces).map(|(_, digest)| digest)
    }

    /// The same, and how many chains of its own it has.
    fn standing(&self, slot: Slot, interfaces: &[Interface]) -> Result<(usize, Digest), FenceError> {
        let tables = self.kernel.tables(&[Family::Inet, Family::Netdev]).map_err(failed("read a table"))?;
        let shared = ruleset::SHARED.map(|name| (Family::Inet, name.to_owned()));
        let chains = [&shared[..], &slot.chains(MAX_INTERFACES)].concat();
        let chains = self.kernel.chains(&chains).map_err(failed("read a chain"))?;
        let own = chains[shared.len()..].iter().flatten().count();
        let mut all = Vec::new();
        for part in tables.into_iter().chain(chains) {
            all.push(part.is_some().into());
            let bytes = part.unwrap_or_default();
            all.extend((bytes.len() as u64).to_be_bytes());
            all.extend(bytes);
        }
        let mut entries = self.entries_at(slot, interfaces)?;
        entries.sort();
        for Entry { map, key, chain } in entries {
            all.extend(
                format!("{map} {} {chain}\n", key.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).bytes(),
            );
        }
        Ok((own, Digest::of(&all)))
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

fn take(entries: Vec<Entry>) -> Vec<Change> {
    entries.into_iter().map(|entry| Change::Take(entry.map, entry.key)).collect()
}

fn interfaces(ports: &[Port]) -> Vec<Interface> {
    ports.iter().map(|port| port.interface.clone()).collect()
}
