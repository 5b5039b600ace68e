//! What the create path needs of the node, opened for each pod: who agents are, the node's keys, the audit record.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::utsname::uname;
use trust::attestation::predicate;
use trust::audit::{Limits, Spool};
use trust::clock::{Clock, SystemClock};
use trust::id::{BootId, NodeId};
use trust::identity::registry::Registry;
use trust::identity::replay::SeenTokens;
use trust::identity::token::Rules;
use trust::identity::workload::Issuer;
use trust::identity::{self, Binder};
use trust::keys::Keyring;

use crate::error::TaskError;
use crate::fence::{Egress, Fences};
use crate::nhi::Nhi;
use crate::paths;
use crate::settings::Settings;

/// The node, as one pod needs it.
pub struct Ports {
    /// Decides for whom a sandbox works.
    pub binder: Binder,
    /// Signs.
    pub keyring: Keyring,
    /// In whose name.
    pub issuer: Issuer,
    /// Where.
    pub node: predicate::Node,
    /// What happened.
    pub record: Spool,
    /// How long a sandbox's token is good for.
    pub token_lifetime: Duration,
    /// How long a statement is.
    pub validity: Duration,
    /// What holds sandboxes' packets.
    pub fences: Box<dyn Fences>,
    /// The node's network policies, a file each.
    pub policies: PathBuf,
    /// All statements about all sandboxes: `NAMESPACE/ID/` each.
    pub statements: PathBuf,
}

impl Ports {
    /// Opens the keys, and with the first sandbox of a node makes them.
    pub fn open(settings: &Settings) -> Result<Self, TaskError> {
        let (lib, clock) = (paths::lib_root(), Arc::new(SystemClock));
        let keyring = Keyring::open(&lib, &*clock).map_err(|e| TaskError::host("the node's signing keys", e))?;
        let node = node(settings.identity.node.clone())?;
        let identity = &settings.identity;
        let audience = identity.audience.clone().unwrap_or_else(|| format!("creto:{}", node.id));
        let binder = Binder {
            source: match identity.service().map_err(TaskError::Invalid)? {
                None => Box::new(Registry::new(paths::agents())),
                Some(service) => Box::new(Nhi(service.clone())),
            },
            seen: SeenTokens::new(lib.join("seen-tokens")),
            clock,
            settings: identity::Settings {
                anonymous: identity.anonymous,
                operator: identity.operator,
                tokens: Rules::new(audience),
            },
        };
        let record = Spool::new(&lib.join("spool"), "shim", &node.id.to_string(), Limits::default());
        let record = record.map_err(|e| TaskError::host("the audit spool", e))?;
        let issuer = Issuer { domain: identity.trust_domain.clone(), node: node.id.clone() };
        let (token_lifetime, validity) = (identity.token_lifetime, settings.attestation.validity);
        let (fences, policies, statements) = (Box::new(Egress), paths::policies(), paths::statements());
        Ok(Self { binder, keyring, issuer, node, record, token_lifetime, validity, fences, policies, statements })
    }

    /// The time, from the one clock that all checks use.
    pub fn clock(&self) -> &dyn Clock {
        &*self.binder.clock
    }
}

/// Where we are, as the kernel says.
fn node(named: Option<NodeId>) -> Result<predicate::Node, TaskError> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let host = uname().map_err(|e| TaskError::host("asking the kernel its name", e))?;
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    let id = match named {
        Some(id) => id,
        None => text(host.nodename()).parse().map_err(|e| {
            TaskError::Invalid(format!("the host's name cannot be the node's: {e}; set identity.node in runtime.toml"))
        })?,
    };
    let boot_id = fs::read_to_string(BOOT_ID).map_err(|e| TaskError::host(BOOT_ID, e))?;
    let boot_id: BootId = boot_id.trim().parse().map_err(|e| TaskError::host(BOOT_ID, e))?;
    Ok(predicate::Node { id, boot_id, kernel: format!("{} {}", text(host.release()), text(host.version())) })
}
