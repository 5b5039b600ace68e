//! Typed calls over a sandbox's control socket. Source: gVisor `runsc/boot/controller.go`, `pkg/sentry/control/proc.go`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::inside::{File, Results, Setting, Usage};
use super::urpc::{CallError, MISFIT, PROMPT, call};
use crate::exec::ExecProcess;

const EXEC: &str = "containerManager.ExecuteAsync";
const WAIT_PID: &str = "containerManager.WaitPID";
const WAIT: &str = "containerManager.Wait";
const SIGNAL: &str = "containerManager.Signal";
const PAUSE: &str = "containerManager.Pause";
const RESUME: &str = "containerManager.Resume";
const PORT_FORWARD: &str = "containerManager.PortForward";
const READ_GROUPS: &str = "Cgroups.ReadControlFiles";
const WRITE_GROUPS: &str = "Cgroups.WriteControlFiles";
const USAGE: &str = "Usage.Collect";

/// One sandbox's control socket.
#[derive(Clone, Debug)]
pub struct Control(PathBuf);

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The container's init.
    Init,
    /// Every process of the container.
    All,
    /// One process, by its pid inside the sandbox.
    Process(i32),
    /// Those that the terminal of this process is with.
    Foreground(i32),
}

impl Control {
    /// Does not connect yet.
    pub fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// Asks everything of a container that is not there, so that nothing happens: a build that can says so, another says
    /// that it knows no such method or takes something else. Ok is the first method that it cannot, and why.
    pub async fn lacks(&self) -> Result<Option<(&'static str, String)>, CallError> {
        let nobody = "nobody";
        let nothing = ExecProcess { args: vec![nobody.into()], ..ExecProcess::default() };
        let questions = [
            (EXEC, exec_arg(nobody, &nothing, false).map_err(|why| CallError::Nonsense { method: EXEC, why })?),
            (WAIT_PID, wait_pid_arg(nobody, 1)),
            (WAIT, json!(nobody)),
            (SIGNAL, signal_arg(nobody, Target::Process(i32::MAX), 1)),
        ];
        for (method, arg) in questions {
            match call::<_, Value>(&self.0, method, arg, &[], Some(PROMPT)).await {
                Err(CallError::Refused(_)) => {}
                Err(CallError::Unable { method, why } | CallError::Nonsense { method, why }) => {
                    return Ok(Some((method, why)));
                }
                Err(error) => return Err(error),
                Ok(_) => return Ok(Some((method, "it does so for a container that is not there".into()))),
            }
        }
        // These take nothing and name no container. Whoever knows them refuses an argument of another type.
        for method in [PAUSE, RESUME] {
            match call::<_, Value>(&self.0, method, true, &[], Some(PROMPT)).await {
                Err(CallError::Unable { why, .. }) if why.starts_with(MISFIT) => {}
                Err(CallError::Unable { method, why } | CallError::Nonsense { method, why }) => {
                    return Ok(Some((method, why)));
                }
                Err(CallError::Refused(why)) => return Ok(Some((method, why))),
                Err(error) => return Err(error),
                Ok(_) => return Ok(Some((method, "it takes anything".into()))),
            }
        }
        Ok(None)
    }

    /// Starts a process in a container; returns its pid inside the sandbox.
    pub async fn exec(&self, cid: &str, p: &ExecProcess, pty: bool, fds: &[OwnedFd; 3]) -> Result<i32, CallError> {
        let arg = exec_arg(cid, p, pty).map_err(|why| CallError::Nonsense { method: EXEC, why })?;
        let fds = [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()];
        call(&self.0, EXEC, arg, &fds, Some(PROMPT)).await
    }

    /// Waits for an exec; the result is 128 + signal where a signal ended it.
    pub async fn wait_pid(&self, cid: &str, pid: i32) -> Result<u32, CallError> {
        call(&self.0, WAIT_PID, wait_pid_arg(cid, pid), &[], None).await.map(exit_status)
    }

    /// Waits for a container's init.
    pub async fn wait(&self, cid: &str) -> Result<u32, CallError> {
        call(&self.0, WAIT, cid, &[], None).await.map(exit_status)
    }

    /// Signals one process or all of a container.
    pub async fn signal(&self, cid: &str, target: Target, signal: u32) -> Result<(), CallError> {
        let arg = signal_arg(cid, target, signal);
        call::<_, IgnoredAny>(&self.0, SIGNAL, arg, &[], Some(PROMPT)).await.map(drop)
    }

