//! What one Create asks of us, beside the container itself: annotations over settings. Pure but for looking at files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use egress::policy::Document;
use egress::protocol::PolicyRef;
use serde_json::{Value, json};
use trust::id::{AgentId, PolicyName};
use trust::identity::token;
use zeroize::Zeroizing;

use crate::error::TaskError;
use crate::harden::Profile;
use crate::secrets::SecretRef;
use crate::settings::{DelegateSettings, GVISOR, PolicyChoice, Settings};

const PREFIX: &str = "creto.dev/";
/// runsc reads these as flags, mounts and file systems of the sandbox. containerd and Kubernetes set none.
const RUNSC_PREFIX: &str = "dev.gvisor.";
const AGENT: &str = "creto.dev/agent";
const AGENT_TOKEN_FILE: &str = "creto.dev/agent-token-file";
const BACKEND: &str = "creto.dev/backend";
const CLAIMABLE: &str = "creto.dev/claimable";
const NETWORK_POLICY: &str = "creto.dev/network-policy";
const PROFILE: &str = "creto.dev/profile";
const RUNSC_PATH: &str = "creto.dev/runsc-path";
const SECRETS: &str = "creto.dev/secrets";
const ALL: [&str; 8] = [AGENT, AGENT_TOKEN_FILE, BACKEND, CLAIMABLE, NETWORK_POLICY, PROFILE, RUNSC_PATH, SECRETS];

/// What was settled with a pod's first container.
#[derive(Clone, Copy, Debug)]
pub struct Settled<'a> {
    /// Who has made the sandbox.
    pub maker: &'a Maker,
    /// For whom it works.
    pub agent: Option<&'a AgentId>,
    /// What its containers may know.
    pub secrets: &'a [SecretRef],
    /// Where they may connect to.
    pub network_policy: &'a PolicyRef,
    /// Whether it was made to wait for a claim.
    pub claimable: bool,
}

/// Who makes a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// gVisor, by this runsc; `None` for the one in PATH.
    Gvisor(Option<PathBuf>),
    /// Another shim, by its name in runtime.toml.
    Delegate(String, DelegateSettings),
}

impl Maker {
    /// As in `creto.dev/backend`.
    pub fn name(&self) -> &str {
        match self {
            Self::Gvisor(_) => GVISOR,
            Self::Delegate(name, _) => name,
        }
    }
}

/// The annotations `creto.dev/*` of a container; what they name exists and is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxRequest {
    /// For whom the sandbox works.
    pub agent: Option<AgentId>,
    /// How much is taken away from the workload.
    pub profile: Profile,
    /// Where it may connect to; the agent's own policy where none is named.
    pub network_policy: Option<PolicyRef>,
    /// What the workload may know.
    pub secrets: Vec<SecretRef>,
    /// It works for nobody, and waits to be handed over.
    pub claimable: bool,
    token_file: Option<PathBuf>,
    backend: Option<String>,
    runsc: Option<PathBuf>,
}

impl SandboxRequest {
    /// Reads the annotations of a spec.
    pub fn parse(spec: &Value, settings: &Settings) -> Result<Self, TaskError> {
        let mut request = Self::default();
        let annotations = spec.get("annotations").and_then(Value::as_object).into_iter().flatten();
        for (key, value) in annotations {
            if key.starts_with(RUNSC_PREFIX) {
                let why =
                    "runsc would take it for a setting of its own, which are the operator's (runtime.toml); omit it";
                return Err(TaskError::Invalid(format!("annotation {key}: {why}")));
            }
            if !key.starts_with(PREFIX) {
                continue;
            }
            let value = value.as_str().unwrap_or_default();
            match key.as_str() {
                BACKEND if settings.knows(value) => request.backend = Some(value.to_owned()),
                BACKEND => {
                    let why = format!("annotation {key}: {value:?} is no backend; allowed: {}", settings.backends());
                    return Err(TaskError::Invalid(why));
                }
                AGENT => {
                    request.agent =
                        Some(value.parse().map_err(|e| TaskError::Invalid(format!("annotation {key}: {e}")))?)
                }
                NETWORK_POLICY => request.network_policy = Some(network_policy(value, settings.egress.annotation)?),
                AGENT_TOKEN_FILE => request.token_file = Some(value.into()),
                PROFILE => {
                    let profile = value.parse();
                    request.profile = profile.map_err(|e| TaskError::Invalid(format!("annotation {key}: {e}")))?;
                }
                CLAIMABLE if value == "true" => request.claimable = true,
                CLAIMABLE => {
                    return Err(TaskError::Invalid(format!("annotation {key}: {value:?}; give \"true\", or omit it")));
                }
                SECRETS => request.secrets = SecretRef::parse_list(value)?,
                RUNSC_PATH => request.runsc = Some(allowed(Path::new(value), &settings.gvisor.runsc_dirs)?),
                _ => {
                    let why = format!("annotation {key}: unknown; allowed: {}", ALL.join(", "));
                    return Err(TaskError::Invalid(why));
                }
            }
        }
        request.waits_for_nobody()?;
        Ok(request)
    }

