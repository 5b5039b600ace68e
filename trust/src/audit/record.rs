//! The audit record: one event with its id, time and place, as one line of JSON.
//!
//! The bytes that are hashed are the bytes that are stored, so there is exactly one way to write a record: fields in the
//! order below, no white space, absent options left out. [`AuditRecord::parse`] takes no other. Nothing in a record is
//! secret: secrets have names only, a process has its program's name and neither arguments nor environment.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::record_id::{Producer, RecordId};

/// The longest record, in bytes: room for every text of the largest event, each byte escaped.
pub const MAX_RECORD: usize = 64 * 1024;

/// One thing that happened.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRecord {
    v: Version,
    /// Names this record and no other, on any node.
    pub id: RecordId,
    /// The producer's clock, in milliseconds since 1970.
    pub time: u64,
    /// The node on which it happened.
    pub node: Text,
    /// Whom it concerns.
    pub about: About,
    /// What happened.
    pub event: Event,
}

/// Whom an event concerns.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// containerd's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Text>,
    /// The sandbox's id; none for what happens to a node, such as a key's rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Text>,
    /// The agent's SPIFFE ID; none for an anonymous workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Text>,
    /// The isolation backend: `gvisor`, `kata`, `runc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Text>,
}

/// What happened. Digests are `sha256:<hex>`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields say what they are; a table in docs/audit.md says it at length")]
pub enum Event {
    /// A sandbox was made; nothing of the workload has run.
    SandboxCreated {
        image: Option<Text>,
        image_digest: Option<Text>,
        config_digest: Option<Text>,
        policy_digest: Option<Text>,
    },
    /// The workload's first instruction may run from here on.
    SandboxStarted { pid: Option<u32> },
    /// The workload ended.
    SandboxExited { status: u32, oom_killed: bool },
    /// Nothing is left of the sandbox.
    SandboxDeleted {},
    /// A create failed at a step and was undone.
    SandboxCreateFailed { step: Text, error: Text },
    /// A statement about the sandbox was signed; `previous` links the one it replaces.
    AttestationIssued { statement: Text, previous: Option<Text>, key: Text },
    /// Whoever asked is not the agent it claims to be, or that agent may not run here.
    IdentityRejected { claimed: Option<Text>, reason: Text },
    /// The sandbox's token was due and not renewed: its agent was shut out since, or nobody can say.
    TokenRenewalRefused { reason: Text },
    /// A further process was started in the sandbox; the program's name alone, never its arguments.
    ExecStarted { exec: Text, program: Text, terminal: bool },
    /// The sandbox's state was saved.
    CheckpointCreated { checkpoint: Text, manifest_digest: Option<Text>, exited: bool },
    /// The sandbox was made from a saved state.
    SandboxRestored { checkpoint: Text, manifest_digest: Option<Text> },
    /// A sandbox that waited in a pool works from here on for the agent that `about` names, under this policy.
    SandboxClaimed { pool: Text, claim: Text, policy_digest: Option<Text> },
    /// A claim failed at a step; `spoilt` where the sandbox had been changed by then, and nobody gets it any more.
    SandboxClaimFailed { pool: Text, claim: Text, step: Text, error: Text, spoilt: bool },
    /// Secrets were put into the sandbox; their names, never their values.
    SecretsDelivered { names: Vec<Text> },
    /// A signing key of the node was replaced.
    KeyRotated { purpose: Text, key: Text, previous: Option<Text> },
    /// The overlap of an earlier signing key of the node was ended.
    KeyDeprecated { purpose: Text, key: Text },
    /// An agent may have sandboxes from here on; which one, `about` says.
    AgentAdded { keys: Vec<Text> },
    /// An agent gets no new sandbox from here on; which one, `about` says.
    AgentRevoked {},
    /// Somebody on the node was connected with a TCP port inside the sandbox (port-forward), or why not.
    PortForwarded { port: u16, error: Option<Text> },
    /// Connections were let through.
    EgressAllowed { connection: Connection },
    /// Connections were refused.
    EgressDenied { connection: Connection, reason: Text },
    /// A connection was held until the decision point has decided; what it then came to has an event of its own.
    AuthzRequired { connection: Connection },
    /// From here on another policy holds; the generation counts a sandbox's policies.
    PolicyChanged { generation: u64, policy_digest: Text, previous: Option<Text> },
    /// The rules in the kernel were not those that were put there; they were put there again, or why not.
    FenceTampered { expected: Text, found: Option<Text>, error: Option<Text> },
    /// The spool's own: from here on this producer's events are lost, until its next `GapClosed`.
    GapOpened { reason: Text },
    /// The spool's own: the `lost` events from sequence number `first` on were dropped, and why the first one was.
    GapClosed { first: u64, lost: u64, reason: Text },
    /// The ledger's own, in the place of a record that could not be read; its bytes were set aside.
    RecordRejected { digest: Option<Text>, reason: Text },
}