    /// Connects a unix stream with a TCP port of the sandbox's loopback; refused where nobody listens there.
    pub async fn connect(&self, cid: &str, port: u16, stream: OwnedFd) -> Result<(), CallError> {
        let arg = json!({"ContainerID": cid, "Port": port});
        call::<_, IgnoredAny>(&self.0, PORT_FORWARD, arg, &[stream.as_fd()], Some(PROMPT)).await.map(drop)
    }

    /// Reads files of containers' control groups inside; of each its text, or why not.
    pub async fn read_groups(&self, files: &[File]) -> Result<Vec<Result<String, String>>, CallError> {
        let said: Results = call(&self.0, READ_GROUPS, read_arg(files), &[], Some(PROMPT)).await?;
        said.of(READ_GROUPS, files.len())
    }

    /// Writes into such files; of each nothing, or why not.
    pub async fn write_groups(&self, settings: &[Setting]) -> Result<Vec<Result<String, String>>, CallError> {
        let said: Results = call(&self.0, WRITE_GROUPS, json!({"args": settings}), &[], Some(PROMPT)).await?;
        said.of(WRITE_GROUPS, settings.len())
    }

    /// Bytes of files that the sandbox's programs have mapped.
    pub async fn mapped(&self) -> Result<u64, CallError> {
        call::<_, Usage>(&self.0, USAGE, json!({"Full": false}), &[], Some(PROMPT)).await.map(|usage| usage.mapped)
    }

    /// Freezes or thaws the whole sandbox.
    pub async fn pause(&self, pause: bool) -> Result<(), CallError> {
        let method = if pause { PAUSE } else { RESUME };
        call::<_, IgnoredAny>(&self.0, method, (), &[], Some(PROMPT)).await.map(drop)
    }
}

fn exec_arg(cid: &str, p: &ExecProcess, pty: bool) -> Result<Value, String> {
    let capabilities = p.capabilities.masks().map_err(|name| format!("{name:?} is no capability"))?;
    Ok(json!({
        "filename": "", "argv": p.args, "envv": p.env, "wd": p.cwd, "KUID": p.user.uid, "KGID": p.user.gid,
        "ExtraKGIDs": p.user.additional_gids, "Capabilities": capabilities,
        "NoNewPrivileges": p.no_new_privileges, "StdioIsPty": pty, "ContainerID": cid, "GuestFDs": [0, 1, 2],
    }))
}

fn read_arg(files: &[File]) -> Value {
    json!({"args": files.iter().map(|file| json!({"file": file})).collect::<Vec<_>>()})
}

fn wait_pid_arg(cid: &str, pid: i32) -> Value {
    json!({"PID": pid, "CID": cid})
}

/// Modes: gVisor `SignalDeliveryMode`.
fn signal_arg(cid: &str, target: Target, signal: u32) -> Value {
    let (pid, mode) = match target {
        Target::Init => (0, 0),
        Target::All => (0, 1),
        Target::Process(pid) => (pid, 0),
        Target::Foreground(pid) => (pid, 2),
    };
    json!({"CID": cid, "Signo": signal, "PID": pid, "Mode": mode})
}