    /// What waits to be claimed has nothing of anybody's that the claim would find, and cannot connect.
    fn waits_for_nobody(&self) -> Result<(), TaskError> {
        if !self.claimable {
            return Ok(());
        }
        let nothing = PolicyRef::Inline(json!({"rules": []}));
        let brought = [
            (AGENT, self.agent.is_some()),
            (AGENT_TOKEN_FILE, self.token_file.is_some()),
            (SECRETS, !self.secrets.is_empty()),
            (NETWORK_POLICY, self.network_policy.as_ref().is_some_and(|policy| *policy != nothing)),
        ];
        match brought.iter().find(|(_, brought)| *brought) {
            None => Ok(()),
            Some((key, _)) => {
                let why =
                    format!("annotation {key}: the sandbox is {CLAIMABLE}: it comes with the claim; omit it here");
                Err(TaskError::Invalid(why))
            }
        }
    }

    /// What is in the file that is said to have the agent's token; of a file that is not there, or cannot be read, or has too
    /// much, it is empty. So all these fail as one check of the token: the file system is not the pod's to ask about.
    pub fn token(&self) -> Result<Option<Zeroizing<String>>, TaskError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        if !path.is_absolute() {
            let why = format!("annotation {AGENT_TOKEN_FILE}: {} is no absolute path", path.display());
            return Err(TaskError::Invalid(why));
        }
        let read = || {
            let longest = token::MAX_BYTES as u64 + 2;
            let mut token = Zeroizing::new(String::with_capacity(longest as usize)); // never moved: no copy stays
            open_regular(path).ok()?.take(longest).read_to_string(&mut token).ok()?;
            Some(Zeroizing::new(token.trim().to_owned())).filter(|token| token.len() <= token::MAX_BYTES)
        };
        Ok(Some(read().unwrap_or_default()))
    }

    /// Who makes the sandbox of a pod that begins with this container.
    pub fn maker(&self, settings: &Settings) -> Result<Maker, TaskError> {
        let name = self.backend.clone().unwrap_or_else(|| settings.backend.clone());
        if let Some(delegate) = settings.delegates.get(&name) {
            return match &self.runsc {
                None => Ok(Maker::Delegate(name, delegate.clone())),
                Some(_) => Err(TaskError::Invalid(format!("annotation {RUNSC_PATH}: the backend is {name}; omit it"))),
            };
        }
        let runsc = self.runsc.clone().or_else(|| settings.gvisor.runsc_path.clone());
        match runsc.as_ref().filter(|path| !path.is_file()) {
            None => Ok(Maker::Gvisor(runsc)),
            Some(path) => Err(TaskError::Invalid(format!("runsc {}: there is no such file", path.display()))),
        }
    }

    /// A further container of a pod asks for nothing else than the pod's sandbox is; whom it works for was settled with the
    /// first one.
    pub fn agrees(&self, settled: &Settled<'_>) -> Result<(), TaskError> {
        let Settled { maker: pod, agent, secrets, network_policy, claimable } = *settled;
        let refused = |key: &str, asked: String, has: String| {
            let why = format!("annotation {key}: {asked}, but the pod's sandbox has {has}; give both the same");
            Err(TaskError::Invalid(why))
        };
        if let Some(backend) = self.backend.as_ref().filter(|asked| *asked != pod.name()) {
            return refused(BACKEND, backend.clone(), pod.name().to_owned());
        }
        if let Some(asked) = self.agent.as_ref().filter(|asked| Some(*asked) != agent) {
            return refused(AGENT, asked.to_string(), agent.map_or("no agent".into(), ToString::to_string));
        }
        if !self.secrets.is_empty() && self.secrets != secrets {
            return refused(SECRETS, list(&self.secrets), list(secrets));
        }
        if let Some(asked) = self.network_policy.as_ref().filter(|asked| *asked != network_policy) {
            return refused(NETWORK_POLICY, policy_name(asked), policy_name(network_policy));
        }
        if self.claimable && !claimable {
            return refused(CLAIMABLE, "true".into(), "not been made for that".into());
        }
        match (&self.runsc, pod) {
            (None, _) => Ok(()),
            (Some(asked), Maker::Gvisor(Some(has))) if asked == has => Ok(()),
            (Some(asked), Maker::Gvisor(Some(has))) => {
                refused(RUNSC_PATH, asked.display().to_string(), has.display().to_string())
            }
            (Some(asked), Maker::Gvisor(None)) => {
                refused(RUNSC_PATH, asked.display().to_string(), "the runsc in PATH".into())
            }
            (Some(asked), Maker::Delegate(name, _)) => refused(RUNSC_PATH, asked.display().to_string(), name.clone()),
        }
    }
}

