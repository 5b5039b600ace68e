//! One plugin: a program that reads its configuration and says what it did, or why not, in JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use trust::id::SandboxId;

use super::conflist::{Conflist, Verb};
use super::netns;

/// Where plugins look for iptables and the like, when the agent has no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a plugin did not do it.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is no such program.
    #[error(
        "CNI plugin {plugin} is in none of {dirs:?}: install the CNI plugins (Debian: containernetworking-plugins), or say where they are"
    )]
    Missing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// It says why it failed.
    #[error("CNI plugin {plugin} ({verb}): {msg} (code {code}){}", separated(.details))]
    Failed {
        /// Its name.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// CNI's number of the failure: below 100 the specification's, else the plugin's.
        code: u64,
        /// What it says.
        msg: String,
        /// What else it says.
        details: String,
    },
    /// It was not started, did not end in time, or answered something else.
    #[error("CNI plugin {plugin} ({verb}): {why}")]
    Broken {
        /// Its name.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// What was seen.
        why: String,
    },
}

fn separated(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(": {details}") }
}

/// What all plugins of a chain are told.
pub(super) struct Call<'a> {
    pub id: &'a SandboxId,
    pub netns: &'a Path,
    pub interface: &'a str,
    pub dirs: &'a [PathBuf],
    pub within: Duration,
}

impl Call<'_> {
    /// Runs a network's plugins in turn. ADD hands each the result of the one before it, and gives the last; DEL hands all the same.
    pub async fn chain(&self, verb: Verb, of: &Conflist, before: Option<&Value>) -> Result<Option<Value>, PluginError> {
        let mut result = before.cloned();
        for (plugin, mut config) in of.steps(verb) {
            if let Some(result) = &result {
                config["prevResult"] = result.clone();
            }
            let answer = self.run(verb, plugin, &config).await?;
            if verb == Verb::Add {
                result = Some(answer);
            }
        }
        Ok(result)
    }

    async fn run(&self, verb: Verb, plugin: &str, config: &Value) -> Result<Value, PluginError> {
        let broken = |why: String| PluginError::Broken { plugin: plugin.to_owned(), verb: verb.name(), why };
        let program = self.dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        let missing = || PluginError::Missing { plugin: plugin.to_owned(), dirs: self.dirs.to_owned() };
        let ran = tokio::time::timeout(self.within, self.ask(verb, &program.ok_or_else(missing)?, config)).await;
        let output = match ran {
            Ok(output) => output.map_err(|error| broken(error.to_string()))?,
            Err(_) => return Err(broken(format!("no answer within {}", humantime::format_duration(self.within)))),
        };
        if output.status.success() {
            return match (verb, serde_json::from_slice(&output.stdout)) {
                (Verb::Add, answer) => answer.map_err(|error| broken(format!("its answer is no JSON: {error}"))),
                (Verb::Del, _) => Ok(Value::Null), // says nothing
            };
        }
        Err(match serde_json::from_slice::<Failure>(&output.stdout) {
            Ok(Failure { code, msg, details }) => {
                PluginError::Failed { plugin: plugin.to_owned(), verb: verb.name(), code, msg, details }
            }
            Err(_) => {
                let said =
                    String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
                broken(format!("{}: {}", output.status, said.trim()))
            }
        })
    }

    async fn ask(&self, verb: Verb, program: &Path, config: &Value) -> io::Result<std::process::Output> {
        let netns = if verb == Verb::Add || netns::is_there(self.netns) { self.netns } else { Path::new("") };
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
        command.env("CNI_COMMAND", verb.name()).env("CNI_CONTAINERID", self.id.to_string()).env("CNI_NETNS", netns);
        command.env("CNI_IFNAME", self.interface);
        command.env("CNI_PATH", std::env::join_paths(self.dirs).map_err(io::Error::other)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(config.to_string().as_bytes()).await {
                // It has ended without reading: its answer says why.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output().await
    }
}

/// How a plugin says that it failed.
#[derive(Deserialize)]
struct Failure {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    /// Plugins that are shell scripts, and a call to them.
    struct Plugins(tempfile::TempDir);

    impl Plugins {
        fn new(scripts: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, script) in scripts {
                let path = dir.path().join(name);
                fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self(dir)
        }

        async fn call(
            &self,
            verb: Verb,
            plugins: &[&str],
            before: Option<&Value>,
        ) -> Result<Option<Value>, PluginError> {
            let plugins: Vec<Value> = plugins.iter().map(|plugin| json!({"type": plugin})).collect();
            let conflist = Conflist::try_from(json!({"name": "n", "cniVersion": "1.0.0", "plugins": plugins})).unwrap();
            let id: SandboxId = "c1".parse().unwrap();
            let dirs = ["/nowhere".into(), self.0.path().to_owned()];
            let netns = self.0.path().join("netns");
            let call = Call { id: &id, netns: &netns, interface: "eth0", dirs: &dirs, within: Duration::from_secs(60) };
            call.chain(verb, &conflist, before).await
        }

        fn log(&self) -> String {
            fs::read_to_string(self.0.path().join("log")).unwrap_or_default()
        }
    }

    /// Writes down what it is told, and answers with its own name.
    const TELLS: &str = r#"read -r config; echo "$(basename $0) $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(basename "$CNI_NETNS") $config" >> log
        echo "{\"from\":\"$(basename $0)\"}""#;

    #[tokio::test]
    async fn a_chain_hands_results_on_and_is_taken_back_in_reverse() {
        let plugins = Plugins::new(&[("a", TELLS), ("b", TELLS)]);
        let result = plugins.call(Verb::Add, &["a", "b"], None).await.unwrap();
        assert_eq!(result, Some(json!({"from": "b"})));
        // Of a namespace that was just being removed when its agent was killed the file is left.
        fs::write(plugins.0.path().join("netns"), "").unwrap();
        plugins.call(Verb::Del, &["a", "b"], result.as_ref()).await.unwrap();
        let lines = [
            r#"a ADD c1 eth0 netns {"cniVersion":"1.0.0","name":"n","type":"a"}"#,
            r#"b ADD c1 eth0 netns {"cniVersion":"1.0.0","name":"n","prevResult":{"from":"a"},"type":"b"}"#,
            // The namespace is gone: DEL is told so by an empty path.
            r#"b DEL c1 eth0  {"cniVersion":"1.0.0","name":"n","prevResult":{"from":"b"},"type":"b"}"#,
            r#"a DEL c1 eth0  {"cniVersion":"1.0.0","name":"n","prevResult":{"from":"b"},"type":"a"}"#,
        ];
        assert_eq!(plugins.log().lines().collect::<Vec<_>>(), lines);
    }

    #[tokio::test]
    async fn a_plugin_that_fails_is_named_with_its_own_words() {
        let plugins = Plugins::new(&[
            (
                "says",
                r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"no address left"}'; exit 1"#,
            ),
            ("dies", "echo 'boom' >&2; exit 3"),
            ("babbles", "echo hello"),
        ]);
        for (plugin, words) in [
            ("says", vec!["says (ADD)", "try later", "code 11", "no address left"]),
            ("dies", vec!["dies (ADD)", "exit status: 3", "boom"]),
            ("babbles", vec!["babbles (ADD)", "no JSON"]),
            ("absent", vec!["absent", "/nowhere", "containernetworking-plugins"]),
        ] {
            let error = plugins.call(Verb::Add, &[plugin], None).await.unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{plugin}: {error}");
        }
    }
}
