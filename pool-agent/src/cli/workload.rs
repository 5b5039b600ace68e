//! What a sandbox or a command in it is to be, as the command line says it; shared by `spawn`, `pool create`, `claim` and `exec`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::image::ImageRef;
use crate::labels::{BadLabel, Labels};
use crate::quantity::{Cpus, Memory};
use crate::spec::{AbsolutePath, Backend, BadSpec, NetworkPolicy, SandboxSpec, SecretRef, User};

/// How a command runs.
#[derive(Debug, Args)]
pub struct Process {
    /// A variable of its environment; may be given several times. No place for secrets: it is kept and shown
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// The directory it runs in; without: the image's
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<AbsolutePath>,
    /// As whom it runs, names of the image's or numbers; without: as the image says
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<User>,
}

/// What a sandbox is to be, beside its image and its command.
#[derive(Debug, Args)]
pub struct Wish {
    /// What isolates it
    #[arg(long, value_name = "NAME", default_value = "gvisor", value_parser = backend())]
    pub runtime: Backend,
    /// A runsc of its own, to try it out; runtime.toml says from which directories
    #[arg(long, value_name = "FILE", value_parser = here)]
    pub runsc_path: Option<AbsolutePath>,
    /// What it may connect to: a policy's name, or the policy as JSON; without: the agent's own
    #[arg(long, value_name = "NAME|JSON")]
    pub policy: Option<NetworkPolicy>,
    /// A secret it may know, as file:NAME or command:NAME; may be given several times
    #[arg(long = "secret", value_name = "REF")]
    pub secrets: Vec<SecretRef>,
    /// The memory it may use, such as 512Mi
    #[arg(long)]
    pub memory: Option<Memory>,
    /// The processors it may use, such as 0.5
    #[arg(long)]
    pub cpus: Option<Cpus>,
    /// How people find it; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// It has no network at all
    #[arg(long)]
    pub no_network: bool,
    /// It ends so long after it began to run
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub ttl: Option<Duration>,
    /// It ends when nobody has used it for so long: no session in it, and next to no processor time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub idle_timeout: Option<Duration>,
    /// How its command runs
    #[command(flatten)]
    pub process: Process,
}

impl Wish {
    /// The whole of it.
    pub fn of(self, image: ImageRef, command: Vec<String>) -> Result<SandboxSpec, BadLabel> {
        let Self { runtime, runsc_path, policy, secrets, memory, cpus, labels, no_network, process, .. } = self;
        let mut spec = SandboxSpec::of(image);
        spec.backend = runtime;
        spec.runsc_path = runsc_path;
        spec.command = command;
        spec.env = process.env.into_iter().collect();
        spec.cwd = process.cwd;
        spec.user = process.user;
        spec.network_policy = policy;
        spec.resource_limits.memory_bytes = memory;
        spec.resource_limits.cpu_millis = cpus;
        spec.secrets = secrets;
        spec.labels = Labels::try_from(labels.into_iter().collect::<BTreeMap<_, _>>())?;
        spec.network = !no_network;
        (spec.ttl, spec.idle_timeout) = (self.ttl, self.idle_timeout);
        Ok(spec)
    }
}

/// The backends, by name; help and completions list them.
pub fn backend() -> impl TypedValueParser<Value = Backend> {
    PossibleValuesParser::new(Backend::ALL.map(Backend::name)).try_map(|name| name.parse::<Backend>())
}

/// A file of this machine's, as the agent is to find it, which is elsewhere.
fn here(path: &str) -> Result<AbsolutePath, String> {
    let path = fs::canonicalize(path).map_err(|e| e.to_string())?;
    path.to_str().ok_or("its path is no UTF-8")?.parse().map_err(|e: BadSpec| e.to_string())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = variable(text)?;
    Labels::try_from(BTreeMap::from([(name.clone(), value.clone())])).map_err(|e| e.to_string())?;
    Ok((name, value))
}
