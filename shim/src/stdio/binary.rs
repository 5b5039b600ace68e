//! `binary://`: a logging program that reads a process's output on descriptors 3 and 4 and says on 5 that it is ready.
//! Source: containerd `core/runtime/v2/README` "Logging"; nerdctl's detached containers depend on it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use crate::{reaper, sys};

/// A logger that has not said it is ready by then is taken for broken.
const READY: Duration = Duration::from_secs(10);
/// After the output's end: first TERM, then KILL.
const PATIENCE: Duration = Duration::from_secs(10);

/// A parsed `binary://` URI.
#[derive(Debug, PartialEq, Eq)]
pub struct Uri {
    program: String,
    args: Vec<String>,
    /// `binary-v2`: the program must say that it is ready; of `binary`, the end of what it could say it on counts too.
    must_say: bool,
}

/// Parses `binary://PROGRAM?key=value&…` and `binary-v2://…`: each pair becomes two arguments.
pub fn uri(text: &str) -> Option<Uri> {
    let (scheme, rest) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "binary" | "binary-v2"))?;
    let (program, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Go's url.Values is a map; containerd's own order is sorted neither way, so ours is at least stable.
    let mut pairs = BTreeMap::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.entry(decode(key)).or_insert_with(|| decode(value));
    }
    let args = pairs.into_iter().flat_map(|(k, v)| if v.is_empty() { vec![k] } else { vec![k, v] }).collect();
    Some(Uri { program: decode(program), args, must_say: scheme == "binary-v2" })
}

/// Percent-decoding as in a query (RFC 3986, `+` is a space).
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |b: u8| (b as char).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push((hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0)) as u8);
                rest = after;
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A running logging program.
pub struct Logger {
    pid: i32,
    /// Our copies keep the pipes open between the sandbox's processes.
    _writers: [OwnedFd; 2],
}

impl Logger {
    /// Starts it, waits until it is ready, and returns the ends that the process writes to.
    pub async fn start(uri: &Uri, namespace: &str, id: &str) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (out_reader, out_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (err_reader, err_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (ready, saying) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let mut command = Command::new(&uri.program);
        command.args(&uri.args).env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::pass_fds(&mut command, vec![out_reader, err_reader, saying], false);
        let child = command.spawn();
        drop(command); // and with it our copies of the logger's ends
        let pid = child.map_err(|e| io::Error::new(e.kind(), format!("binary://{}: {e}", uri.program)))?.id() as i32;
        let ready = sys::watch(ready)?;
        let said = tokio::time::timeout(READY, async {
            loop {
                let mut guard = ready.readable().await?;
                match guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref().as_fd(), &mut [0; 1])?)) {
                    Ok(result) => return result,
                    Err(_would_block) => continue,
                }
            }
        });
        let least = usize::from(uri.must_say);
        if !matches!(said.await, Ok(Ok(bytes)) if bytes >= least) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return Err(io::Error::other(format!("{}: the logging program did not become ready", uri.program)));
        }
        let child = (out_writer.try_clone()?, err_writer.try_clone()?);
        Ok((Self { pid, _writers: [out_writer, err_writer] }, child.0, child.1))
    }

    /// Closes the pipes and sees the program off.
    pub fn finish(self) {
        let Self { pid, _writers } = self;
        drop(_writers);
        tokio::spawn(async move {
            let gone = reaper::exit_of(pid);
            tokio::pin!(gone);
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                if tokio::time::timeout(PATIENCE, &mut gone).await.is_ok() {
                    return;
                }
                let _ = kill(Pid::from_raw(pid), signal);
            }
            gone.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn uris_become_programs_and_arguments() {
        let parsed = |text| uri(text).map(|u| (u.program, u.args));
        let must_say = |text| uri(text).map(|u| u.must_say);
        assert_eq!((must_say("binary:///bin/log"), must_say("binary-v2:///bin/log")), (Some(false), Some(true)));
        let args = |list: &[&str]| list.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        assert_eq!(parsed("binary:///bin/log"), Some(("/bin/log".into(), vec![])));
        let expected = ("/bin/log".to_owned(), args(&["_NERDCTL_INTERNAL_LOGGING", "/var/lib/a b"]));
        assert_eq!(parsed("binary:///bin/log?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fa+b"), Some(expected));
        assert_eq!(parsed("binary-v2:///bin/log?id=1"), Some(("/bin/log".into(), args(&["id", "1"]))));
        assert_eq!(parsed("/run/fifo"), None);
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    /// As a client that leaves nothing to chance writes it.
    fn encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn whatever_a_program_is_told_it_hears(
            program in ".{0,12}",
            pairs in prop::collection::btree_map(".{1,8}", ".{0,8}", 0..4),
        ) {
            let query: Vec<_> = pairs.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
            let parsed = uri(&format!("binary://{}?{}", encode(&program), query.join("&"))).unwrap();
            let expected: Vec<_> =
                pairs.into_iter().flat_map(|(k, v)| if v.is_empty() { vec![k] } else { vec![k, v] }).collect();
            prop_assert_eq!((parsed.program, parsed.args), (program, expected));
        }

        #[test]
        fn only_binary_uris_name_programs(text in crate::arbitrary::text(), scheme in prop::sample::select(vec!["", "binary://", "binary-v2://", "file://"])) {
            let whole = format!("{scheme}{text}");
            prop_assert_eq!(uri(&whole).is_some(), whole.starts_with("binary://") || whole.starts_with("binary-v2://"));
        }
    }
}
