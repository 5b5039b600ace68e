//! What a sandbox is asked to be: image, isolation, process, network, limits, secrets, lifetime. Its JSON is the body of the
//! API and `.spec` of `creto-runtime-cli get ID --json`. Pure. Not here: who asks, and what became of it ([`crate::sandbox`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use egress::policy::Document;
use egress::protocol::PolicyRef;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use trust::id::PolicyName;

use crate::image::ImageRef;
use crate::labels::Labels;
use crate::quantity::{Cpus, Memory};
use crate::schema::{self, Span};

/// A command with its arguments, and an environment, have at most so many entries.
pub(crate) const MOST_WORDS: usize = 4096;
/// A sandbox has at most so many secrets.
pub(crate) const MOST_SECRETS: usize = 64;
/// The longest name of a user or a group, in bytes.
pub(crate) const USER_BYTES: usize = 64;
/// The longest name of a secret, in bytes; the shim's own bound.
pub(crate) const SECRET_BYTES: usize = 76;

/// What a sandbox is asked to be. Only the image must be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxSpec {
    /// The image.
    pub image: ImageRef,
    /// What isolates it.
    #[serde(default)]
    pub backend: Backend,
    /// A runsc of its own, for canaries; only from directories that runtime.toml allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runsc_path: Option<AbsolutePath>,
    /// What runs, instead of the image's own entry point and command where it is not empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "words")]
    #[schemars(schema_with = "schema::command")]
    pub command: Vec<String>,
    /// Added to the image's own environment. No place for secrets: a spec is kept and shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "environment")]
    #[schemars(schema_with = "schema::environment")]
    pub env: BTreeMap<String, String>,
    /// Where it runs; the image's own where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<AbsolutePath>,
    /// As whom it runs; the image's own where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// What it may connect to; the agent's own policy where none is given, and without an agent nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// What it may use.
    #[serde(default, deserialize_with = "crate::object::only")]
    pub resource_limits: ResourceLimits,
    /// What it may know.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "secrets")]
    #[schemars(schema_with = "schema::secrets")]
    pub secrets: Vec<SecretRef>,
    /// How people find it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether it has a network at all; what it may connect to there is the policy's business.
    #[serde(default = "yes")]
    pub network: bool,
    /// It ends so long after it began to run, unless its end is moved.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub ttl: Option<Duration>,
    /// It ends when nobody has used it for so long.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub idle_timeout: Option<Duration>,
    /// It ends so long after it was made, whatever its ttl.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::span::option")]
    #[schemars(with = "Option<Span>")]
    pub max_lifetime: Option<Duration>,
}

impl SandboxSpec {
    /// It ends by itself so long after it begins to run, if it does.
    pub fn lifetime(&self) -> Option<Duration> {
        [self.ttl, self.max_lifetime].into_iter().flatten().min()
    }

    /// The image, and nothing else asked for.
    pub fn of(image: ImageRef) -> Self {
        Self {
            image,
            backend: Backend::default(),
            runsc_path: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            network_policy: None,
            resource_limits: ResourceLimits::default(),
            secrets: Vec::new(),
            labels: Labels::default(),
            network: true,
            ttl: None,
            idle_timeout: None,
            max_lifetime: None,
        }
    }
}

/// What isolates a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A kernel in user space.
    #[default]
    Gvisor,
    /// A virtual machine.
    Kata,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Gvisor, Self::Kata];

    /// As in the annotation `creto.dev/backend`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gvisor => "gvisor",
            Self::Kata => "kata",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let found = Self::ALL.into_iter().find(|backend| backend.name() == text);
        found.ok_or_else(|| BadSpec(format!("backend {text:?}: give gvisor or kata")))
    }
}

/// What a sandbox may use; what is not given is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceLimits {
    /// Memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<Memory>,
    /// Processor time, in thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<Cpus>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<std::num::NonZeroU32>,
}

/// What a sandbox may connect to: the name of a policy of the node's, or the policy itself, which can be read. In JSON a
/// text or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPolicy {
    /// `policies.d/<name>.toml`.
    Named(PolicyName),
    /// `{"rules":[…]}`.
    Inline(Value),
}

impl NetworkPolicy {
    /// Nothing passes: what a member of a pool has until it is claimed.
    pub fn deny_all() -> Self {
        Self::Inline(serde_json::json!({ "rules": [] }))
    }

    fn inline(policy: Value) -> Result<Self, BadSpec> {
        match Document::from_json_value(&policy) {
            Ok(_) => Ok(Self::Inline(policy)),
            Err(error) => Err(BadSpec(format!("network policy: {error}"))),
        }
    }

    /// As creto-egress is told it.
    pub fn to_ref(&self) -> PolicyRef {
        match self {
            Self::Named(name) => PolicyRef::Named(name.to_string()),
            Self::Inline(policy) => PolicyRef::Inline(policy.clone()),
        }
    }

