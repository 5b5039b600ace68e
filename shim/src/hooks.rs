//! OCI hooks that run on the host: prestart and createRuntime after the sandbox is made, poststart, poststop. The shim
//! runs them, not runsc, for they are told the container's own id and bundle, which runsc does not know.
//! Source: OCI runtime-spec config.md "POSIX-platform Hooks", runtime.md "State".

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::TaskError;
use crate::reaper;

/// For a hook that names none: longer than any CNI plugin takes, shorter than a caller waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// So much of what a failed hook wrote is passed on.
const LAST_WORDS: usize = 2000;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After the sandbox is made, before Create answers; a failure undoes the create.
    Created,
    /// After the workload's start; a failure is logged.
    Started,
    /// After the container was deleted; a failure is logged.
    Stopped,
}

/// A container's hooks, and what they are told.
#[derive(Debug, Default)]
pub struct Hooks {
    created: Vec<Hook>,
    started: Vec<Hook>,
    stopped: Vec<Hook>,
    state: Value,
}

#[derive(Debug, Deserialize)]
struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<u64>,
}

impl Hooks {
    /// Takes the hooks out of a spec, so that runsc does not run them as well.
    pub fn take(spec: &mut Value, id: &str, bundle: &Path) -> Result<Self, TaskError> {
        let state = json!({
            "ociVersion": spec.get("ociVersion").unwrap_or(&json!("1.2.0")), "id": id, "bundle": bundle,
            "annotations": spec.get("annotations").unwrap_or(&json!({})),
        });
        let mut of = |kind: &str| -> Result<Vec<Hook>, TaskError> {
            let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut) else { return Ok(Vec::new()) };
            let Some(list) = hooks.remove(kind).filter(|list| !list.is_null()) else { return Ok(Vec::new()) };
            serde_json::from_value(list).map_err(|e| TaskError::Invalid(format!("config.json: hooks.{kind}: {e}")))
        };
        let mut created = of("prestart")?;
        created.extend(of("createRuntime")?);
        Ok(Self { created, started: of("poststart")?, stopped: of("poststop")?, state })
    }

    /// Runs the hooks of one moment, in order; `scratch` is a directory for what passes between us and them.
    pub async fn run(&self, moment: Moment, pid: i32, scratch: &Path) -> Result<(), TaskError> {
        let (hooks, status) = match moment {
            Moment::Created => (&self.created, "creating"),
            Moment::Started => (&self.started, "running"),
            Moment::Stopped => (&self.stopped, "stopped"),
        };
        for hook in hooks {
            let failed = |why: String| TaskError::host(format!("hook {}", hook.path.display()), why);
            let io = |e: std::io::Error| failed(e.to_string());
            let (state, log) = (scratch.join("hook.state"), scratch.join("hook.log"));
            let mut told = self.state.clone();
            told["pid"] = json!(pid);
            told["status"] = json!(status);
            fs::create_dir_all(scratch).map_err(io)?;
            fs::write(&state, told.to_string()).map_err(io)?;
            let output = File::create(&log).map_err(io)?;
            let mut command = hook.command();
            command.stdin(File::open(&state).map_err(io)?).stdout(output.try_clone().map_err(io)?).stderr(output);
            let child = reaper::spawn(&mut command).map_err(io)?.id() as i32;
            let patience = hook.timeout.map_or(PATIENCE, Duration::from_secs);
            let Ok(exit) = tokio::time::timeout(patience, reaper::exit_of(child)).await else {
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                return Err(failed(format!("it did not end within {} s", patience.as_secs())));
            };
            if exit.status != 0 {
                let text = fs::read(&log).unwrap_or_default();
                let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LAST_WORDS)..]).trim().to_owned();
                return Err(failed(format!("exit status {}: {text}", exit.status)));
            }
        }
        Ok(())
    }
}

impl Hook {
    /// With its own environment and no other; `args` starts with the program's own name.
    fn command(&self) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.path);
        if let Some((name, args)) = self.args.split_first() {
            command.arg0(name).args(args);
        }
        command.env_clear().envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        command
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn hooks_are_told_the_state_and_a_failing_one_is_named_with_its_words() {
        let _alone = reaper::ALONE.lock().await;
        let reaping = tokio::spawn(reaper::run());
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let mut spec = json!({"hooks": {
            "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {}", told.display())]}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", "echo $WHY >&2; exit 3"], "env": ["WHY=no route"]}],
            "createContainer": [{"path": "/bin/true"}],
        }});
        let hooks = Hooks::take(&mut spec, "c1", Path::new("/bundle")).unwrap();
        assert_eq!(spec["hooks"], json!({"createContainer": [{"path": "/bin/true"}]}), "the rest is runsc's");
        hooks.run(Moment::Created, 42, dir.path()).await.unwrap();
        let state: Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["pid"], &state["bundle"]), (&json!("c1"), &json!(42), &json!("/bundle")));
        let error = hooks.run(Moment::Stopped, 0, dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains("no route"), "{error}");
        let bad = Hooks::take(&mut json!({"hooks": {"poststart": [{}]}}), "c1", Path::new("/b")).unwrap_err();
        assert!(bad.to_string().contains("hooks.poststart"), "{bad}");
        reaping.abort();
    }

    proptest! {
        #[test]
        fn no_hook_that_we_run_is_left_to_runsc(spec in crate::arbitrary::altered(json!({
            "ociVersion": "1.2.0", "annotations": {"a": "b"},
            "hooks": {
                "prestart": [{"path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 3}],
                "createRuntime": [{"path": "/h"}], "poststart": [{"path": "/h"}], "poststop": [{"path": "/h"}],
                "createContainer": [{"path": "/theirs"}],
            },
        }))) {
            let (mut left, before) = (spec.clone(), spec);
            match Hooks::take(&mut left, "c1", Path::new("/bundle")) {
                Ok(_) => {
                    for ours in ["prestart", "createRuntime", "poststart", "poststop"] {
                        prop_assert!(left.pointer(&format!("/hooks/{ours}")).is_none(), "{before} {left}");
                    }
                    let theirs = "/hooks/createContainer";
                    prop_assert_eq!(left.pointer(theirs), before.pointer(theirs));
                }
                Err(error) => prop_assert!(error.to_string().starts_with("config.json: hooks."), "{error}"),
            }
        }
    }
}
