//! Secrets for a workload: named by the request, looked up where the operator says and for whom the sandbox works, delivered
//! as files that only the workload reads. Their values are in no spec, environment, log, statement or record, and are wiped from memory after use.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use trust::attestation::predicate::Sandbox;
use trust::audit::record::Text;
use trust::id::AgentId;
use trust::identity::Identity;
use trust::refusal::Cause;
use zeroize::Zeroizing;

use crate::args::is_identifier;
use crate::error::TaskError;
use crate::reaper;
use crate::run_dir::RunDir;
use crate::settings::SecretsSettings;

/// A secret is a key or a password, not a file system; bytes.
const LARGEST: u64 = 64 << 10;
/// What a provider may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// In errors: where secrets are named, by an annotation or by a claim.
const NAMED: &str = "secrets (creto.dev/secrets)";

/// A name in `creto.dev/secrets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// `file:NAME`, in the operator's directory.
    File(String),
    /// `command:NAME`, told to the operator's program.
    Command(String),
}

impl SecretRef {
    /// Parses `file:db-password,command:token`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, TaskError> {
        let invalid = |part: &str| {
            let rule = "give file:NAME or command:NAME, separated by commas; a name is of A-Z a-z 0-9 joined by . _ -";
            TaskError::Invalid(format!("{NAMED}: {part:?}: {rule}"))
        };
        let parse = |part: &str| match part.trim().split_once(':') {
            Some(("file", name)) if is_identifier(name) => Ok(Self::File(name.to_owned())),
            Some(("command", name)) if is_identifier(name) => Ok(Self::Command(name.to_owned())),
            _ => Err(invalid(part)),
        };
        let all: Vec<_> = text.split(',').map(parse).collect::<Result<_, _>>()?;
        for (n, secret) in all.iter().enumerate() {
            if all[..n].iter().any(|other| other.name() == secret.name()) {
                return Err(TaskError::Invalid(format!("{NAMED}: {:?} is named twice", secret.name())));
            }
        }
        Ok(all)
    }

    fn name(&self) -> &str {
        match self {
            Self::File(name) | Self::Command(name) => name,
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "file:{name}"),
            Self::Command(name) => write!(f, "command:{name}"),
        }
    }
}

/// Whom secrets are for, which is settled before they are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Audience<'a> {
    /// For whom the sandbox works, and how that is known.
    pub identity: &'a Identity,
    /// The sandbox.
    pub sandbox: &'a Sandbox,
}

impl Audience<'_> {
    /// What a provider is told of it, so that it can refuse; each variable is there always.
    fn environment(&self) -> [(&'static str, String); 4] {
        let Self { identity, sandbox } = self;
        [
            ("CRETO_AGENT", identity.agent().map(ToString::to_string).unwrap_or_default()),
            ("CRETO_AGENT_PROOF", identity.proof().to_string()),
            ("CRETO_SANDBOX", sandbox.id.to_string()),
            ("CRETO_NAMESPACE", sandbox.namespace.to_string()),
        ]
    }
}

/// Secrets with their values.
#[derive(Default)]
pub struct Secrets(Vec<(String, Zeroizing<Vec<u8>>)>);

impl Secrets {
    /// Looks each up; one that is not there is an error that names it, and never what it might have been.
    pub async fn resolve(
        asked: &[SecretRef],
        settings: &SecretsSettings,
        audience: Audience<'_>,
    ) -> Result<Self, TaskError> {
        let mut all = Vec::new();
        for secret in asked {
            let failed = |why: String| {
                let error = TaskError::Invalid(format!("{NAMED}: {:?}: {why}", secret.name()));
                error.because(Cause::SecretUnavailable)
            };
            let value = match secret {
                SecretRef::File(name) => {
                    let Some(dir) = &settings.dir else {
                        return Err(failed("the operator has set no secrets.dir in runtime.toml".into()));
                    };
                    find(dir, audience.identity.agent(), name).and_then(read).map_err(|e| failed(e.to_string()))?
                }
                SecretRef::Command(name) => {
                    let Some((program, args)) = settings.command.split_first() else {
                        return Err(failed("the operator has set no secrets.command in runtime.toml".into()));
                    };
                    let mut command = Command::new(program);
                    command.args(args).arg(name).envs(audience.environment());
                    run(&mut command).await.map_err(|e| failed(e.to_string()))?
                }
            };
            all.push((secret.name().to_owned(), value));
        }
        Ok(Self(all))
    }

