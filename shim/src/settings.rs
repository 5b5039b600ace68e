//! What the node's operator decides: runtime.toml. `configs/runtime.toml` documents each key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trust::id::{NodeId, TrustDomain};
use trust::identity::Permission;
pub use trust::identity::service::{HttpSettings, Source};

use crate::args::is_identifier;
use crate::error::TaskError;

/// The backend that is built in.
pub const GVISOR: &str = "gvisor";
/// The other shim that needs no table to be known: it isolates as gVisor does.
pub const KATA: &str = "kata";

/// runtime.toml.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What a sandbox is made with, where no annotation says: `gvisor` or a name in `delegates`.
    pub backend: String,
    /// The table `[gvisor]`.
    pub gvisor: GvisorSettings,
    /// The tables `[delegates.NAME]`: other shims, which make sandboxes in our name.
    pub delegates: BTreeMap<String, DelegateSettings>,
    /// The table `[isolation]`.
    pub isolation: IsolationSettings,
    /// The table `[identity]`.
    pub identity: IdentitySettings,
    /// The table `[attestation]`.
    pub attestation: AttestationSettings,
    /// The table `[secrets]`.
    pub secrets: SecretsSettings,
    /// The table `[egress]`.
    pub egress: EgressSettings,
}

/// The table `[egress]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressSettings {
    /// What the annotation `creto.dev/network-policy` may say.
    pub annotation: PolicyChoice,
}

/// How freely whoever may annotate a pod chooses where it connects to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyChoice {
    /// A policy's name, or a policy.
    #[default]
    Any,
    /// The name of one of the node's policies.
    Named,
    /// Nothing: the agent's own policy holds.
    None,
}

/// The table `[gvisor]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GvisorSettings {
    /// Which runsc; the one in PATH where none is named.
    pub runsc_path: Option<PathBuf>,
    /// Where the annotation `creto.dev/runsc-path` may point into.
    pub runsc_dirs: Vec<PathBuf>,
    /// How running sandboxes are spoken to.
    pub control: Control,
    /// Of those that gVisor cannot set.
    pub unsupported_sysctls: UnsupportedSysctls,
}

/// What becomes of a container that asks for a sysctl that gVisor cannot set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsupportedSysctls {
    /// There is none.
    #[default]
    Refuse,
    /// It goes without, and the log says so.
    Warn,
}

/// The ways into a running sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// By its control socket; by the command line where the build of runsc does not answer there as expected.
    #[default]
    Auto,
    /// By runsc's command line, always.
    Cli,
}

/// A table `[delegates.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateSettings {
    /// A containerd shim v2: a name to look up in PATH, or a path.
    pub shim: PathBuf,
    /// Sent to it as ConfigPath of `runtimeoptions.v1.Options`.
    pub config_path: Option<PathBuf>,
}

/// The table `[isolation]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IsolationSettings {
    /// Sandboxes that ask for the host's own network get it.
    pub allow_host_network: bool,
    /// Sandboxes that ask for the host's processes are made, with processes of their own.
    pub allow_host_pid: bool,
}

/// The table `[identity]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySettings {
    /// Sandboxes that name no agent.
    pub anonymous: Permission,
    /// Sandboxes that name an agent and bring no token of it.
    pub operator: Permission,
    /// Where agents are looked up.
    pub source: Source,
    /// The table `[identity.http]`.
    pub http: Option<HttpSettings>,
    /// The node's name; the host's without.
    pub node: Option<NodeId>,
    /// In which the node names itself, and the sandboxes of nobody.
    pub trust_domain: TrustDomain,
    /// Whom an agent's token must be for; `creto:NODE` without.
    pub audience: Option<String>,
    /// How long a sandbox's own token is good for; it is renewed after two thirds.
    #[serde(deserialize_with = "duration")]
    pub token_lifetime: Duration,
}

impl IdentitySettings {
    /// The service that is asked; `None` for the registry.
    pub fn service(&self) -> Result<Option<&HttpSettings>, String> {
        HttpSettings::of(self.source, self.http.as_ref())
    }
}

