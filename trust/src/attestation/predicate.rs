//! What is said about a sandbox: the predicate `sandbox/v1`. Each field's line says how the runtime comes to know it; what
//! cannot be observed is not in it, and what could not be is said to be unknown. Pure.
//!
//! Optional members are left out, never `null`. docs/attestation-predicate.schema.json is the same as JSON Schema; a test holds
//! the two together.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::id::{AgentId, BackendName, BootId, ClaimId, Namespace, NodeId, PoolGeneration, PoolName, SandboxId};
use crate::identity::{Identity, Proof};

/// The predicate's name.
pub const TYPE: &str = "https://creto.dev/attestation/sandbox/v1";

/// The predicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Predicate {
    /// From Create's own arguments, which name the socket on which this sandbox answers.
    pub sandbox: Sandbox,
    /// From the identity that was bound before the sandbox was made.
    pub agent: Agent,
    /// From the program that was started, and the sandbox's own state.
    pub backend: Backend,
    /// From the kernel of the host.
    pub node: Node,
    /// From the rules as the kernel lists them after they were installed; absent where no fence is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// From the config.json that the backend ran, and limits as the cgroup has them.
    pub hardening: Hardening,
    /// From containerd's records of the container that the sandbox was made for, and of its image; `source` says more.
    pub image: Image,
    /// From the request that brought the sandbox about: Create, a claim, a restore.
    pub launch: Launch,
    /// From the statement that this one replaces: SHA-256 of its bytes; absent in a sandbox's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// From the node's clock.
    pub issued_at: Timestamp,
    /// `issuedAt` and the validity that the operator has set; a running sandbox is re-attested before.
    pub valid_until: Timestamp,
    /// Always `software`: the word of the runtime on this node, backed by no hardware.
    pub assurance: Assurance,
}

/// Which sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// The container id of the pod's first container, from the task's Create.
    pub id: SandboxId,
    /// The namespace containerd gave the shim (`-namespace`).
    pub namespace: Namespace,
}

/// For whom it works; `proof` says how that is known.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "AttestedAgent"))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "lowercase", deny_unknown_fields)]
pub enum Agent {
    /// The agent's own token was verified, under one of its keys, and never seen before.
    Token {
        /// The token's `sub`, equal to the annotation `creto.dev/agent`.
        id: AgentId,
    },
    /// Whoever may talk to containerd named it.
    Operator {
        /// The annotation `creto.dev/agent`.
        id: AgentId,
    },
    /// Nobody was named.
    None {},
}

/// What made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Which of our backends was called.
    pub name: BackendName,
    /// SHA-256 of the file that was executed, read through `/proc/PID/exe` or kept by inode, size and times.
    pub binary: Digest,
    /// From the sandbox's own state, not from the flag that asked for it, such as `systrap`.
    pub platform: String,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The operator's name for the node, from runtime.toml or the host name.
    pub id: NodeId,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: BootId,
    /// uname(2): release and version.
    pub kernel: String,
}

/// What holds its packets to its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// What enforces: `nftables`, or `sealed` where there is no interface but lo.
    pub mechanism: String,
    /// SHA-256 of the ruleset as read back from the kernel, or of the list of interfaces where it is sealed.
    pub digest: Digest,
}

/// How little the workload may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hardening {
    /// `process.capabilities.bounding` of the config.json that was run: all it could ever get.
    pub capabilities: Vec<String>,
    /// `process.noNewPrivileges` of the same.
    pub no_new_privileges: bool,
    /// Whether `linux.namespaces` of the same lists no network: it has the host's own.
    pub host_network: bool,
    /// Whether the backend was given `linux.seccomp` to enforce.
    pub seccomp: bool,
    /// How many `linux.maskedPaths` the same has.
    pub masked_paths: u32,
    /// How many `linux.readonlyPaths` the same has.
    pub readonly_paths: u32,
    /// From `mounts` and `root` of the same.
    pub mounts: Mounts,
    /// From the sandbox's cgroup on the host.
    pub limits: Limits,
}

/// What of the host can be seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mounts {
    /// `root.readonly`.
    pub readonly_root: bool,
    /// How many mounts there are.
    pub total: u32,
    /// How many bind a path of the host.
    pub host: u32,
    /// How many of those may be written to.
    pub host_writable: u32,
}

/// Bounds on the whole sandbox; absent where the cgroup has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// memory.max or memory.limit_in_bytes, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// cpu.max or cpu.cfs_quota_us over cpu.cfs_period_us, in thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// pids.max.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// Which image the sandbox was made from; `source` says how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub enum Image {
    /// containerd was asked while the sandbox was made: where the name leads that its record of the container has.
    Containerd {
        /// The image's name in containerd.
        name: String,
        /// The target of that name, of which the media type says what it is: a manifest, or an index of manifests.
        digest: Digest,
        /// The target's media type, such as `application/vnd.oci.image.manifest.v1+json`.
        #[serde(rename = "mediaType")]
        media_type: String,
    },
    /// containerd did not say; an annotation of the container does, which is the word of whoever made it.
    Annotation {
        /// `io.kubernetes.cri.image-name`.
        name: String,
        /// The digest in that name.
        digest: Digest,
    },
    /// Neither.
    Unknown {},
}

impl Image {
    /// Its name, where it is known.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Containerd { name, .. } | Self::Annotation { name, .. } => Some(name),
            Self::Unknown {} => None,
        }
    }

    /// Its digest, where it is known.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Containerd { digest, .. } | Self::Annotation { digest, .. } => Some(*digest),
            Self::Unknown {} => None,
        }
    }
}

/// How the sandbox came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Launch {
    /// Made for this task.
    Cold {},
    /// It waited in a pool, working for nobody, and was handed over; `previous` leads to what was true of it before.
    Claimed {
        /// The pool that it waited in, by the word of whoever asked the shim to hand it over.
        pool: PoolName,
        /// The pool's template that it was made from, by the same word; absent where none was named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<PoolGeneration>,
        /// The claim's name. A sandbox is handed over once: no other claim has it.
        claim: ClaimId,
    },
    /// It goes on from a checkpoint.
    Restored {
        /// SHA-256 of the checkpoint's manifest, whose files were compared with it before.
        #[serde(rename = "restoredFrom")]
        restored_from: Digest,
    },
}

/// What stands behind the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// The runtime's word, under a key that the node's root can read.
    Software,
}

impl From<&Identity> for Agent {
    fn from(identity: &Identity) -> Self {
        match (identity.agent(), identity.proof()) {
            (Some(id), Proof::Token) => Self::Token { id: id.clone() },
            (Some(id), _) => Self::Operator { id: id.clone() },
            (None, _) => Self::None {},
        }
    }
}
