//! The shim's `start` action (the Task RPC Start lives in `service`): find the pod's shim or become it, and print
//! where it listens. No async runtime: this is on every container's path.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::args::Call;
use crate::{bootstrap, paths, sys};

/// Annotations that name the group a container belongs to, in order of precedence.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Why no shim could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file, socket or process step failed.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The bundle's config.json cannot be read as JSON.
    #[error("{0}: {1}")]
    Config(PathBuf, #[source] serde_json::Error),
}

/// Adds what was being done to an I/O error.
fn doing<T>(what: impl std::fmt::Display, result: io::Result<T>) -> Result<T, StartError> {
    result.map_err(|error| StartError::Io(what.to_string(), error))
}

/// Runs the action.
pub fn run(call: &Call) -> Result<(), StartError> {
    let params = bootstrap::params(&stdin(), &call.namespace, &call.id);
    let bundle = call.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let group = group(&bundle.join("config.json"), &call.id)?;
    let socket_dir = params.as_ref().and_then(|p| p.socket_dir.as_deref());
    let socket = paths::socket(&call.address, &call.namespace, &group, socket_dir);
    if let Some(dir) = socket.parent() {
        doing(format_args!("creating {}", dir.display()), fs::create_dir_all(dir))?;
    }
    let reply = bootstrap::reply(&socket.to_string_lossy());
    // Before there is a server: whatever fails up to its start leaves none behind.
    let listener = bind(&socket)?;
    let written = doing("writing the bundle's address file", fs::write(bundle.join("address"), &reply));
    if let Some(listener) = listener
        && let Err(error) = written.and_then(|()| spawn_server(call, &group, &socket, listener))
    {
        let _ = fs::remove_file(&socket);
        return Err(error);
    }
    doing("writing the reply", io::stdout().write_all(reply.as_bytes()))
}

/// containerd ≥ 2.3 closes stdin after its parameters; older ones give /dev/null. A terminal has none.
fn stdin() -> Vec<u8> {
    let mut bytes = Vec::new();
    let stdin = io::stdin();
    if !io::IsTerminal::is_terminal(&stdin) {
        let _ = stdin.lock().take(bootstrap::MAX_PARAMS).read_to_end(&mut bytes); // unreadable = no parameters
    }
    bytes
}

/// The group named by the spec's annotations, else the container itself.
pub fn group(config: &Path, id: &str) -> Result<String, StartError> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: std::collections::HashMap<String, String>,
    }
    let text = match fs::read(config) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(error) => return Err(StartError::Io(format!("reading {}", config.display()), error)),
    };
    let spec: Annotated =
        serde_json::from_slice(&text).map_err(|error| StartError::Config(config.to_owned(), error))?;
    Ok(GROUPS.iter().find_map(|key| spec.annotations.get(*key)).cloned().unwrap_or_else(|| id.to_owned()))
}

/// `None` where a living shim of this group listens already.
fn bind(socket: &Path) -> Result<Option<UnixListener>, StartError> {
    let listener = match UnixListener::bind(socket) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            let stale = fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket());
            if stale {
                doing(format_args!("removing the stale socket {}", socket.display()), fs::remove_file(socket))?;
            }
            doing(format_args!("binding {}", socket.display()), UnixListener::bind(socket))?
        }
        Err(error) => return Err(StartError::Io(format!("binding {}", socket.display()), error)),
    };
    doing("restricting the socket", fs::set_permissions(socket, fs::Permissions::from_mode(0o600)))?;
    Ok(Some(listener))
}

fn spawn_server(call: &Call, group: &str, socket: &Path, listener: UnixListener) -> Result<(), StartError> {
    let exe = doing("finding our own binary", std::env::current_exe())?;
    let mut command = Command::new(exe);
    command.args(["-namespace", &call.namespace, "-id", &call.id, "-address", &call.address]);
    if call.debug {
        command.arg("-debug");
    }
    if let Some(bundle) = &call.bundle {
        command.arg("-bundle").arg(bundle);
    }
    // Closed stdout and stderr: containerd reads both until the last writer is gone.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("CRETO_SHIM_GROUP", group).env("CRETO_SHIM_SOCKET", socket);
    let listener = doing("passing the socket on", listener.as_fd().try_clone_to_owned())?;
    sys::pass_fds(&mut command, vec![listener], true);
    let server = doing("starting the shim's server", command.spawn())?;
    raise_oom_score(server.id());
    Ok(())
}

/// One above ours, as containerd's own shims do: the kernel should take a shim before it takes containerd.
/// Where that is not permitted the inherited value stands.
fn raise_oom_score(pid: u32) {
    let ours = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|s| s.trim().parse::<i32>().ok());
    if let Some(ours) = ours {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), (ours + 1).min(1000).to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

    use super::*;

    #[test]
    fn containers_of_a_pod_share_a_group() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        for (text, expected) in [
            (r#"{}"#, "c1"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, "pod"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#, "g"),
        ] {
            fs::write(&config, text).unwrap();
            assert_eq!(group(&config, "c1").unwrap(), expected, "{text}");
        }
        fs::write(&config, "{").unwrap();
        assert!(group(&config, "c1").is_err());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _first = bind(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&path).unwrap().is_none());
        // What a killed shim leaves: a bound name that nobody listens on. (Dropping a listener would not do: a child
        // that another test is just forking has a copy until it execs.)
        let stale = dir.path().join("stale");
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&stale).unwrap()).unwrap();
        assert!(bind(&stale).unwrap().is_some());
    }
}
