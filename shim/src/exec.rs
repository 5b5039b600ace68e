//! Further processes in a running container: registered by Exec, run by Start.

use std::sync::Arc;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use trust::audit::Event;

use crate::backend::gvisor::capabilities::Capabilities;
use crate::create;
use crate::error::TaskError;
use crate::harden::ForExecs;
use crate::stdio;
use crate::task::Phase;
use crate::tasks::{Key, Pod, Process};

/// The part of an OCI process (`process` in config.json) that an exec needs.
#[derive(Debug, Default, Deserialize, Serialize)]
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
    /// All of it, hardened, for a downstream shim.
    #[serde(skip)]
    pub spec: Any,
}

/// `process.user` of config.json.
#[derive(Debug, Default, Deserialize, Serialize)]
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
    pub fn parse(spec: &Any, for_execs: Option<&ForExecs>) -> Result<Self, TaskError> {
        let invalid = |e| TaskError::Invalid(format!("the exec's process spec: {e}"));
        let mut asked: Value = serde_json::from_slice(&spec.value).map_err(invalid)?;
        if let Some(for_execs) = for_execs {
            asked = for_execs.harden(asked)?;
        }
        let mut process = Self::deserialize(&asked).map_err(invalid)?;
        if process.args.is_empty() {
            return Err(TaskError::Invalid("the exec's process spec: args is empty; name a program".into()));
        }
        if let Err(name) = process.capabilities.masks() {
            return Err(TaskError::Invalid(format!("the exec's process spec: {name:?} is no capability")));
        }
        process.spec = Any { value: asked.to_string().into_bytes(), ..spec.clone() };
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
    let (phase, bundle, owner, for_execs) =
        pod.with(&init, |p| (p.phase, p.bundle.clone(), p.stdio.owner, p.for_execs.clone()))?;
    if phase != Phase::Running {
        return Err(TaskError::WrongPhase { verb: "exec in", what: init.to_string(), phase });
    }
    create::named("exec_id", &req.exec_id)?;
    let key = Key { id: req.id, exec: req.exec_id };
    if pod.has(&key) {
        return Err(TaskError::AlreadyExists(key.to_string()));
    }
    let spec = ExecProcess::parse(&req.spec, for_execs.as_deref())?;
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
    let (request, spec) = pod.with(key, |p| (p.stdio.clone(), p.exec.take()))?;
    let spec = spec.ok_or_else(|| TaskError::NotFound(key.to_string()))?;
    let made = pod.backend()?.exec(key, &spec, &request).await?;
    pod.with(key, |p| (p.pid, p.io) = (made.pid, made.io))?;
    if let Some(bound) = pod.bound() {
        let (exec, program) = (key.exec.as_str().into(), spec.program().into());
        bound.record(vec![Event::ExecStarted { exec, program, terminal: request.terminal }]);
    }
    pod.heed(key.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

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
            let spec = Any { value: json.into(), ..Default::default() };
            let error = ExecProcess::parse(&spec, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_process_that_is_accepted_has_a_program_and_known_capabilities(spec in crate::arbitrary::altered(json!({
            "args": ["sh", "-c"], "env": ["A=b"], "cwd": "/", "user": {"uid": 0, "gid": 0, "additionalGids": [1]},
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": []}, "noNewPrivileges": true, "terminal": true,
        }))) {
            let spec = Any { value: spec.to_string().into_bytes(), ..Default::default() };
            match ExecProcess::parse(&spec, None) {
                Ok(process) => prop_assert!(!process.args.is_empty() && process.capabilities.masks().is_ok()),
                Err(error) => prop_assert!(error.to_string().starts_with("the exec's process spec: "), "{error}"),
            }
        }
    }
}
