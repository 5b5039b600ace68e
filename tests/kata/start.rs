//! The `start` action and the daemon that it leaves behind.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim_protos::ttrpc::Server;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use crate::config::sandbox_of;
use crate::service::{self, Service};
use crate::{Call, Failure};

/// §2: a bare address, Task API v2.
pub fn run(call: &Call) -> Result<(), Failure> {
    let sandbox = sandbox_of(Path::new("config.json")).unwrap_or_else(|| call.id.clone());
    let socket = call.socket(&sandbox);
    let address = format!("unix://{}", socket.display());
    if sandbox == call.id {
        fs::create_dir_all("/run/containerd/s")?;
        if let Some(listener) = bind(&socket)? {
            fs::write("shim.pid", daemon(call, listener)?.to_string())?;
        }
    }
    // §2: whatever the caller had there is overwritten
    fs::write("address", &address)?;
    io::stdout().write_all(address.as_bytes())?;
    Ok(())
}

/// `None` where the sandbox's daemon listens already.
fn bind(socket: &Path) -> io::Result<Option<UnixListener>> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            fs::remove_file(socket)?;
            UnixListener::bind(socket).map(Some)
        }
        other => other.map(Some),
    }
}

/// The listener is the daemon's stdin.
fn daemon(call: &Call, listener: UnixListener) -> io::Result<u32> {
    let mut daemon = Command::new(std::env::current_exe()?);
    daemon.args(["-namespace", &call.namespace, "-id", &call.id, "-address", &call.address]);
    daemon.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    // §2: its own process group
    Ok(daemon.process_group(0).spawn()?.id())
}

/// The daemon.
pub fn serve(call: Call) -> Result<(), Failure> {
    // §2: the FIFO needs a reader, else this is the end, after `start` has given the address
    let mut log = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("log")?;
    writeln!(log, "level=info msg=\"containerd shim of sandbox {}\" name={}", call.id, crate::NAME)?;
    // ANCHORS.md §3: SIGTERM does nothing. Blocked rather than ignored: that needs no unsafe code. Children unblock it.
    SigSet::from(Signal::SIGTERM).thread_block()?;
    // §2: a mount namespace that hears of the caller's mounts and tells of none
    unshare(CloneFlags::CLONE_NEWNS)?;
    for propagation in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, propagation | MsFlags::MS_REC, None::<&str>)?;
    }
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let mut server =
        Server::new().add_listener(listener.into_raw_fd())?.register_service(service::methods(Service::new(call)));
    server.start()?;
    loop {
        std::thread::park();
    }
}