/// Connections of one sandbox that are alike.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// A name or an address.
    pub destination: Text,
    /// 0 where only the name was asked for.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
    /// The policy's rule that decided.
    pub rule: Option<Text>,
    /// Of the policy.
    pub generation: u64,
    /// How many.
    pub count: u64,
    /// The statement about the sandbox that was current.
    pub attestation: Option<Text>,
}

/// The transport of a connection.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Why some bytes are no audit record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Longer than [`MAX_RECORD`].
    #[error("{0} bytes are more than a record can have ({MAX_RECORD})")]
    TooLong(usize),
    /// Not JSON, or not of a record's shape.
    #[error("not a record: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A record, but not written the one way records are written.
    #[error("not in canonical form")]
    NotCanonical,
}

impl AuditRecord {
    /// Version 1 of a record.
    pub fn new(id: RecordId, time: u64, node: Text, about: About, event: Event) -> Self {
        Self { v: Version, id, time, node, about, event }
    }

    /// The one form of this record: a line of JSON without its newline.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BadRecord> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MAX_RECORD { Err(BadRecord::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads a record; whatever is accepted is exactly what [`Self::to_bytes`] gives back.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadRecord> {
        if bytes.len() > MAX_RECORD {
            return Err(BadRecord::TooLong(bytes.len()));
        }
        let record: Self = serde_json::from_slice(bytes)?;
        if record.to_bytes()? == bytes { Ok(record) } else { Err(BadRecord::NotCanonical) }
    }
}

impl Event {
    /// The names of all events, as `audit search --event` takes them.
    pub const NAMES: [&str; 27] = [
        "SandboxCreated",
        "SandboxStarted",
        "SandboxExited",
        "SandboxDeleted",
        "SandboxCreateFailed",
        "AttestationIssued",
        "IdentityRejected",
        "TokenRenewalRefused",
        "ExecStarted",
        "CheckpointCreated",
        "SandboxRestored",
        "SandboxClaimed",
        "SandboxClaimFailed",
        "SecretsDelivered",
        "KeyRotated",
        "KeyDeprecated",
        "AgentAdded",
        "AgentRevoked",
        "PortForwarded",
        "EgressAllowed",
        "EgressDenied",
        "AuthzRequired",
        "PolicyChanged",
        "FenceTampered",
        "GapOpened",
        "GapClosed",
        "RecordRejected",
    ];

    /// A name that stands for several in a search: all that a sandbox wanted to connect to, whatever it came to.
    pub const EGRESS_ATTEMPT: (&str, [&str; 3]) = ("EgressAttempt", ["EgressAllowed", "EgressDenied", "AuthzRequired"]);

    /// The event's name, the same as its `type` in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SandboxCreated { .. } => "SandboxCreated",
            Self::SandboxStarted { .. } => "SandboxStarted",
            Self::SandboxExited { .. } => "SandboxExited",
            Self::SandboxDeleted {} => "SandboxDeleted",
            Self::SandboxCreateFailed { .. } => "SandboxCreateFailed",
            Self::AttestationIssued { .. } => "AttestationIssued",
            Self::IdentityRejected { .. } => "IdentityRejected",
            Self::TokenRenewalRefused { .. } => "TokenRenewalRefused",
            Self::ExecStarted { .. } => "ExecStarted",
            Self::CheckpointCreated { .. } => "CheckpointCreated",
            Self::SandboxRestored { .. } => "SandboxRestored",
            Self::SandboxClaimed { .. } => "SandboxClaimed",
            Self::SandboxClaimFailed { .. } => "SandboxClaimFailed",
            Self::SecretsDelivered { .. } => "SecretsDelivered",
            Self::KeyRotated { .. } => "KeyRotated",
            Self::KeyDeprecated { .. } => "KeyDeprecated",
            Self::AgentAdded { .. } => "AgentAdded",
            Self::AgentRevoked {} => "AgentRevoked",
            Self::PortForwarded { .. } => "PortForwarded",
            Self::EgressAllowed { .. } => "EgressAllowed",
            Self::EgressDenied { .. } => "EgressDenied",
            Self::AuthzRequired { .. } => "AuthzRequired",
            Self::PolicyChanged { .. } => "PolicyChanged",
            Self::FenceTampered { .. } => "FenceTampered",
            Self::GapOpened { .. } => "GapOpened",
            Self::GapClosed { .. } => "GapClosed",
            Self::RecordRejected { .. } => "RecordRejected",
        }
    }

    /// Where a connection was to go: a name or an address.
    pub fn destination(&self) -> Option<&str> {
        match self {
            Self::EgressAllowed { connection }
            | Self::EgressDenied { connection, .. }
            | Self::AuthzRequired { connection } => Some(connection.destination.as_str()),
            _ => None,
        }
    }
}

