//! What is said over egress.sock: one JSON object a line, a question and then its answer, any number of them on a connection.
//! After `watch` the daemon goes on answering for as long as the connection stands.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trust::digest::Digest;

use crate::policy::{Document, Protocol, Verdict};

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

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub ask: Ask,
}

impl Question {
    /// As it is sent.
    pub fn line(ask: Ask) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Self { version: VERSION, ask })?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// A fence around a sandbox. One that is attached is attached anew, with the same mark. Answer: `fence`.
    Attach(Attach),
    /// Another policy for a sandbox; its own rules stay. Answer: `fence`.
    Update(Update),
    /// The sandbox works for another agent from here on: another policy, and no rules of its own any more. What the fence stands
    /// around stays as it was when it was attached, for a sandbox that runs may have taken its addresses out of the kernel. Where
    /// it fails, what stood stands. Answer: `fence`.
    Rebind(Rebind),
    /// A rule of a sandbox's own, beside its policy; of equal ids the newer stays. Answer: `fence`.
    AddRule(OwnRule),
    /// The end of such a rule. Answer: `fence`.
    RemoveRule(OwnRuleId),
    /// Nothing of the sandbox's fence is left, whether there was one or not. Answer: `done`.
    Detach(SandboxKey),
    /// All fences. Answer: `fences`.
    List,
    /// The rules that hold for a sandbox. Answer: `policy`.
    Get(SandboxKey),
    /// What becomes of a flow of a sandbox, and why. Answer: `explained`.
    Explain(Explain),
    /// What was granted to a sandbox by the decision point is forgotten, and flows that it was granted for end. Answer: `done`.
    Revoke(SandboxKey),
    /// The policies' files are read again now, and those of the decision point. Answer: `reloaded`.
    Reload,
    /// What is counted, as OpenMetrics text. Answer: `metrics`.
    Metrics,
    /// The sandbox's fence, now and whenever it changes. Answers: `fence`, again and again.
    Watch(SandboxKey),
}

impl Ask {
    /// Reads the line of a question. The version is looked at first: another one may ask what this one cannot read.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u32,
        }
        let bad = |e: serde_json::Error| Refusal { code: Code::BadQuestion, message: format!("no question: {e}") };
        let Versioned { version } = serde_json::from_slice(line).map_err(bad)?;
        if version != VERSION {
            let message =
                format!("version {version} of the protocol was asked for; this creto-egress speaks {VERSION}");
            return Err(Refusal { code: Code::BadVersion, message });
        }
        serde_json::from_slice(line).map(|question: Question| question.ask).map_err(bad)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// As it stands now.
    Fence(Fence),
    /// All of them.
    Fences(Vec<Listed>),
    /// All rules, none included by name any more.
    Policy(Document),
    /// Why.
    Explained(Explained),
    /// What was read.
    Reloaded(Reloaded),
    /// OpenMetrics 1.0, to its end.
    Metrics(String),
    /// It is done.
    Done,
    /// It is not.
    Refused(Refusal),
}

/// Why a question has no other answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: what is wrong, and what to do.
    pub message: String,
}

/// Why, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The question could not be read.
    BadQuestion,
    /// It is of another version of the protocol.
    BadVersion,
    /// There is no fence around a sandbox of this name.
    NoSuchSandbox,
    /// The sandbox has no rule of its own with this id.
    NoSuchRule,
    /// The policy cannot be read, or says what none may say.
    PolicyInvalid,
    /// No fence can stand around this network.
    NotFenceable,
    /// There is nothing to stand around: no interface but `lo`.
    Sealed,
    /// The kernel did not take the rules, or does not have them.
    Kernel,
    /// The half that answers DNS and carries connections does not answer.
    Worker,
    /// The daemon could not keep what it has to.
    State,
}

/// Which policy a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyRef {
    /// A file of policies.d, by its name; it follows the file's changes.
    Named(String),
    /// The policy itself, as JSON.
    Inline(Value),
}

/// Another policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Of which sandbox.
    pub sandbox: SandboxKey,
    /// From now on.
    pub policy: PolicyRef,
}

/// Another agent, and its policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebind {
    /// Of which sandbox.
    pub sandbox: SandboxKey,
    /// For whom it works from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// From now on.
    pub policy: PolicyRef,
    /// The current statement about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Digest>,
}

/// A rule of one sandbox's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRule {
    /// Of which sandbox.
    pub sandbox: SandboxKey,
    /// As a policy's JSON has it.
    pub rule: Value,
}

/// Names a rule of one sandbox's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRuleId {
    /// Of which sandbox.
    pub sandbox: SandboxKey,
    /// The rule's id.
    pub id: String,
}

/// A flow to be judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// Whose.
    pub sandbox: SandboxKey,
    /// A host name or an address.
    pub destination: String,
    /// To which port.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

/// A judgement.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explained {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rule that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why.
    pub reason: String,
    /// The generation of the policy that was asked.
    pub generation: u64,
    /// What DNS answers, for people, where the destination is a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
}

/// A fence among others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The fence.
    pub fence: Fence,
    /// For whom the sandbox works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Its policy.
    pub policy: PolicyRef,
    /// The ids of the rules of its own.
    pub own_rules: Vec<String>,
    /// The flows that the gate carries for it now.
    pub flows: u64,
    /// Where it waits for the decision point: `host:port`.
    pub pending: Vec<String>,
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reloaded {
    /// The sandboxes that have another policy now.
    pub changed: Vec<SandboxKey>,
    /// What could not be read; who had it before keeps what was.
    pub errors: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_of_another_version_is_told_so_whatever_it_asks() {
        let code = |line: &str| Ask::parse(line.as_bytes()).map_err(|refusal| refusal.code);
        assert_eq!(code(r#"{"version":2,"ask":{"fly":1}}"#), Err(Code::BadVersion));
        assert_eq!(code(r#"{"version":1,"ask":{"fly":1}}"#), Err(Code::BadQuestion));
        assert_eq!(code(r#"{"version":1,"ask":"list","colour":2}"#), Err(Code::BadQuestion));
        assert_eq!(code(""), Err(Code::BadQuestion));
        assert_eq!(code(r#"{"version":1,"ask":"list"}"#), Ok(Ask::List));
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_a_question_or_refused(line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..512)) {
            let _ = Ask::parse(&line);
        }
    }
}
