//! A sandbox as the node agent keeps it: one record, from the wish to its end. Its JSON is the API's and `get ID --json`'s. Pure.
//! Not here: how a phase follows another (`pool::member`), and where records are kept (`store`).

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trust::clock::Timestamp;
use trust::digest::Digest;
use trust::id::{AgentId, ClaimId, NodeId, PoolName, SandboxId, SandboxName};

use crate::spec::{BadSpec, SandboxSpec, text};

/// One sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sandbox {
    /// Its id at containerd, too.
    pub id: SandboxId,
    /// Where it is.
    pub node: NodeId,
    /// As people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SandboxName>,
    /// Whose member it was made as; none of a cold spawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Membership>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why it failed, or why it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What it is asked to be. Of a claimed member: with what the claim asked for.
    pub spec: SandboxSpec,
    /// For whom it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Who took it, of a member; who waits for it, of a cold spawn in a member's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// What holds its packets. Nothing has been Ready without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// The current statement about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Digest>,
    /// When it was wished for.
    pub created_at: Timestamp,
    /// When its phase changed last.
    pub changed_at: Timestamp,
    /// When it could be claimed, of a member; when it ran, of a cold spawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When somebody has used it last, of one with an idle timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Counts the changes of this record, from 1; the store's, 0 before it is there.
    #[serde(default)]
    pub revision: u64,
}

impl Sandbox {
    /// One that is to be made: Warming, and nothing of it is there yet.
    pub fn wished(id: SandboxId, node: NodeId, pool: Option<Membership>, spec: SandboxSpec, now: Timestamp) -> Self {
        Self {
            id,
            node,
            name: None,
            pool,
            phase: Phase::Warming,
            reason: None,
            spec,
            agent: None,
            claim: None,
            fence: None,
            attestation: None,
            created_at: now,
            changed_at: now,
            ready_at: None,
            expires_at: None,
            activity: None,
            revision: 0,
        }
    }

    /// The phase for people: a cold spawn warms for nobody but its caller, so it is `Creating`.
    pub fn status(&self) -> &'static str {
        match (self.phase, &self.pool) {
            (Phase::Warming, None) => "Creating",
            (phase, _) => phase.name(),
        }
    }

    /// Whether it is a member of this pool.
    pub fn is_member_of(&self, pool: &PoolName) -> bool {
        self.pool.as_ref().is_some_and(|member| member.pool == *pool)
    }
}

/// That a sandbox was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Activity {
    /// When it was seen.
    pub at: Timestamp,
    /// Processor time that it had used by then, in nanoseconds.
    pub cpu_nanos: u64,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It is being made.
    Warming,
    /// A member that waits, fenced, for a claim.
    Ready,
    /// A claim has it, and is binding it.
    Claimed,
    /// It works.
    Running,
    /// It is being taken down.
    Terminating,
    /// It could not be made, or ended against all wishes; its reason is kept, and what is left of it is being taken down.
    Failed,
}

impl Phase {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 6] =
        [Self::Warming, Self::Ready, Self::Claimed, Self::Running, Self::Terminating, Self::Failed];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warming => "Warming",
            Self::Ready => "Ready",
            Self::Claimed => "Claimed",
            Self::Running => "Running",
            Self::Terminating => "Terminating",
            Self::Failed => "Failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = BadSpec;

    /// Whatever the case: people type it.
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let found = Self::ALL.into_iter().find(|phase| phase.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| BadSpec(format!("status {text:?}: give one of {}", Self::ALL.map(Self::name).join(", "))))
    }
}

/// Whose member a sandbox was made as, and by which template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Membership {
    /// The pool.
    pub pool: PoolName,
    /// The template's.
    pub generation: Generation,
}

/// Which template a member was made by: a digest of it, so equal templates have equal generations on every node and after
/// every restart. Text: 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Generation(String);

impl Generation {
    /// So many.
    pub const DIGITS: usize = 16;

