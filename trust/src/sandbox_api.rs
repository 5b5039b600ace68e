//! `creto.sandbox.v1.Sandbox`: what the shim of a sandbox is asked beside containerd's Task API, and answers. Messages alone, by
//! hand rather than from a compiler; docs/sandbox.proto says what each member means, and a test holds the two together.
//! Not here: the server (shim/src/rebind.rs), the client (pool-agent/src/shim.rs).

pub use prost::Message;

/// The service's name on the wire.
pub const SERVICE: &str = "creto.sandbox.v1.Sandbox";
/// Takes [`DescribeRequest`], answers [`Description`].
pub const DESCRIBE: &str = "Describe";
/// Takes [`RebindRequest`], answers [`Bound`].
pub const REBIND: &str = "Rebind";
/// Takes [`UpdatePolicyRequest`], answers [`Bound`].
pub const UPDATE_POLICY: &str = "UpdatePolicy";

/// Asks what the sandbox is now.
#[derive(Clone, PartialEq, Message)]
pub struct DescribeRequest {
    /// The sandbox's id.
    #[prost(string, tag = "1")]
    pub sandbox: String,
}

/// Hands a sandbox that waits over to an agent.
#[derive(Clone, PartialEq, Message)]
pub struct RebindRequest {
    /// The sandbox's id.
    #[prost(string, tag = "1")]
    pub sandbox: String,
    /// Names the claim.
    #[prost(string, tag = "2")]
    pub claim_id: String,
    /// For whom it works from here on; empty for nobody.
    #[prost(string, tag = "3")]
    pub agent: String,
    /// How the caller knows that.
    #[prost(enumeration = "Proven", tag = "4")]
    pub proven: i32,
    /// What it may connect to; without it the agent's own policy.
    #[prost(message, optional, tag = "5")]
    pub policy: Option<Policy>,
    /// `file:NAME` or `command:NAME` each.
    #[prost(string, repeated, tag = "6")]
    pub secrets: Vec<String>,
    /// The pool that it waited in.
    #[prost(string, tag = "7")]
    pub pool: String,
    /// The pool's template that it was made from; may be empty.
    #[prost(string, tag = "8")]
    pub pool_generation: String,
}

/// How a caller knows for whom a sandbox is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Proven {
    /// Refused where an agent is named.
    Unspecified = 0,
    /// The caller has verified the agent's token.
    Token = 1,
    /// By the word of the node's operator.
    Operator = 2,
}

/// What a sandbox may connect to.
#[derive(Clone, PartialEq, Message)]
pub struct Policy {
    /// Which policy.
    #[prost(oneof = "policy::Policy", tags = "1, 2")]
    pub policy: Option<policy::Policy>,
}

/// The ways to say which policy.
pub mod policy {
    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Policy {
        /// A policy of the node's, by its name.
        #[prost(string, tag = "1")]
        Named(String),
        /// The policy itself, as JSON.
        #[prost(string, tag = "2")]
        Inline(String),
    }
}

impl Policy {
    /// A policy of the node's, by its name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { policy: Some(policy::Policy::Named(name.into())) }
    }

    /// The policy itself, as JSON.
    pub fn inline(json: impl Into<String>) -> Self {
        Self { policy: Some(policy::Policy::Inline(json.into())) }
    }
}

/// Another network policy for a running sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct UpdatePolicyRequest {
    /// The sandbox's id.
    #[prost(string, tag = "1")]
    pub sandbox: String,
    /// What it may connect to from here on.
    #[prost(message, optional, tag = "2")]
    pub policy: Option<Policy>,
}

/// What a sandbox is bound to.
#[derive(Clone, PartialEq, Message)]
pub struct Bound {
    /// The current statement in its envelope, JSON.
    #[prost(string, tag = "1")]
    pub statement: String,
    /// `sha256:…` of the statement.
    #[prost(string, tag = "2")]
    pub statement_digest: String,
    /// The SPIFFE ID of what runs in the sandbox.
    #[prost(string, tag = "3")]
    pub workload: String,
    /// `sha256:…` of the network policy that holds.
    #[prost(string, tag = "4")]
    pub policy_digest: String,
    /// Counts the policies that the fence has held, from 1; 0 without a fence.
    #[prost(uint64, tag = "5")]
    pub generation: u64,
    /// `sha256:…` of the fence's rules as the kernel lists them; empty without a fence.
    #[prost(string, tag = "6")]
    pub ruleset: String,
    /// Where a claim is answered.
    #[prost(message, optional, tag = "7")]
    pub took: Option<Took>,
}

