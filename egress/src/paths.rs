//! Where a node's things are: below `CRETO_ROOT`, else where Linux puts them. The shim and the client build on it.

use std::path::{Path, PathBuf};

/// The directories of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    run: PathBuf,
    lib: PathBuf,
    etc: PathBuf,
}

impl Paths {
    /// `CRETO_ROOT/{run,lib,etc}`, else `/run/creto`, `/var/lib/creto` and `/etc/creto`.
    pub fn new(root: Option<&Path>) -> Self {
        match root {
            Some(root) => Self { run: root.join("run"), lib: root.join("lib"), etc: root.join("etc") },
            None => Self { run: "/run/creto".into(), lib: "/var/lib/creto".into(), etc: "/etc/creto".into() },
        }
    }

    /// Volatile state.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// What outlives a reboot.
    pub fn lib(&self) -> &Path {
        &self.lib
    }

    /// What the operator writes.
    pub fn etc(&self) -> &Path {
        &self.etc
    }

    /// Where questions are asked.
    pub fn socket(&self) -> PathBuf {
        self.run.join("egress.sock")
    }

    /// What is kept of each fence.
    pub fn state(&self) -> PathBuf {
        self.run.join("egress/fences")
    }

    /// Which synthetic addresses are in use.
    pub fn names(&self) -> PathBuf {
        self.run.join("egress/names.json")
    }

    /// An empty directory, the worker's root.
    pub fn empty(&self) -> PathBuf {
        self.run.join("egress/empty")
    }

    /// The settings.
    pub fn config(&self) -> PathBuf {
        self.etc.join("egress.toml")
    }

    /// The policies, a file each.
    pub fn policies(&self) -> PathBuf {
        self.etc.join("policies.d")
    }

    /// Where the record waits for the ledger.
    pub fn spool(&self) -> PathBuf {
        self.lib.join("spool")
    }
}