impl Default for IdentitySettings {
    fn default() -> Self {
        let (anonymous, operator) = (Permission::Allow, Permission::Allow);
        let (source, http) = Default::default();
        let (node, audience, token_lifetime) = (None, None, Duration::from_secs(60 * 60));
        let trust_domain = TrustDomain::local();
        Self { anonymous, operator, source, http, node, trust_domain, audience, token_lifetime }
    }
}

/// `1h 30min`, and more than a minute: a token that ends before it is read helps nobody.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text).map_err(|e| serde::de::Error::custom(format!("{text:?}: {e}")))?;
    match parsed >= Duration::from_secs(60) {
        true => Ok(parsed),
        false => Err(serde::de::Error::custom(format!("{text:?}: give a minute or more, such as \"1h\""))),
    }
}

/// The table `[attestation]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationSettings {
    /// How long a statement is good for; a sandbox that runs longer gets a new one after two thirds.
    #[serde(deserialize_with = "duration")]
    pub validity: Duration,
    /// How long the statements of an ended sandbox are kept.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
    /// Of how many sandboxes statements are kept, those that live aside.
    pub keep_most: usize,
}

impl Default for AttestationSettings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { validity: DAY, keep: 90 * DAY, keep_most: 10_000 }
    }
}

/// The table `[secrets]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretsSettings {
    /// Where `file:NAME` of `creto.dev/secrets` is looked up, for each agent in a directory of its own; without, there are
    /// none.
    pub dir: Option<PathBuf>,
    /// What prints the secret `command:NAME`, told the name as its last argument; without, there are none.
    pub command: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let (gvisor, delegates, isolation, identity, attestation, secrets, egress) = Default::default();
        let mut settings =
            Self { backend: GVISOR.into(), gvisor, delegates, isolation, identity, attestation, secrets, egress };
        settings.know_kata();
        settings
    }
}

