//! What is said over egress.sock: one JSON object a line, a request and then its answer, any number of them on a connection.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trust::digest::Digest;

/// What this version of the protocol is called in every request.
pub const VERSION: u32 = 1;
/// The longest line, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Which sandbox: as containerd names it, in its namespace. Text: `namespace/id`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxKey {
    /// containerd's namespace.
    pub namespace: String,
    /// The id of the pod's first container.
    pub id: String,
}

impl std::fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// Which policy a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyRef {
    /// A file of policies.d, by its name; it follows the file's changes.
    Named(String),
    /// The policy itself, as JSON.
    Inline(serde_json::Value),
}

/// Asks for a fence around a sandbox, before its first instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// For whom it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Its network namespace, as a path.
    pub netns: PathBuf,
    /// What it may connect to.
    pub policy: PolicyRef,
    /// The current statement about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Digest>,
}

/// A fence, as it stands in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fence {
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// By what the kernel tells its packets from others'.
    pub mark: u32,
    /// What it stands around.
    pub interfaces: Vec<Interface>,
    /// SHA-256 of the sandbox's rules as they were read back from the kernel.
    pub ruleset: Digest,
    /// SHA-256 of the policy that is enforced, in its canonical form.
    pub policy: Digest,
    /// Counts the policies that the sandbox has had, from 1.
    pub generation: u64,
}

/// One network interface of a sandbox, and its end on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Its name in the sandbox.
    pub name: String,
    /// The name of its other end, on the host.
    pub host_name: String,
    /// The index of that.
    pub host_index: u32,
    /// The sandbox's MAC address.
    pub mac: [u8; 6],
    /// The MAC address of what routes for it: the bridge's, or the host end's.
    pub gateway_mac: [u8; 6],
    /// The sandbox's addresses.
    pub addresses: Vec<IpAddr>,
}
