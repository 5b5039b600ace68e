//! Where things are: below `CRETO_ROOT` as the shim and the CLI have it, else where Linux puts them.

use std::path::{Path, PathBuf};

/// The directories of one node.
#[derive(Clone, Debug)]
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

    /// Where questions are asked.
    pub fn socket(&self) -> PathBuf {
        self.run.join("egress.sock")
    }

    /// What is kept of each fence.
    pub fn state(&self) -> PathBuf {
        self.run.join("egress/fences")
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

    /// What outlives a reboot.
    pub fn lib(&self) -> &Path {
        &self.lib
    }

    /// Where the record waits for the ledger.
    pub fn spool(&self) -> PathBuf {
        self.lib.join("spool")
    }
}