impl Settings {
    /// Parses TOML that came from `origin`; an error names the key, the value and what is allowed.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TaskError> {
        let invalid = |why: String| TaskError::Invalid(format!("{origin}: {why}"));
        let mut settings: Self = toml::from_str(text).map_err(|e| invalid(e.to_string().trim_end().to_owned()))?;
        settings.know_kata();
        for (name, delegate) in &settings.delegates {
            if name == GVISOR || !is_identifier(name) {
                return Err(invalid(format!("delegates.{name}: choose another name; {GVISOR} is built in")));
            }
            if delegate.shim.components().count() != 1 && !delegate.shim.is_absolute() {
                let shim = delegate.shim.display();
                return Err(invalid(format!("delegates.{name}.shim: {shim} is neither a name nor an absolute path")));
            }
        }
        settings.identity.service().map_err(invalid)?;
        if !settings.knows(&settings.backend) {
            return Err(invalid(format!("backend: {:?} is none; allowed: {}", settings.backend, settings.backends())));
        }
        Ok(settings)
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, TaskError> {
        let text = fs::read_to_string(path).map_err(|e| TaskError::host(path.display().to_string(), e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The node's own, where it has some.
    pub fn of_node(path: &Path) -> Result<Self, TaskError> {
        match path.try_exists() {
            Ok(false) => Ok(Self::default()),
            _ => Self::read(path),
        }
    }

    /// Whether a sandbox can be made with this.
    pub fn knows(&self, backend: &str) -> bool {
        backend == GVISOR || self.delegates.contains_key(backend)
    }

    /// All that a sandbox can be made with, for people.
    pub fn backends(&self) -> String {
        [GVISOR].into_iter().chain(self.delegates.keys().map(String::as_str)).collect::<Vec<_>>().join(", ")
    }

    fn know_kata(&mut self) {
        let shim = || DelegateSettings { shim: "containerd-shim-kata-v2".into(), config_path: None };
        self.delegates.entry(KATA.into()).or_insert_with(shim);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bad_setting_is_named_with_what_is_allowed() {
        for (text, expected) in [
            ("backend = \"firecracker\"", "allowed: gvisor, kata"),
            ("backned = \"gvisor\"", "backned"),
            ("[gvisor]\nrunsc = 1", "runsc_path"),
            ("[gvisor]\nrunsc_dirs = \"/opt\"", "runsc_dirs"),
            ("[gvisor]\ncontrol = \"socket\"", "expected `auto` or `cli`"),
            ("[gvisor]\nunsupported_sysctls = \"ignore\"", "expected `refuse` or `warn`"),
            ("[delegates.gvisor]\nshim = \"x\"", "delegates.gvisor"),
            ("[delegates.runc]\n", "shim"),
            ("[delegates.runc]\nshim = \"./bin/shim\"", "delegates.runc.shim"),
            ("[delegates.\"a b\"]\nshim = \"x\"", "delegates.a b"),
            ("[isolation]\nallow_host_network = \"yes\"", "allow_host_network"),
            ("[isolation]\nallow_host_pids = true", "allow_host_pid"),
            ("[identity]\nanonymous = \"maybe\"", "allow"),
            ("[identity]\ntrust_domain = \"Example.org\"", "trust domain"),
            ("[identity]\ntoken_lifetime = \"soon\"", "soon"),
            ("[identity]\ntoken_lifetime = \"1s\"", "a minute or more"),
            ("[identity]\nsource = \"ldap\"", "expected `registry` or `http`"),
            ("[identity]\nsource = \"http\"", "[identity.http]"),
            ("[identity.http]\nca_file = \"x\"", "url"),
            ("[identity.http]\nurl = \"https://x\"\ntimeout = \"1h\"", "up to 30s"),
            ("[identity.http]\nurl = \"https://x\"\ntimeout = \"0s\"", "up to 30s"),
            ("[secrets]\ndir = 1", "dir"),
            ("[", "expected"),
        ] {
            let error = Settings::parse(text, "/etc/creto/runtime.toml").unwrap_err().to_string();
            assert!(error.contains(expected) && error.starts_with("/etc/creto/runtime.toml"), "{text}: {error}");
        }
        assert_eq!(Settings::parse("", "x").unwrap(), Settings::default());
    }

    #[test]
    fn a_shim_is_a_backend_once_it_has_a_table_and_kata_always_is() {
        let settings = Settings::parse("backend = \"runc\"\n[delegates.runc]\nshim = \"/bin/shim\"", "x").unwrap();
        assert_eq!(settings.backends(), "gvisor, kata, runc");
        let none = Settings::default();
        assert!(
            none.knows(KATA) && !none.knows("runc"),
            "runc shares the host's kernel: only an operator may allow it"
        );
    }

    proptest! {
        #[test]
        fn settings_are_whole_or_an_error_that_names_their_origin(text in prop_oneof![
            crate::arbitrary::text(),
            prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec![
                        "backend = \"gvisor\"", "backend = \"runc\"", "[gvisor]", "runsc_path = \"/r\"", "runsc_dirs = [\"/d\"]",
                        "control = \"cli\"", "control = 1", "[delegates.runc]", "[delegates.\"../x\"]", "shim = \"s\"",
                        "shim = \"./s\"", "config_path = \"c\"", "x = 1",
                    ]).prop_map(str::to_owned),
                    crate::arbitrary::text(),
                ],
                0..6,
            ).prop_map(|lines| lines.join("\n")),
        ]) {
            match Settings::parse(&text, "origin") {
                Ok(settings) => {
                    prop_assert!(settings.knows(&settings.backend) && settings.knows(KATA));
                    for (name, delegate) in &settings.delegates {
                        prop_assert!(is_identifier(name) && name != GVISOR);
                        let shim = &delegate.shim;
                        prop_assert!(shim.is_absolute() || shim.components().count() == 1, "{shim:?} depends on a directory");
                    }
                }
                Err(error) => prop_assert!(error.to_string().starts_with("origin: "), "{error}"),
            }
        }
    }
}