/// Text that someone else chose: at most [`Text::MAX`] bytes; what is longer is cut and ends in `…`, so that nobody gets
/// an event out of the record by making it too long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(String);

impl Text {
    /// The most bytes a text has.
    pub const MAX: usize = 1024;
    const CUT: &str = "…";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        if text.len() <= Self::MAX {
            return Self(text.to_owned());
        }
        let mut end = Self::MAX - Self::CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(format!("{}{}", &text[..end], Self::CUT))
    }
}

impl TryFrom<String> for Text {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= Self::MAX { Ok(Self(text)) } else { Err(format!("a text has at most {} bytes", Self::MAX)) }
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The version of a record's form: 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub(crate) struct Version;

impl From<Version> for u64 {
    fn from(_: Version) -> Self {
        1
    }
}

impl TryFrom<u64> for Version {
    type Error = String;
    fn try_from(version: u64) -> Result<Self, String> {
        if version == 1 { Ok(Self) } else { Err(format!("version {version} is not known, only 1 is")) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn connection(to: &str, protocol: Protocol) -> Connection {
        let (destination, rule, attestation) = (to.into(), Some("1".into()), Some("sha256:11".into()));
        Connection { destination, port: 443, protocol, rule, generation: 1, count: 3, attestation }
    }

    /// One of each event, in the order of [`Event::NAMES`].
    pub(crate) fn one_of_each() -> Vec<Event> {
        let text = |text: &str| Text::from(text);
        let some = |text: &str| Some(Text::from(text));
        vec![
            Event::SandboxCreated {
                image: some("docker.io/library/busybox:1"),
                image_digest: some("sha256:aa"),
                config_digest: some("sha256:bb"),
                policy_digest: None,
            },
            Event::SandboxStarted { pid: Some(7) },
            Event::SandboxExited { status: 137, oom_killed: true },
            Event::SandboxDeleted {},
            Event::SandboxCreateFailed { step: text("fence"), error: text("creto-egress is not running") },
            Event::AttestationIssued { statement: text("sha256:cc"), previous: None, key: text("k1") },
            Event::IdentityRejected { claimed: some("spiffe://a/b"), reason: text("token expired") },
            Event::TokenRenewalRefused { reason: text("agent spiffe://a/b is revoked") },
            Event::ExecStarted { exec: text("e1"), program: text("/bin/sh"), terminal: true },
            Event::CheckpointCreated { checkpoint: text("c1"), manifest_digest: some("sha256:dd"), exited: false },
            Event::SandboxRestored { checkpoint: text("c1"), manifest_digest: None },
            Event::SandboxClaimed { pool: text("agents"), claim: text("c-1"), policy_digest: some("sha256:aa") },
            Event::SandboxClaimFailed {
                pool: text("agents"),
                claim: text("c-2"),
                step: text("fence"),
                error: text("creto-egress gave no answer"),
                spoilt: true,
            },
            Event::SecretsDelivered { names: vec![text("db"), text("api")] },
            Event::KeyRotated { purpose: text("attestation"), key: text("k2"), previous: some("k1") },
            Event::KeyDeprecated { purpose: text("attestation"), key: text("k1") },
            Event::AgentAdded { keys: vec![text("2026-11")] },
            Event::AgentRevoked {},
            Event::PortForwarded { port: 8080, error: some("connection was refused") },
            Event::EgressAllowed { connection: connection("api.example.com", Protocol::Tcp) },
            Event::EgressDenied {
                connection: connection("api.example.com", Protocol::Tcp),
                reason: text("no rule allows it"),
            },
            Event::AuthzRequired { connection: connection("api.example.com", Protocol::Tcp) },
            Event::PolicyChanged { generation: 2, policy_digest: text("sha256:ff"), previous: some("sha256:aa") },
            Event::FenceTampered { expected: text("sha256:aa"), found: None, error: None },
            Event::GapOpened { reason: text("the spool is full") },
            Event::GapClosed { first: 9, lost: 3, reason: text("the spool is full") },
            Event::RecordRejected { digest: some("sha256:ee"), reason: text("not a record") },
        ]
    }

    pub(crate) fn record(sequence: u64, event: Event) -> AuditRecord {
        let id = RecordId { producer: Producer::parse("shim-1-00ff").unwrap(), sequence };
        let about = About {
            namespace: Some("default".into()),
            sandbox: Some("s1".into()),
            agent: Some("spiffe://example.org/agent/a".into()),
            backend: Some("gvisor".into()),
        };
        AuditRecord::new(id, 1_790_000_000_000, "node-1".into(), about, event)
    }

    #[test]
    fn every_event_has_its_name_and_comes_back_from_its_bytes() {
        let all = one_of_each();
        assert_eq!(all.iter().map(Event::name).collect::<Vec<_>>(), Event::NAMES);
        for event in all {
            let record = record(3, event);
            let bytes = record.to_bytes().unwrap();
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["event"]["type"], record.event.name());
            assert_eq!(json["v"], 1);
            assert_eq!(AuditRecord::parse(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn there_is_one_way_to_write_a_record() {
        let text = String::from_utf8(record(0, Event::SandboxDeleted {}).to_bytes().unwrap()).unwrap();
        for (from, to) in [
            ("{\"v\":1", "{ \"v\":1"),
            ("{\"v\":1", "{\"v\":2"),
            ("{\"v\":1", "{\"v\":1,\"v\":1"),
            ("{\"v\":1", "{\"extra\":0,\"v\":1"),
            ("\"SandboxDeleted\"", "\"SandboxDeleted\",\"extra\":0"),
            ("\"SandboxDeleted\"", "\"SandboxDeletet\""),
            ("00ff/0", "00ff/00"),
            ("00ff/0", "00ff/+0"),
            ("shim-1", "../-1"),
            ("s1", "s\\u0031"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(AuditRecord::parse(changed.as_bytes()).is_err(), "{changed}");
        }
        assert!(AuditRecord::parse(format!("{text}\n").as_bytes()).is_err());
    }

    #[test]
    fn a_long_text_is_cut_but_not_refused() {
        for (input, expected) in [("é".repeat(600), 1022), ("a".repeat(5000), 1024), ("a".repeat(1024), 1024)] {
            let text = Text::from(input.as_str());
            assert!(
                text.as_str().len() <= expected.max(1023) && text.as_str().len() + 4 > expected,
                "{}",
                text.as_str().len()
            );
            assert_eq!(text.as_str().ends_with('…'), input.len() > Text::MAX);
        }
        let longest = "\u{1}".repeat(5000);
        let event = Event::SandboxCreateFailed { step: longest.as_str().into(), error: longest.as_str().into() };
        assert!(record(0, event).to_bytes().is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_come_back_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(record) = AuditRecord::parse(&bytes) {
                prop_assert_eq!(record.to_bytes().unwrap(), bytes);
            }
        }

        #[test]
        fn a_changed_byte_makes_another_record_or_none(which in 0usize..17, at in any::<prop::sample::Index>(), flip in 1u8..) {
            let record = record(5, one_of_each().swap_remove(which));
            let mut bytes = record.to_bytes().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(other) = AuditRecord::parse(&bytes) {
                prop_assert_ne!(&other, &record);
                prop_assert_eq!(other.to_bytes().unwrap(), bytes);
            }
        }

        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            let event = Event::IdentityRejected { claimed: Some(text.as_str().into()), reason: text.as_str().into() };
            let record = record(0, event);
            prop_assert_eq!(AuditRecord::parse(&record.to_bytes().unwrap()).unwrap(), record);
        }
    }
}
