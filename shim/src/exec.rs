//! Further processes in a running container: registered by Exec, run by Start.

use std::sync::Arc;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task as ev;

use crate::backend::gvisor::Target;
use crate::backend::gvisor::capabilities::Capabilities;
use crate::error::TaskError;
use crate::stdio;
use crate::task::Phase;
use crate::tasks::{Key, Pod, Process};

/// The part of an OCI process (`process` in config.json) that an exec needs.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecProcess {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value` each.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Whom it runs as.
    #[serde(default)]
    pub user: User,
    /// What it may do.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Set-uid bits have no effect.
    #[serde(default)]
    pub no_new_privileges: bool,
}

/// `process.user` of config.json.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
}

impl ExecProcess {
    /// Parses the spec of an Exec request; an error names the field.
    pub fn parse(json: &[u8]) -> Result<Self, TaskError> {
        let process: Self =
            serde_json::from_slice(json).map_err(|e| TaskError::Invalid(format!("the exec's process spec: {e}")))?;
        if process.args.is_empty() {
            return Err(TaskError::Invalid("the exec's process spec: args is empty; name a program".into()));
        }
        if let Err(name) = process.capabilities.masks() {
            return Err(TaskError::Invalid(format!("the exec's process spec: {name:?} is no capability")));
        }
        Ok(process)
    }

    /// What is run.
    pub fn program(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }
}

/// Exec: nothing runs yet.
pub fn register(pod: &Pod, req: ExecProcessRequest) -> Result<(), TaskError> {
    let init = Key::init(&req.id);
    let (phase, bundle, owner) = pod.with(&init, |p| (p.phase, p.bundle.clone(), p.stdio.owner))?;
    if phase != Phase::Running {
        return Err(TaskError::WrongPhase { verb: "exec in", what: init.to_string(), phase });
    }
    if req.exec_id.is_empty() {
        return Err(TaskError::Invalid("exec_id is empty; give the exec a name".into()));
    }
    let key = Key { id: req.id, exec: req.exec_id };
    if pod.has(&key) {
        return Err(TaskError::AlreadyExists(key.to_string()));
    }
    let spec = ExecProcess::parse(&req.spec.value)?;
    let stdio =
        stdio::Request { stdin: req.stdin, stdout: req.stdout, stderr: req.stderr, terminal: req.terminal, owner };
    let mut process = Process::new(stdio, bundle);
    process.exec = Some(spec);
    pod.insert(key.clone(), process);
    let event = ev::TaskExecAdded { container_id: key.id, exec_id: key.exec, ..Default::default() };
    pod.events.publish("/tasks/exec-added", &event);
    Ok(())
}

/// Start of an exec; its phase is `Starting`.
pub async fn start(pod: &Arc<Pod>, key: &Key) -> Result<(), TaskError> {
    let pid = pod.with(&Key::init(&key.id), |p| p.pid)?;
    let (request, spec) = pod.with(key, |p| (p.stdio.clone(), p.exec.take()))?;
    let spec = spec.ok_or_else(|| TaskError::NotFound(key.to_string()))?;
    let (fds, mut io) =
        stdio::open(&request, &pod.namespace, &key.id).await.map_err(|e| TaskError::host("opening stdio", e))?;
    let typed = io.typed_signals();
    pod.with(key, |p| p.io = io)?;
    let inner_pid = pod.sandbox.exec(&key.id, &spec, request.terminal, &fds).await?;
    drop(fds); // our copies would keep its output from ending
    pod.with(key, |p| (p.pid, p.inner_pid) = (pid, inner_pid))?;
    let (pod, key) = (pod.clone(), key.clone());
    if let Some(mut typed) = typed {
        let (pod, id) = (pod.clone(), key.id.clone());
        tokio::spawn(async move {
            while let Some(signal) = typed.recv().await {
                let _ = pod.sandbox.signal(&id, Target::Foreground(inner_pid), signal as u32).await; // it may be gone
            }
        });
    }
    pod.clone().heed(key.clone(), async move { pod.sandbox.exec_exit(&key.id, inner_pid).await });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_process_spec_is_named() {
        for (json, expected) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"args":["a"]}"#, "cwd"),
            (r#"{"args":[],"cwd":"/"}"#, "args is empty"),
            (r#"{"args":["a"],"cwd":"/","capabilities":{"bounding":["CAP_FLY"]}}"#, "CAP_FLY"),
            (r#"{"args":["a"],"cwd":"/","user":{"uid":-1}}"#, "-1"),
        ] {
            let error = ExecProcess::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