    /// Puts them into a container's directory; their names are for the record.
    pub fn deliver(&self, dir: &RunDir) -> io::Result<Vec<Text>> {
        let deliver = |(name, value): &(String, Zeroizing<Vec<u8>>)| {
            dir.put_secret(name, value).map(|()| Text::from(name.as_str()))
        };
        self.0.iter().map(deliver).collect()
    }
}

/// The agent's own, `agents/DOMAIN/PATH/NAME`, else everybody's, `everyone/NAME`; what lies elsewhere in the directory is
/// nobody's. An own one that cannot be read is not replaced by everybody's.
fn find(dir: &Path, agent: Option<&AgentId>, name: &str) -> io::Result<File> {
    // An agent's name has no empty, dot or encoded segment, so it leads down.
    let own = agent.map(|agent| dir.join("agents").join(agent.to_string().trim_start_matches("spiffe://")).join(name));
    for path in own.iter().chain([&dir.join("everyone").join(name)]) {
        match File::open(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            opened => return opened,
        }
    }
    let why = match agent {
        Some(agent) => format!("secrets.dir has none of that name for agent {agent}, and none for everyone"),
        None => "secrets.dir has none of that name for everyone, and no agent is named".into(),
    };
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}

/// All of it, into memory that is wiped and never moved.
fn read(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(Vec::with_capacity(LARGEST as usize + 1));
    source.take(LARGEST + 1).read_to_end(&mut value)?;
    match value.len() as u64 > LARGEST {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {LARGEST} bytes"))),
        false => Ok(value),
    }
}