/// A policy's name, or the policy itself as JSON.
fn network_policy(value: &str, choice: PolicyChoice) -> Result<PolicyRef, TaskError> {
    let invalid = |e: &dyn std::fmt::Display| TaskError::Invalid(format!("annotation {NETWORK_POLICY}: {e}"));
    match choice {
        PolicyChoice::None => return Err(invalid(&"refused by egress.annotation in runtime.toml; omit it")),
        PolicyChoice::Named if value.trim_start().starts_with('{') => {
            return Err(invalid(
                &"egress.annotation in runtime.toml allows only the name of one of the node's policies",
            ));
        }
        PolicyChoice::Any | PolicyChoice::Named => {}
    }
    if !value.trim_start().starts_with('{') {
        let name: PolicyName = value.parse().map_err(|e| invalid(&e))?;
        return Ok(PolicyRef::Named(name.to_string()));
    }
    let policy: Value = serde_json::from_str(value).map_err(|e| invalid(&e))?;
    Document::from_json_value(&policy).map_err(|e| invalid(&e))?;
    Ok(PolicyRef::Inline(policy))
}

/// For people.
fn policy_name(policy: &PolicyRef) -> String {
    match policy {
        PolicyRef::Named(name) => name.clone(),
        PolicyRef::Inline(policy) => policy.to_string(),
    }
}

/// Secrets by their names, for people.
fn list(secrets: &[SecretRef]) -> String {
    match secrets {
        [] => "none".into(),
        all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// Opens a regular file by a name that is not to be trusted. Nothing else is so much as opened: that alone would wait for
/// the writer of a FIFO for ever, or set off a watchdog. Nor is a file waited for (`/proc/kmsg` is a regular one).
fn open_regular(path: &Path) -> io::Result<File> {
    let open = |path: &Path, flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    let named = open(path, libc::O_PATH)?;
    if !named.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    open(Path::new(&format!("/proc/self/fd/{}", named.as_raw_fd())), libc::O_NONBLOCK)
}

/// A path that the operator allows; symbolic links do not lead out.
fn allowed(path: &Path, dirs: &[PathBuf]) -> Result<PathBuf, TaskError> {
    let invalid = |why: String| TaskError::Invalid(format!("annotation {RUNSC_PATH}: {why}"));
    if !path.is_absolute() {
        return Err(invalid(format!("{:?} is no absolute path", path.display().to_string())));
    }
    let within =
        |real: &PathBuf| dirs.iter().filter_map(|dir| dir.canonicalize().ok()).any(|dir| real.starts_with(dir));
    // One answer for what is not there and what is not allowed: the file system is not the pod's to ask about.
    path.canonicalize()
        .ok()
        .filter(within)
        .ok_or_else(|| invalid(format!("{} is in none of gvisor.runsc_dirs of runtime.toml: {dirs:?}", path.display())))
}

#[cfg(test)]
mod tests;
