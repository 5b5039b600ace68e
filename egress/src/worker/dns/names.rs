//! The synthetic addresses as the DNS and the gate share them: `synthetic` with a lock and a clock.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::settings::DnsSettings;
use super::synthetic::{ADDRESSES, Change, Given, Lease, NoAddress, Rules, Synthetic};
use crate::policy::Fqdn;
use crate::protocol::SandboxKey;

/// Which synthetic address stands for which name. No call waits for anything but another such call.
pub struct Names {
    synthetic: Mutex<Synthetic>,
    /// Hears of each change, under the lock and so in order: it must not wait.
    tell: Box<dyn Fn(Change) + Send + Sync>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("synthetic", &self.synthetic).finish_non_exhaustive()
    }
}

/// A name that a flow goes to. As long as this lives, its address stands for it.
#[derive(Debug)]
pub struct HeldName {
    names: Arc<Names>,
    name: Arc<Fqdn>,
    lease: Option<Lease>,
}

impl Names {
    /// None in use. Where in the range giving begins is left to chance. What the next worker must know is told to `tell`,
    /// which must not wait for anything.
    pub fn new(settings: &DnsSettings, tell: impl Fn(Change) + Send + Sync + 'static) -> Arc<Self> {
        let rules = Rules {
            hold: settings.hold(),
            rest: Duration::from_secs(u64::from(settings.rest_seconds)),
            names: settings.limits.names.get(),
            new_names: settings.limits.new_names(),
            addresses: ADDRESSES,
        };
        // A hasher's keys are random; what is wanted here need not be a secret.
        let start = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) as u32;
        Arc::new(Self { synthetic: Mutex::new(Synthetic::new(rules, start)), tell: Box::new(tell) })
    }

    /// The name that a synthetic address stands for to a sandbox, held for a flow; none for an address of another sandbox, or
    /// one that is not in use any more.
    pub fn hold(self: &Arc<Self>, sandbox: &SandboxKey, address: Ipv4Addr) -> Option<HeldName> {
        let (name, lease) = self.with(|synthetic| synthetic.hold(sandbox, address, Instant::now()))?;
        Some(HeldName { names: self.clone(), name, lease: Some(lease) })
    }

    /// Takes all addresses of a sandbox from it. Call it once the sandbox is removed from the bindings.
    pub fn forget(&self, sandbox: &SandboxKey) {
        self.with(|synthetic| synthetic.forget(sandbox, Instant::now()));
    }

    /// Takes over what was in use in the worker before this one.
    pub fn restore(&self, given: &[Given]) {
        self.with(|synthetic| synthetic.restore(given, Instant::now()));
    }

    /// How many addresses are in use.
    pub fn in_use(&self) -> usize {
        self.lock().in_use()
    }

    /// The address of a name for a sandbox.
    pub(super) fn give(&self, sandbox: &SandboxKey, name: &Fqdn) -> Result<Ipv4Addr, NoAddress> {
        self.with(|synthetic| synthetic.give(sandbox, name, Instant::now()))
    }

    /// The name of an address, without holding it.
    pub(super) fn find(&self, sandbox: &SandboxKey, address: Ipv4Addr) -> Option<Arc<Fqdn>> {
        self.with(|synthetic| synthetic.find(sandbox, address, Instant::now()))
    }

    /// Does it and tells what it changed.
    fn with<T>(&self, does: impl FnOnce(&mut Synthetic) -> T) -> T {
        let mut synthetic = self.lock();
        let done = does(&mut synthetic);
        synthetic.changes().into_iter().for_each(&self.tell);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Synthetic> {
        self.synthetic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldName {
    /// The name.
    pub fn name(&self) -> &Fqdn {
        &self.name
    }
}

impl AsRef<Fqdn> for HeldName {
    fn as_ref(&self) -> &Fqdn {
        &self.name
    }
}

impl Drop for HeldName {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.names.with(|synthetic| synthetic.release(lease, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_each_of_its_flows_until_that_flow_ends() {
        let names = Names::new(&DnsSettings::default(), |_| ());
        let sandbox = SandboxKey { namespace: "default".to_owned(), id: "a".to_owned() };
        let name = Fqdn::parse("api.example.com").unwrap();
        let address = names.give(&sandbox, &name).unwrap();
        let (first, second) = (names.hold(&sandbox, address).unwrap(), names.hold(&sandbox, address).unwrap());
        assert_eq!((first.name(), names.lock().flows(address)), (&name, 2));
        drop(first);
        assert_eq!((second.name(), names.lock().flows(address)), (&name, 1));
        drop(second);
        assert_eq!(names.lock().flows(address), 0);
    }
}
