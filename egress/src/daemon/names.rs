//! Which synthetic address stands for which name, as the worker told: handed to the next worker, and by a file to the next
//! daemon, so that an address which a sandbox remembers goes on leading where it led. It lies where a reboot empties it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::protocol::SandboxKey;
use crate::worker::dns::{Change, Given};

/// The addresses in use, and their file.
#[derive(Debug)]
pub struct KeptNames {
    path: PathBuf,
    given: BTreeMap<Ipv4Addr, Given>,
    changed: bool,
}

impl KeptNames {
    /// What the daemon before this one kept. Without it names get new addresses, which is all that is lost.
    pub fn open(path: PathBuf) -> Self {
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Vec<Given>>(&bytes)?));
        let given = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "names get new addresses");
            }
            Vec::new()
        });
        Self { path, given: given.into_iter().map(|given| (given.address, given)).collect(), changed: false }
    }

    /// For the next worker.
    pub fn all(&self) -> Vec<Given> {
        self.given.values().cloned().collect()
    }

    /// The worker says so.
    pub fn change(&mut self, change: Change) {
        self.changed = true;
        match change {
            Change::Given(given) => self.given.insert(given.address, given),
            Change::Freed(address) => self.given.remove(&address),
        };
    }

    /// A sandbox is gone, though there may be no worker to say so.
    pub fn forget(&mut self, sandbox: &SandboxKey) {
        let before = self.given.len();
        self.given.retain(|_, given| given.sandbox != *sandbox);
        self.changed |= self.given.len() != before;
    }

    /// Writes what has changed.
    pub fn keep(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let fresh = self.path.with_extension("new");
        let written = serde_json::to_vec(&self.all())
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&fresh, bytes))
            .and_then(|()| fs::rename(&fresh, &self.path));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "after a restart names will have new addresses");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Fqdn;

    fn given(id: &str, last: u8) -> Given {
        let sandbox = SandboxKey { namespace: "n".into(), id: id.into() };
        Given { sandbox, name: Fqdn::parse("a.example.com").unwrap(), address: Ipv4Addr::new(198, 18, 0, last) }
    }

    #[test]
    fn the_next_daemon_knows_what_is_in_use_and_a_damaged_file_costs_names_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.json");
        let mut names = KeptNames::open(path.clone());
        for (id, last) in [("a", 1), ("a", 2), ("b", 3), ("c", 4)] {
            names.change(Change::Given(given(id, last)));
        }
        names.change(Change::Freed(Ipv4Addr::new(198, 18, 0, 4)));
        names.keep();
        assert_eq!(KeptNames::open(path.clone()).all(), [given("a", 1), given("a", 2), given("b", 3)]);
        names.forget(&given("a", 1).sandbox);
        names.keep();
        assert_eq!(KeptNames::open(path.clone()).all(), [given("b", 3)]);
        fs::write(&path, "[{").unwrap();
        assert!(KeptNames::open(path).all().is_empty());
    }
}
