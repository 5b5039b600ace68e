//! The command of a sandbox that was held: started in it once it is bound, and its end is the sandbox's. The shim runs it, as one more
//! process of the container; its output goes to the sandbox's log.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use trust::id::SandboxId;

use crate::ending::{Manner, end};
use crate::pool::member::Input;
use crate::ports::Ports;
use crate::shim::{Exec, Process, Shim, ShimError};
use crate::spec::{AbsolutePath, User};

/// The id of the command among the container's processes.
pub const MAIN: &str = "main";
/// A command may run for as long as it likes; its shim is asked anew so often.
const LOOK: Duration = Duration::from_secs(24 * 3600);

/// What is to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Beside the image's and the template's environment.
    pub env: BTreeMap<String, String>,
    /// Instead of the image's and the template's directory.
    pub cwd: Option<AbsolutePath>,
    /// Instead of the image's and the template's user: numbers.
    pub user: Option<User>,
}

/// Why a command does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the container was made with is not to be read.
    #[error("the container's config.json: {0}")]
    Config(String),
    /// A name would have to be looked up in the image.
    #[error("user {0}: a command that is run in a sandbox takes numbers, UID or UID:GID")]
    User(String),
    /// The shim says no, or does not answer.
    #[error(transparent)]
    Shim(#[from] ShimError),
}

/// A command that its sandbox's shim knows, and that nothing of runs.
#[must_use = "it does not run before it is started"]
pub struct Registered {
    /// An earlier agent had it registered, and may have started it before it was killed.
    before: bool,
}

/// Tells the sandbox's shim of its command. Nothing of it runs before [`start`]: this may go beside what must come before that.
pub async fn register(ports: &Ports, shim: &Shim, id: &SandboxId, command: &Command) -> Result<Registered, RunError> {
    let spec = process(&config(ports, id)?, command, false)?;
    let log = format!("file://{}", ports.log(id).display());
    let id = id.to_string();
    let main = Process { id: &id, exec: MAIN };
    let exec = Exec { process: main, spec: &spec, stdin: "", stdout: &log, stderr: &log, terminal: false };
    match shim.exec(&exec).await {
        Err(ShimError::AlreadyExists(_)) => Ok(Registered { before: true }),
        made => Ok(made.map(|()| Registered { before: false })?),
    }
}

/// Starts the sandbox's command, once.
pub async fn start(shim: &Shim, id: &SandboxId, Registered { before }: Registered) -> Result<(), RunError> {
    match shim.start(Process { id: &id.to_string(), exec: MAIN }).await {
        Err(ShimError::Refused(_)) if before => Ok(()), // it runs, or has ended
        started => Ok(started.map(drop)?),
    }
}

/// Ends the sandbox when its command does. Also for one that an earlier agent has started; then nobody has its shim yet.
pub fn watch(ports: &Arc<Ports>, shim: Option<Shim>, id: &SandboxId) {
    let (ports, id) = (ports.clone(), id.clone());
    tokio::spawn(async move {
        let (text, mut known) = (id.to_string(), shim);
        let exit = loop {
            let shim = match known.take() {
                Some(shim) => Ok(shim),
                None => ports.shim(&id).await,
            };
            let Ok(shim) = shim else { return }; // it is gone, and the events say so
            match shim.wait(Process { id: &text, exec: MAIN }, LOOK).await {
                Ok(exit) => break exit,
                Err(ShimError::Late(_)) => {}
                Err(_) => return, // there is no command, or no sandbox any more
            }
        };
        ports.exits.note(&id, exit.status);
        let Some(hand) = ports.hands.take(&id) else { return }; // somebody ends it already
        let input = Input::ended("completed", format!("its command has ended with {}", exit.status));
        if let Err(error) = end(&ports, &hand, input, Manner::Forced).await {
            tracing::warn!(sandbox = %id, %error, "its command has ended");
        }
    });
}

/// The spec that the container was made with.
pub fn config(ports: &Ports, id: &SandboxId) -> Result<Value, RunError> {
    let containerd = &ports.config.containerd;
    let bundle =
        containerd.state.join("io.containerd.runtime.v2.task").join(&containerd.namespace).join(id.to_string());
    let bytes = fs::read(bundle.join("config.json")).map_err(|e| RunError::Config(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| RunError::Config(e.to_string()))
}

/// `process` of one more process: as the container's own, but for what is asked (OCI runtime-spec, config.md#process).
pub fn process(config: &Value, command: &Command, terminal: bool) -> Result<Value, RunError> {
    let mut process = config["process"].clone();
    if !process.is_object() {
        return Err(RunError::Config("it has no process".into()));
    }
    process["args"] = json!(command.args);
    process["terminal"] = json!(terminal);
    let mut env: Vec<String> = serde_json::from_value(process["env"].clone()).unwrap_or_default();
    env.retain(|entry| entry.split_once('=').is_none_or(|(name, _)| !command.env.contains_key(name)));
    env.extend(command.env.iter().map(|(name, value)| format!("{name}={value}")));
    process["env"] = json!(env);
    if let Some(cwd) = &command.cwd {
        process["cwd"] = json!(cwd.as_str());
    }
    if let Some(user) = &command.user {
        let mut numbers = user.as_str().split(':').map(str::parse::<u32>);
        let (uid, gid) = match (numbers.next(), numbers.next()) {
            (Some(Ok(uid)), None) => (uid, uid),
            (Some(Ok(uid)), Some(Ok(gid))) => (uid, gid),
            _ => return Err(RunError::User(user.to_string())),
        };
        process["user"] = json!({ "uid": uid, "gid": gid });
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_as_the_containers_own_but_for_what_is_asked() {
        let config = json!({"process": {
            "args": ["/.creto/hold"], "cwd": "/app", "env": ["PATH=/bin", "A=1"], "user": {"uid": 7, "gid": 8},
            "noNewPrivileges": true, "capabilities": {"bounding": []}
        }});
        let mut command = Command { args: vec!["sh".into()], ..Command::default() };
        let mut expected = config["process"].clone();
        expected["args"] = json!(["sh"]);
        expected["terminal"] = json!(false);
        assert_eq!(process(&config, &command, false).unwrap(), expected);
        command.env = BTreeMap::from([("A".into(), "2".into()), ("B".into(), "x=y".into())]);
        command.cwd = Some("/tmp".parse().unwrap());
        command.user = Some("1000:5".parse().unwrap());
        let told = process(&config, &command, true).unwrap();
        assert_eq!(told["env"], json!(["PATH=/bin", "A=2", "B=x=y"]));
        assert_eq!((&told["cwd"], &told["user"]), (&json!("/tmp"), &json!({"uid": 1000, "gid": 5})));
        assert_eq!((&told["terminal"], &told["noNewPrivileges"]), (&json!(true), &json!(true)));
        command.user = Some("root".parse().unwrap());
        assert!(process(&config, &command, false).unwrap_err().to_string().contains("takes numbers"));
        assert!(process(&json!({}), &Command::default(), false).is_err());
    }
}