/// How long the steps of a claim took, in microseconds, when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Took {
    /// Asking who the agent is.
    #[prost(uint64, tag = "1")]
    pub identity: u64,
    /// Reading the policy.
    #[prost(uint64, tag = "2")]
    pub policy: u64,
    /// Asking for the secrets.
    #[prost(uint64, tag = "3")]
    pub secrets: u64,
    /// A new key and token, and the look at the sandbox's network.
    #[prost(uint64, tag = "4")]
    pub token: u64,
    /// Having creto-egress change the fence, and hearing what the kernel has then.
    #[prost(uint64, tag = "5")]
    pub fence: u64,
    /// Replacing what is in /run/creto.
    #[prost(uint64, tag = "6")]
    pub delivery: u64,
    /// Observing, signing and keeping the statement.
    #[prost(uint64, tag = "7")]
    pub attestation: u64,
    /// Writing the record; that the disk has it is not waited for.
    #[prost(uint64, tag = "8")]
    pub record: u64,
}

/// What a sandbox is now.
#[derive(Clone, PartialEq, Message)]
pub struct Description {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// containerd's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Of the container it was made for.
    #[prost(enumeration = "Phase", tag = "3")]
    pub phase: i32,
    /// What isolates it.
    #[prost(string, tag = "4")]
    pub backend: String,
    /// For whom it works; empty for nobody.
    #[prost(string, tag = "5")]
    pub agent: String,
    /// Whether it was made to be claimed, and what became of that.
    #[prost(enumeration = "Claim", tag = "6")]
    pub claim: i32,
    /// The claim that has it, or that spoilt it; else empty.
    #[prost(string, tag = "7")]
    pub claim_id: String,
    /// Why it is spoilt; else empty.
    #[prost(string, tag = "8")]
    pub spoilt: String,
    /// Of its first process, on the host.
    #[prost(uint32, tag = "9")]
    pub pid: u32,
    /// What it is bound to; absent before its first statement.
    #[prost(message, optional, tag = "10")]
    pub bound: Option<Bound>,
}

/// Where the container that a sandbox was made for is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// There is none.
    Unspecified = 0,
    /// Made, and not started.
    Created = 1,
    /// It runs.
    Running = 2,
    /// It is frozen.
    Paused = 3,
    /// It has ended.
    Stopped = 4,
}