/// What a provider prints. It has its own stderr nowhere: what it says of a secret is nobody's to read.
async fn run(command: &mut Command) -> io::Result<Zeroizing<Vec<u8>>> {
    // A group of its own, which is killed with it: what it leaves behind may hold its stdout for ever.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = reaper::spawn(command)?;
    let pid = child.id() as i32;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("it has no stdout"))?;
    let value = tokio::task::spawn_blocking(move || read(stdout));
    let ended = tokio::time::timeout(PATIENCE, async { (value.await, reaper::exit_of(pid).await) }).await;
    match ended {
        Ok((Ok(value), exit)) if exit.status == 0 => value,
        Ok((_, exit)) => Err(io::Error::other(format!("its provider ended with status {}", exit.status))),
        Err(_) => {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            Err(io::Error::other(format!("its provider did not end within {} s", PATIENCE.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use trust::clock::SystemClock;
    use trust::identity::registry::Registry;
    use trust::identity::replay::SeenTokens;
    use trust::identity::token::Rules;
    use trust::identity::{self, Binder, Claim, Permission};

    use super::*;

    #[test]
    fn a_list_of_references_is_read_or_what_is_wrong_is_named() {
        let file = |name: &str| SecretRef::File(name.into());
        assert_eq!(SecretRef::parse_list("file:a, command:b").unwrap(), [file("a"), SecretRef::Command("b".into())]);
        for (text, expected) in
            [("", "give file:NAME"), ("file:../a", "../a"), ("env:a", "env:a"), ("file:a,command:a", "twice")]
        {
            let error = SecretRef::parse_list(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// Bound as a create binds it, by the operator's word.
    async fn identity(agent: Option<&str>) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        let agents = dir.path().join("agents.d");
        std::fs::create_dir(&agents).unwrap();
        std::fs::set_permissions(&agents, PermissionsExt::from_mode(0o755)).unwrap();
        if let Some(agent) = agent {
            std::fs::write(agents.join("a.toml"), format!("spiffe_id = \"{agent}\"\n")).unwrap();
        }
        let settings = identity::Settings {
            anonymous: Permission::Allow,
            operator: Permission::Allow,
            tokens: Rules::new("creto:n"),
        };
        let (source, clock) = (Box::new(Registry::new(agents)), Arc::new(SystemClock));
        let binder = Binder { source, seen: SeenTokens::new(dir.path()), clock, settings };
        let (agent, backend) = (agent.map(|agent| agent.parse().unwrap()), "gvisor".parse().unwrap());
        binder.bind(Claim { agent: agent.as_ref(), token: None, backend: &backend }).await.unwrap()
    }

    async fn resolve(text: &str, settings: &SecretsSettings, agent: Option<&str>) -> Result<Vec<String>, String> {
        let asked = SecretRef::parse_list(text).unwrap();
        let sandbox = Sandbox { id: "box".parse().unwrap(), namespace: "ns".parse().unwrap() };
        let audience = Audience { identity: &identity(agent).await, sandbox: &sandbox };
        let got = Secrets::resolve(&asked, settings, audience).await.map_err(|e| e.to_string())?;
        Ok(got.0.iter().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value))).collect())
    }

    const AGENT: &str = "spiffe://example.org/agents/a";

    #[tokio::test(flavor = "current_thread")]
    async fn values_come_from_where_the_operator_says_and_nowhere_else() {
        let _alone = reaper::ALONE.lock().await;
        let reaping = tokio::spawn(reaper::run());
        let dir = tempfile::tempdir().unwrap();
        let everyone = dir.path().join("everyone");
        std::fs::create_dir(&everyone).unwrap();
        std::fs::write(everyone.join("db"), "hunter2").unwrap();
        std::fs::write(everyone.join("huge"), vec![b'x'; LARGEST as usize + 1]).unwrap();
        let script = "test $0 = token && printf \"$CRETO_AGENT|$CRETO_AGENT_PROOF|$CRETO_SANDBOX|$CRETO_NAMESPACE\"";
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let settings = SecretsSettings { dir: Some(dir.path().to_owned()), command };
        for (agent, told) in [(None, "|none|box|ns".to_owned()), (Some(AGENT), format!("{AGENT}|operator|box|ns"))] {
            let got = resolve("file:db,command:token", &settings, agent).await.unwrap();
            assert_eq!(got, ["db=hunter2".to_owned(), format!("token={told}")]);
        }
        let none = SecretsSettings::default();
        for (text, settings, expected) in [
            ("file:missing", &settings, "missing"),
            ("file:huge", &settings, "longer than"),
            ("command:other", &settings, "status 1"),
            ("file:db", &none, "secrets.dir"),
            ("command:token", &none, "secrets.command"),
        ] {
            let error = resolve(text, settings, None).await.unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
        }
        reaping.abort();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_secret_is_its_agents_or_everyones_and_else_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("everyone/db", "everyone's"),
            ("agents/example.org/agents/a/db", "a's"),
            ("agents/example.org/agents/a/key", "a's"),
            ("agents/example.org/agents/b/key", "b's"),
            ("loose", "nobody's"),
            ("agents/loose", "nobody's"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let settings = SecretsSettings { dir: Some(dir.path().to_owned()), command: vec![] };
        let b = "spiffe://example.org/agents/b";
        for (agent, name, expected) in [
            (None, "db", Ok("everyone's")),
            (None, "key", Err("no agent is named")),
            (None, "loose", Err("no agent is named")),
            (Some(AGENT), "db", Ok("a's")),
            (Some(AGENT), "key", Ok("a's")),
            (Some(b), "key", Ok("b's")),
            (Some(b), "db", Ok("everyone's")),
            (Some(b), "loose", Err("none of that name for agent")),
            (Some("spiffe://example.org/agents"), "a", Err("directory")),
            (Some("spiffe://example.org/agents/a/key"), "db", Ok("everyone's")),
            (Some("spiffe://example.com/agents/a"), "key", Err("none of that name for agent")),
        ] {
            let got = resolve(&format!("file:{name}"), &settings, agent).await;
            match expected {
                Ok(value) => assert_eq!(got, Ok(vec![format!("{name}={value}")]), "{agent:?}"),
                Err(why) => assert!(got.as_ref().is_err_and(|error| error.contains(why)), "{agent:?} {name}: {got:?}"),
            }
        }
    }
}