    /// Of a template's canonical bytes.
    pub fn of(template: &[u8]) -> Self {
        Self(Digest::of(template).hex()[..Self::DIGITS].to_owned())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Generation {
    type Error = BadSpec;

    fn try_from(text: String) -> Result<Self, BadSpec> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() == Self::DIGITS && text.bytes().all(digit) {
            true => Ok(Self(text)),
            false => Err(BadSpec(format!("{text:?} is no generation: 16 digits of 0-9 a-f"))),
        }
    }
}

impl FromStr for Generation {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who took a member, or got a cold spawn because the pool was empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// This claim.
    pub id: ClaimId,
    /// From which pool.
    pub pool: PoolName,
    /// By which its caller may ask again and get the same sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<IdempotencyKey>,
    /// For whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// When.
    pub at: Timestamp,
}

text! {
    /// By which a caller may ask again for what it asked before: 1 to 128 visible ASCII characters.
    IdempotencyKey, |text| match (1..=IdempotencyKey::LONGEST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("an idempotency key is 1 to 128 visible ASCII characters"),
    }
}

impl IdempotencyKey {
    /// The longest, in bytes.
    pub const LONGEST: usize = 128;
}

/// What holds a sandbox's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Fence {
    /// There is no interface but `lo`.
    Sealed,
    /// The kernel's rules; SHA-256 of what was read back from it.
    Ruleset(Digest),
}

/// Why a sandbox failed, or why it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reason {
    /// In which phase it was.
    pub phase: Phase,
    /// For programs, such as `image-not-found`.
    pub code: String,
    /// For people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_reads_what_it_prints_and_prints_what_the_runbook_asks_for() {
        let now = Timestamp::from_unix(1_800_000_000);
        let mut spec = SandboxSpec::of("python:3.11".parse().unwrap());
        spec.network_policy = Some("research".parse().unwrap());
        spec.resource_limits.memory_bytes = Some("512Mi".parse().unwrap());
        let pool = Membership { pool: "demo".parse().unwrap(), generation: Generation::of(b"template") };
        let mut member = Sandbox::wished("box-1".parse().unwrap(), "node-7".parse().unwrap(), Some(pool), spec, now);
        member.fence = Some(Fence::Ruleset(Digest::of(b"rules")));
        member.claim = Some(Claim {
            id: "claim-1".parse().unwrap(),
            pool: "demo".parse().unwrap(),
            idempotency_key: Some("order-7/retry".parse().unwrap()),
            agent: Some("spiffe://example.org/agents/a".parse().unwrap()),
            at: now,
        });
        let json = serde_json::to_value(&member).unwrap();
        assert_eq!(json["spec"]["networkPolicy"], json!("research"));
        assert_eq!(json["spec"]["resourceLimits"], json!({ "memoryBytes": 536_870_912 }));
        assert_eq!(json["spec"]["image"], json!("python:3.11"));
        assert_eq!((&json["phase"], &json["createdAt"]), (&json!("Warming"), &json!("2027-01-15T08:00:00Z")));
        assert_eq!(serde_json::from_value::<Sandbox>(json).unwrap(), member);
    }

    #[test]
    fn people_type_a_status_in_any_case() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().to_lowercase().parse(), Ok(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), json!(phase.name()));
        }
        assert!("Sleeping".parse::<Phase>().unwrap_err().to_string().contains("Warming, Ready"));
    }

    #[test]
    fn a_cold_spawn_is_being_created_and_a_member_warms() {
        let (id, node) = ("a".parse().unwrap(), "n".parse().unwrap());
        let spec = SandboxSpec::of("a".parse().unwrap());
        let mut sandbox = Sandbox::wished(id, node, None, spec, Timestamp::from_unix(0));
        assert_eq!(sandbox.status(), "Creating");
        sandbox.pool = Some(Membership { pool: "p".parse().unwrap(), generation: Generation::of(b"") });
        assert_eq!(sandbox.status(), "Warming");
    }
}