/// Whether a sandbox was made to be claimed, and what became of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Claim {
    /// It was not.
    Never = 0,
    /// It waits.
    Waiting = 1,
    /// It was handed over.
    Taken = 2,
    /// A claim failed half-way.
    Spoilt = 3,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PROTO: &str = include_str!("../../docs/sandbox.proto");

    /// The members of each message and enum of docs/sandbox.proto: `(number, type, name)`, in order.
    fn written() -> BTreeMap<String, Vec<(u32, String, String)>> {
        let (mut all, mut current) = (BTreeMap::<_, Vec<_>>::new(), String::new());
        for line in PROTO.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            let words: Vec<_> = line.trim_end_matches([';', '{', ' ']).split_whitespace().collect();
            match words[..] {
                ["message" | "enum", name] => current = name.to_owned(),
                [name, "=", number] if !current.is_empty() => {
                    let field = (number.parse().unwrap(), "value".to_owned(), name.to_owned());
                    all.entry(current.clone()).or_default().push(field);
                }
                [.., kind, name, "=", number] => {
                    let field = (number.parse().unwrap(), kind.to_owned(), name.to_owned());
                    all.entry(current.clone()).or_default().push(field);
                }
                _ => {}
            }
        }
        all
    }

    /// The tags in the bytes of a message, and the bytes or number behind each.
    fn tags(mut bytes: &[u8]) -> Vec<(u32, u8, Vec<u8>)> {
        let varint = |bytes: &mut &[u8]| prost::encoding::decode_varint(bytes).unwrap();
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let (number, wire) = ((key >> 3) as u32, (key & 7) as u8);
            let value = match wire {
                0 => varint(&mut bytes).to_string().into_bytes(),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    value.to_vec()
                }
                other => panic!("wire type {other}"),
            };
            all.push((number, wire, value));
        }
        all
    }

    fn bound() -> Bound {
        let text = |text: &str| text.to_owned();
        Bound {
            statement: text("statement"),
            statement_digest: text("statement_digest"),
            workload: text("workload"),
            policy_digest: text("policy_digest"),
            generation: 7,
            ruleset: text("ruleset"),
            took: Some(took()),
        }
    }

    fn took() -> Took {
        Took { identity: 1, policy: 2, secrets: 3, token: 4, fence: 5, delivery: 6, attestation: 7, record: 8 }
    }

    fn rebind() -> RebindRequest {
        let text = |text: &str| text.to_owned();
        RebindRequest {
            sandbox: text("sandbox"),
            claim_id: text("claim_id"),
            agent: text("agent"),
            proven: Proven::Operator as i32,
            policy: Some(Policy::inline("inline")),
            secrets: vec![text("secrets")],
            pool: text("pool"),
            pool_generation: text("pool_generation"),
        }
    }

    fn description() -> Description {
        let text = |text: &str| text.to_owned();
        Description {
            id: text("id"),
            namespace: text("namespace"),
            phase: Phase::Running as i32,
            backend: text("backend"),
            agent: text("agent"),
            claim: Claim::Spoilt as i32,
            claim_id: text("claim_id"),
            spoilt: text("spoilt"),
            pid: 9,
            bound: Some(bound()),
        }
    }

    #[test]
    fn the_messages_are_those_of_the_proto_file() {
        let written = written();
        let update = UpdatePolicyRequest { sandbox: "sandbox".into(), policy: Some(Policy::named("named")) };
        let both = [Policy::named("named").encode_to_vec(), Policy::inline("inline").encode_to_vec()].concat();
        let mut seen = 0;
        for (name, bytes) in [
            ("DescribeRequest", DescribeRequest { sandbox: "sandbox".into() }.encode_to_vec()),
            ("RebindRequest", rebind().encode_to_vec()),
            ("Policy", both),
            ("UpdatePolicyRequest", update.encode_to_vec()),
            ("Bound", bound().encode_to_vec()),
            ("Took", took().encode_to_vec()),
            ("Description", description().encode_to_vec()),
        ] {
            let fields = &written[name];
            let found = tags(&bytes);
            assert_eq!(
                found.iter().map(|(number, ..)| number).collect::<Vec<_>>(),
                fields.iter().map(|(number, ..)| number).collect::<Vec<_>>(),
                "{name}"
            );
            for ((_, wire, value), (_, kind, field)) in found.iter().zip(fields) {
                match kind.as_str() {
                    // Each text of the samples is its field's name.
                    "string" => assert_eq!((*wire, value.as_slice()), (2, field.as_bytes()), "{name}.{field}"),
                    "uint64" | "uint32" | "Proven" | "Phase" | "Claim" => assert_eq!(*wire, 0, "{name}.{field}"),
                    message => assert!(*wire == 2 && written.contains_key(message), "{name}.{field}"),
                }
            }
            seen += 1;
        }
        let numbers = |name: &str| {
            written[name].iter().map(|(number, _, name)| (name.clone(), *number as i32)).collect::<Vec<_>>()
        };
        let proven = [Proven::Unspecified, Proven::Token, Proven::Operator];
        let phases = [Phase::Unspecified, Phase::Created, Phase::Running, Phase::Paused, Phase::Stopped];
        let claims = [Claim::Never, Claim::Waiting, Claim::Taken, Claim::Spoilt];
        for (name, ours) in [
            ("Proven", proven.map(|v| (format!("PROVEN_{v:?}").to_uppercase(), v as i32)).to_vec()),
            ("Phase", phases.map(|v| (format!("PHASE_{v:?}").to_uppercase(), v as i32)).to_vec()),
            ("Claim", claims.map(|v| (format!("CLAIM_{v:?}").to_uppercase(), v as i32)).to_vec()),
        ] {
            assert_eq!(numbers(name), ours, "{name}");
            seen += 1;
        }
        assert_eq!(seen, written.len(), "each message and enum of the file");
        let (package, service) = SERVICE.rsplit_once('.').unwrap();
        assert!(PROTO.contains(&format!("package {package};")) && PROTO.contains(&format!("service {service} {{")));
        for call in [
            format!("rpc {DESCRIBE}(DescribeRequest) returns (Description);"),
            format!("rpc {REBIND}(RebindRequest) returns (Bound);"),
            format!("rpc {UPDATE_POLICY}(UpdatePolicyRequest) returns (Bound);"),
        ] {
            assert!(PROTO.contains(&call), "{call}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = RebindRequest::decode(bytes.as_slice()) {
                prop_assert_eq!(RebindRequest::decode(request.encode_to_vec().as_slice()).unwrap(), request);
            }
        }
    }
}
