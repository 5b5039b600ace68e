//! The fence: what holds a sandbox's packets to its policy, however it sends them. Look at its network (`netns`), make the
//! rules (`ruleset`), install them in one transaction (`kernel`), read them back: that is what is attested.
//! Not here: names (`worker`), which policy a sandbox has, and remembering fences over a restart (the kernel keeps the rules).

use std::collections::BTreeSet;
use std::io;

use trust::digest::Digest;

use super::kernel::{Entry, Kernel};
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

    /// Puts a fence around a sandbox, in place of what this slot had: flows that it does not permit end with their next packet,
    /// in either direction, and the others go on. Returns the digest of what then stands in the kernel.
    pub fn attach(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Result<Digest, FenceError> {
        if ports.len() > MAX_INTERFACES {
            return Err(FenceError::TooManyInterfaces(ports.len()));
        }
        let interfaces: Vec<_> = ports.iter().map(|port| port.interface.clone()).collect();
        let again = self.kernel.chain(Family::Inet, &slot.chains(0)[0].1).map_err(failed("read a chain"))?.is_some();
        let mut stale = if again { self.entries_of(slot)? } else { vec![] };
        // An address may have been another sandbox's that is gone.
        stale.extend(
            self.entries_at(slot, &interfaces)?.into_iter().filter(|entry| Slot::of_chain(&entry.chain) != Some(slot)),
        );
        let mut changes = take(stale);
        changes.extend(ruleset::attach(&self.settings, slot, ports, rules));
        self.kernel.commit(&changes).map_err(failed("install a fence"))?;
        self.read_back(slot, &interfaces)
    }

    /// The digest of what this daemon puts into the kernel for such a fence: another one where its version or its settings are
    /// others.
    pub fn put(&self, slot: Slot, ports: &[Port], rules: &[AddressRule]) -> Digest {
        let changes = [ruleset::shared(&self.settings), ruleset::attach(&self.settings, slot, ports, rules)];
        Digest::of(changes.iter().flatten().map(|change| format!("{change}\n")).collect::<String>().as_bytes())
    }

    /// Removes all that belongs to a slot; it makes no difference what of it is there.
    pub fn detach(&self, slot: Slot) -> Result<(), FenceError> {
        let mut changes = take(self.entries_of(slot)?);
        changes.extend(ruleset::detach(slot));
        self.kernel.commit(&changes).map_err(failed("remove a fence"))
    }

    /// The slots that something is there of.
    pub fn slots(&self) -> Result<BTreeSet<Slot>, FenceError> {
        let mut slots = BTreeSet::new();
        for family in [Family::Inet, Family::Netdev] {
            let chains = self.kernel.chains(family).map_err(failed("list chains"))?;
            slots.extend(chains.iter().filter_map(|name| Slot::of_chain(name)));
        }
        Ok(slots)
    }

    /// Whether a sandbox's rules, and those that all share, are still what they were when `was` was returned.
    pub fn audit(&self, slot: Slot, interfaces: &[Interface], was: Digest) -> Result<Audit, FenceError> {
        let now = self.read_back(slot, interfaces)?;
        Ok(if now == was { Audit::Intact } else { Audit::Tampered(now) })
    }

    /// The digest of all that decides on a sandbox's packets: the shared chains, its own, and what leads to them.
    pub fn read_back(&self, slot: Slot, interfaces: &[Interface]) -> Result<Digest, FenceError> {
        let mut all = Vec::new();
        let mut add = |part: Option<Vec<u8>>| {
            all.push(part.is_some().into());
            let bytes = part.unwrap_or_default();
            all.extend((bytes.len() as u64).to_be_bytes());
            all.extend(bytes);
        };
        for family in [Family::Inet, Family::Netdev] {
            add(self.kernel.table(family).map_err(failed("read a table"))?);
        }
        let shared = ruleset::SHARED.map(|name| (Family::Inet, name.to_owned()));
        for (family, name) in shared.into_iter().chain(slot.chains(MAX_INTERFACES)) {
            add(self.kernel.chain(family, &name).map_err(failed("read a chain"))?);
        }
        let mut entries = self.entries_at(slot, interfaces)?;
        entries.sort();
        for Entry { map, key, chain } in entries {
            all.extend(
                format!("{map} {} {chain}\n", key.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).bytes(),
            );
        }
        Ok(Digest::of(&all))
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
        let keys = ruleset::elements(slot, interfaces).into_iter();
        let entry = |(map, key, _): (_, Vec<u8>, _)| self.kernel.entry(map, &key).transpose();
        keys.filter_map(entry).collect::<Result<_, _>>().map_err(failed("read a map"))
    }
}

fn take(entries: Vec<Entry>) -> Vec<Change> {
    entries.into_iter().map(|entry| Change::Take(entry.map, entry.key)).collect()
}