    /// As a sandbox's shim is told it.
    pub fn to_shim(&self) -> trust::sandbox_api::Policy {
        match self {
            Self::Named(name) => trust::sandbox_api::Policy::named(name.to_string()),
            Self::Inline(policy) => trust::sandbox_api::Policy::inline(policy.to_string()),
        }
    }
}

/// As in the annotation `creto.dev/network-policy`.
impl fmt::Display for NetworkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Inline(policy) => policy.fmt(f),
        }
    }
}

impl FromStr for NetworkPolicy {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        if !text.trim_start().starts_with('{') {
            return text.parse().map(Self::Named).map_err(|e| BadSpec(e.to_string()));
        }
        let policy = serde_json::from_str(text).map_err(|e| BadSpec(format!("network policy: {e}")))?;
        Self::inline(policy)
    }
}

impl Serialize for NetworkPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(name) => name.serialize(serializer),
            Self::Inline(policy) => policy.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let policy = match Value::deserialize(deserializer)? {
            Value::String(name) => name.parse().map(Self::Named).map_err(|e: trust::id::BadId| BadSpec(e.to_string())),
            policy => Self::inline(policy),
        };
        policy.map_err(de::Error::custom)
    }
}

/// What no sandbox can be asked to be, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSpec(pub(crate) String);

/// A text with a rule; `$check` says what is wrong with it, if anything.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadSpec;

            fn try_from(text: String) -> Result<Self, BadSpec> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(BadSpec(format!("{text:?}: {why}"))),
                }
            }
        }

        impl FromStr for $name {
            type Err = BadSpec;

            fn from_str(text: &str) -> Result<Self, BadSpec> {
                text.to_owned().try_into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
pub(crate) use text;

text! {
    /// A path from the root, as it is; on the host or in the sandbox, as its field says.
    AbsolutePath, |text| match text.starts_with('/') && !text.contains('\0') && !text.split('/').any(|part| part == "..") {
        true => Ok(()),
        false => Err("give a path that begins with / and has no .."),
    }
}
text! {
    /// `USER` or `USER:GROUP`, names of the image's or numbers.
    User, |text| {
        let part = |part: &str| !part.is_empty() && part.len() <= USER_BYTES && part.bytes().all(|b| b.is_ascii_graphic());
        match text.split(':').count() <= 2 && text.split(':').all(part) {
            true => Ok(()),
            false => Err("give USER or USER:GROUP, names or numbers"),
        }
    }
}
text! {
    /// A secret by its name: `file:NAME` or `command:NAME` (docs/annotations.md). Never its value.
    SecretRef, |text| {
        let name = text.strip_prefix("file:").or_else(|| text.strip_prefix("command:"));
        let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
        match name.is_some_and(|name| name.len() <= SECRET_BYTES && name.split(['.', '_', '-']).all(word)) {
            true => Ok(()),
            false => Err("give file:NAME or command:NAME; a name is of A-Z a-z 0-9 joined by . _ -"),
        }
    }
}

impl AbsolutePath {
    /// As a path.
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(&self.0)
    }
}

impl SecretRef {
    /// The name alone, which its file in /run/creto/secrets has.
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, name)| name)
    }
}

fn yes() -> bool {
    true
}

pub(crate) fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    match words {
        words if words.len() > MOST_WORDS => Err(de::Error::custom("command: more than 4096 words")),
        words if words.first().is_some_and(String::is_empty) => Err(de::Error::custom("command: names no program")),
        words if words.iter().any(|word| word.contains('\0')) => Err(de::Error::custom("command: a word has a NUL")),
        words => Ok(words),
    }
}

pub(crate) fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let env = BTreeMap::<String, String>::deserialize(deserializer)?;
    if env.len() > MOST_WORDS {
        return Err(de::Error::custom("env: more than 4096 variables"));
    }
    let bad =
        |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match env.iter().find(bad) {
        // The value may be a secret, where it should not be: it is not repeated.
        Some((name, _)) => {
            Err(de::Error::custom(format!("env: {name:?}: a name has no = in it, and neither it nor its value a NUL")))
        }
        None => Ok(env),
    }
}

pub(crate) fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SecretRef>, D::Error> {
    let secrets = Vec::<SecretRef>::deserialize(deserializer)?;
    if secrets.len() > MOST_SECRETS {
        return Err(de::Error::custom("secrets: more than 64"));
    }
    let twice = secrets.iter().enumerate().find(|(n, secret)| secrets[..*n].iter().any(|s| s.name() == secret.name()));
    match twice {
        Some((_, secret)) => Err(de::Error::custom(format!("secrets: {:?} is named twice", secret.name()))),
        None => Ok(secrets),
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
