//! Secrets for a workload: named by the request, looked up where the operator says, delivered as files that only the
//! workload reads. Their values are in no spec, environment, log, statement or record, and are wiped from memory after use.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use trust::audit::record::Text;
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
const ANNOTATION: &str = "creto.dev/secrets";

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
            TaskError::Invalid(format!("annotation {ANNOTATION}: {part:?}: {rule}"))
        };
        let parse = |part: &str| match part.trim().split_once(':') {
            Some(("file", name)) if is_identifier(name) => Ok(Self::File(name.to_owned())),
            Some(("command", name)) if is_identifier(name) => Ok(Self::Command(name.to_owned())),
            _ => Err(invalid(part)),
        };
        let all: Vec<_> = text.split(',').map(parse).collect::<Result<_, _>>()?;
        for (n, secret) in all.iter().enumerate() {
            if all[..n].iter().any(|other| other.name() == secret.name()) {
                return Err(TaskError::Invalid(format!("annotation {ANNOTATION}: {:?} is named twice", secret.name())));
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

/// Secrets with their values.
#[derive(Default)]
pub struct Secrets(Vec<(String, Zeroizing<Vec<u8>>)>);

impl Secrets {
    /// Looks each up; one that is not there is an error that names it, and never what it might have been.
    pub async fn resolve(asked: &[SecretRef], settings: &SecretsSettings) -> Result<Self, TaskError> {
        let mut all = Vec::new();
        for secret in asked {
            let failed =
                |why: String| TaskError::Invalid(format!("annotation {ANNOTATION}: {:?}: {why}", secret.name()));
            let value = match secret {
                SecretRef::File(name) => {
                    let Some(dir) = &settings.dir else {
                        return Err(failed("the operator has set no secrets.dir in runtime.toml".into()));
                    };
                    File::open(dir.join(name)).and_then(read).map_err(|e| failed(e.to_string()))?
                }
                SecretRef::Command(name) => {
                    let Some((program, args)) = settings.command.split_first() else {
                        return Err(failed("the operator has set no secrets.command in runtime.toml".into()));
                    };
                    run(Command::new(program).args(args).arg(name)).await.map_err(|e| failed(e.to_string()))?
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

    #[tokio::test(flavor = "current_thread")]
    async fn values_come_from_where_the_operator_says_and_nowhere_else() {
        let _alone = reaper::ALONE.lock().await;
        let reaping = tokio::spawn(reaper::run());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("db"), "hunter2").unwrap();
        std::fs::write(dir.path().join("huge"), vec![b'x'; LARGEST as usize + 1]).unwrap();
        let command = ["sh", "-c", "test $0 = token && printf s3cret"].map(str::to_owned).to_vec();
        let settings = SecretsSettings { dir: Some(dir.path().to_owned()), command };
        let resolve = async |text: &str, settings: &SecretsSettings| {
            let asked = SecretRef::parse_list(text).unwrap();
            Secrets::resolve(&asked, settings).await.map_err(|e| e.to_string())
        };
        let got = resolve("file:db,command:token", &settings).await.unwrap();
        let values: Vec<_> = got.0.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        assert_eq!(values, [("db", &b"hunter2"[..]), ("token", b"s3cret")]);
        let none = SecretsSettings::default();
        for (text, settings, expected) in [
            ("file:missing", &settings, "missing"),
            ("file:huge", &settings, "longer than"),
            ("command:other", &settings, "status 1"),
            ("file:db", &none, "secrets.dir"),
            ("command:token", &none, "secrets.command"),
        ] {
            let error = resolve(text, settings).await.err().unwrap();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
        }
        reaping.abort();
    }
}