/// A raw wait status (wait(2)) as a shell's exit status.
fn exit_status(raw: u32) -> u32 {
    match raw & 0x7f {
        0 => (raw >> 8) & 0xff,
        signal => 128 + signal,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use containerd_shim_protos::protobuf::well_known_types::any::Any;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::super::inside::{self, Version};
    use super::super::urpc::{encode, parse};
    use super::*;
    use crate::cgroup::Resources;

    const BUILDS: [&str; 2] = ["runsc-2024", "runsc-2026"];

    fn recordings(build: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/urpc").join(build)
    }

    /// What `scripts/record-urpc` has heard.
    fn recorded(build: &str, name: &str) -> Value {
        let file = recordings(build).join(name).with_extension("json");
        serde_json::from_slice(&fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))).unwrap()
    }

    fn reply(build: &str, name: &str) -> Vec<u8> {
        serde_json::to_vec(&recorded(build, name)["reply"]).unwrap()
    }

    #[test]
    fn wait_statuses_read_like_a_shells() {
        assert_eq!([0, 7 << 8, 9, 15].map(exit_status), [0, 7, 137, 143]);
    }

    #[test]
    fn what_real_builds_answer_is_understood() {
        for build in BUILDS {
            let mut known = BTreeSet::new();
            let mut of = |name: &'static str| {
                known.insert(format!("{name}.json"));
                reply(build, name)
            };
            for name in ["exec", "exec-killed", "exec-terminal"] {
                assert!(parse::<i32>(EXEC, &of(name)).unwrap() > 1, "{build} {name}");
            }
            for (name, status) in [("wait-pid", 7), ("wait-pid-killed", 137), ("wait", 137)] {
                assert_eq!(exit_status(parse(WAIT, &of(name)).unwrap()), status, "{build} {name}");
            }
            for name in ["signal-init", "signal-all", "signal-process", "signal-foreground", "pause", "resume"] {
                parse::<IgnoredAny>(SIGNAL, &of(name)).unwrap_or_else(|e| panic!("{build} {name}: {e}"));
            }
            for (name, expected) in [
                ("exec-missing-program", "no such file or directory"),
                ("exec-unknown-container", "not found"),
                ("wait-unknown-container", "not found"),
                ("wait-pid-unknown-container", "not found"),
                ("wait-pid-gone", "no such process"),
                ("signal-unknown-container", "no such process"),
                ("signal-process-gone", "no such process"),
            ] {
                let refused = parse::<Value>(EXEC, &of(name));
                let why = if let Err(CallError::Refused(why)) = &refused { why.as_str() } else { "" };
                assert!(why.contains(expected), "{build} {name}: {refused:?}");
            }
            for name in [
                "unknown-method",
                "exec-misfit",
                "wait-misfit",
                "wait-pid-misfit",
                "signal-misfit",
                "pause-misfit",
                "resume-misfit",
            ] {
                let unable = parse::<Value>(EXEC, &of(name));
                assert!(matches!(unable, Err(CallError::Unable { .. })), "{build} {name}: {unable:?}");
            }
            let version = if build == "runsc-2024" { Version::V1 } else { Version::V2 };
            let read = |reply: &[u8]| {
                let files = inside::questions(version, "recorded");
                parse::<Results>(READ_GROUPS, reply).unwrap().of(READ_GROUPS, files.len()).unwrap()
            };
            let counted = |reply: Vec<u8>| {
                inside::counted(version, &read(&reply).into_iter().map(Result::ok).collect::<Vec<_>>())
            };
            let used = counted(of("groups-read")).unwrap();
            assert!(used.memory > 1 << 20 && used.user + used.system > 0 && used.pids == 1, "{build}: {used:?}");
            assert_eq!(counted(of("groups-read-unknown-container")), None, "{build}");
            let written = parse::<Results>(WRITE_GROUPS, &of("groups-write")).unwrap().of(WRITE_GROUPS, 2).unwrap();
            assert!(written[0].is_ok() && written[1].is_err(), "{build}: {written:?}");
            assert!(parse::<Usage>(USAGE, &of("usage")).unwrap().mapped > 1 << 20, "{build}");
            let all =
                fs::read_dir(recordings(build)).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
            assert_eq!(all.collect::<BTreeSet<_>>(), known, "recordings that no test reads");
        }
    }

    /// The process that `scripts/record-urpc` gives to `runsc exec`.
    fn process(args: &Value) -> ExecProcess {
        let caps = json!(["CAP_KILL"]);
        let spec = json!({
            "args": args, "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0, "additionalGids": [5]},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}, "noNewPrivileges": true,
        });
        ExecProcess::parse(&Any { value: spec.to_string().into_bytes(), ..Default::default() }, None).unwrap()
    }

    #[test]
    fn our_requests_are_those_of_runscs_own_command_line() {
        for build in BUILDS {
            let heard = |name: &str| recorded(build, name)["request"].clone();
            let ours = |method, arg: Value| serde_json::from_slice::<Value>(&encode(method, arg).unwrap()).unwrap();
            let pid = |request: &Value| request["arg"]["PID"].as_i64().unwrap() as i32;
            let id = "recorded";
            for (name, pty) in [("exec", false), ("exec-killed", false), ("exec-terminal", true)] {
                let mut theirs = heard(name);
                let mut sent = ours(EXEC, exec_arg(id, &process(&theirs["arg"]["argv"]), pty).unwrap());
                // It imports terminals that are not the process's own, and we never give it one.
                theirs["arg"].as_object_mut().unwrap().retain(|key, value| !value.is_null() && key != "SupportTTYs");
                if build == "runsc-2024" {
                    // It does not know it, and overlooks it.
                    sent["arg"].as_object_mut().unwrap().remove("NoNewPrivileges");
                }
                assert_eq!(sent, theirs, "{build} {name}");
            }
            for name in ["wait-pid", "wait-pid-killed"] {
                assert_eq!(ours(WAIT_PID, wait_pid_arg(id, pid(&heard(name)))), heard(name), "{build} {name}");
            }
            let version = if build == "runsc-2024" { Version::V1 } else { Version::V2 };
            for (name, container) in [("groups-read", id), ("groups-read-unknown-container", "nobody")] {
                let sent = ours(READ_GROUPS, read_arg(&inside::questions(version, container)));
                assert_eq!(sent, heard(name), "{build} {name}");
            }
            let limits = Resources::parse(&json!({"memory": {"limit": 104_857_600}})).unwrap();
            let (sent, theirs) = (&inside::settings(version, id, &limits)[0], heard("groups-write"));
            assert_eq!(json!(sent), theirs["arg"]["args"][0], "{build}");
            assert_eq!(ours(WAIT, json!(id)), heard("wait"), "{build}");
            let someone = pid(&heard("signal-process"));
            let on_a_terminal = pid(&heard("signal-foreground"));
            for (name, target, signal) in [
                ("signal-init", Target::Init, 18),
                ("signal-all", Target::All, 18),
                ("signal-process", Target::Process(someone), 15),
                ("signal-foreground", Target::Foreground(on_a_terminal), 2),
            ] {
                assert_eq!(ours(SIGNAL, signal_arg(id, target, signal)), heard(name), "{build} {name}");
            }
            assert_eq!([ours(PAUSE, json!(())), ours(RESUME, json!(()))], [heard("pause"), heard("resume")], "{build}");
        }
    }

    /// A sandbox that answers as a build does, but for one method as another recording.
    async fn asked(build: &str, odd: Option<(&str, &str)>) -> Result<Option<(&'static str, String)>, CallError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let sandbox = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let called: Value = loop {
                    stream.read_buf(&mut request).await.unwrap();
                    if let Ok(whole) = serde_json::from_slice(&request) {
                        break whole;
                    }
                };
                let name = match called["method"].as_str().unwrap() {
                    method if odd.is_some_and(|(bad, _)| bad == method) => odd.unwrap().1,
                    EXEC => "exec-unknown-container",
                    WAIT_PID => "wait-pid-unknown-container",
                    WAIT => "wait-unknown-container",
                    SIGNAL => "signal-unknown-container",
                    PAUSE => "pause-misfit",
                    RESUME => "resume-misfit",
                    other => panic!("nobody may call {other}"),
                };
                stream.write_all(&reply(build, name)).await.unwrap();
            }
        };
        let control = Control::new(&path);
        tokio::select! {
            lacks = control.lacks() => lacks,
            () = sandbox => unreachable!("it answers for ever"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_build_that_lacks_a_method_or_takes_something_else_is_found_out() {
        for build in BUILDS {
            assert_eq!(asked(build, None).await.unwrap(), None, "{build}");
            for method in [EXEC, WAIT_PID, WAIT, SIGNAL, PAUSE, RESUME] {
                // It does not know it; it does as it is told whatever it is told; it speaks of other things.
                for name in ["unknown-method", "pause", "signal-process-gone"] {
                    if name == "signal-process-gone" && ![PAUSE, RESUME].contains(&method) {
                        continue; // for these that is the right answer
                    }
                    let lacks = asked(build, Some((method, name))).await.unwrap();
                    assert_eq!(lacks.map(|(method, _)| method), Some(method), "{build} {name}");
                }
            }
            for method in [EXEC, WAIT_PID, WAIT, SIGNAL] {
                let lacks = asked(build, Some((method, "exec-misfit"))).await.unwrap();
                assert_eq!(lacks.map(|(method, _)| method), Some(method), "{build}");
            }
        }
        let gone = Control::new(Path::new("/nonexistent/socket")).lacks().await;
        assert!(
            matches!(gone, Err(CallError::Gone(_))),
            "a sandbox that is not there says nothing of its build: {gone:?}"
        );
    }
}
