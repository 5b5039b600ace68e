//! A downstream shim's process: `start`ed in a directory of its own as containerd would, and seen off.
//! Source: containerd `core/runtime/v2/README` "Commands".

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::Shim;
use crate::bootstrap::Address;
use crate::error::TaskError;
use crate::{paths, processes, reaper, sys};

/// containerd gives a shim so long to load.
const START: Duration = Duration::from_secs(20);
/// The old way to send events, which no shim goes where it has a socket for them.
const NO_PUBLISHER: &str = "/bin/false";
/// What a shim that is asked to end, or is killed, may take.
const END: Duration = Duration::from_secs(2);

impl Shim {
    /// Its command line, in the bundle of one container. It is given our directory for containerd's address, for that
    /// is a part of its socket's name: no other shim's can meet it, and its processes can be told by it.
    fn command(&self, id: &str, flags: &[&str], action: &str) -> Command {
        let (bundle, events) = (paths::bundle(&self.place.dir, id), self.events_socket());
        let mut command = Command::new(&self.program);
        command.args(["-namespace", &self.place.namespace, "-address"]).arg(&self.place.dir);
        command.args(["-publish-binary", NO_PUBLISHER]).args(["-id", id]).args(flags).arg(action);
        command.current_dir(bundle).stdin(Stdio::null()).process_group(0);
        command.env("TTRPC_ADDRESS", events).env("GRPC_ADDRESS", &self.place.dir);
        command.env("NAMESPACE", &self.place.namespace).env("MAX_SHIM_VERSION", "2");
        command.env_remove("CRETO_SHIM_GROUP").env_remove("CRETO_SHIM_SOCKET");
        command
    }

    /// What shims since containerd 2.3 want to be told on stdin; older ones do not mind.
    fn params(&self) -> Result<Vec<u8>, containerd_shim_protos::protobuf::Error> {
        BootstrapParams {
            instance_id: self.place.group.clone(),
            namespace: self.place.namespace.clone(),
            containerd_ttrpc_address: self.events_socket().to_string_lossy().into_owned(),
            containerd_grpc_address: self.place.dir.to_string_lossy().into_owned(),
            containerd_binary: NO_PUBLISHER.into(),
            ..Default::default()
        }
        .write_to_bytes()
    }

    /// `start`, in the pod's first bundle.
    pub async fn start(&self) -> Result<Address, TaskError> {
        let id = self.place.group.as_str();
        let bundle = paths::bundle(&self.place.dir, id);
        let failed =
            |why: String| TaskError::host(format!("starting {}'s shim {}", self.name, self.program.display()), why);
        let io = |e: io::Error| failed(e.to_string());
        // Kata's ends before its first call where nobody reads what it logs.
        let fifo = bundle.join("log");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| io(e.into()))?;
        drain(&fifo, &self.name).map_err(io)?;
        let params = self.params().map_err(|e| failed(e.to_string()))?;
        let reply = match self.ask(&params).await.map_err(io)? {
            Ok(reply) => reply,
            // What containerd 1.6's library reads as something else, that of 2.3 and later insists on.
            Err(first) => match self.ask(&[]).await.map_err(io)? {
                Ok(reply) => reply,
                Err(second) => return Err(failed(format!("{first}; started the old way: {second}"))),
            },
        };
        let address = Address::parse(&reply).map_err(failed)?;
        fs::write(self.address_file(), format!("{}\n{}", address.api, address.socket)).map_err(io)?;
        Ok(address)
    }

    /// One try of `start`: its reply, or what it says instead.
    async fn ask(&self, params: &[u8]) -> io::Result<Result<Vec<u8>, String>> {
        let id = self.place.group.as_str();
        // Files, for its daemon may keep a pipe open for ever.
        let file = |name: &str| paths::bundle(&self.place.dir, id).join(name);
        let (stdin, stdout, stderr) = (file("start.stdin"), file("start.stdout"), file("start.stderr"));
        fs::write(&stdin, params)?;
        let mut command = self.command(id, &[], "start");
        command.stdin(File::open(&stdin)?).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let status = end_of(&mut command, START).await?;
        let reply = fs::read(&stdout)?;
        if status == 0 {
            return Ok(Ok(reply));
        }
        let said = [reply, fs::read(&stderr)?].concat();
        Ok(Err(format!("exit status {status}: {}", String::from_utf8_lossy(&said).trim())))
    }

    /// Where the shim that was started listens, from disk.
    pub fn address(&self) -> Option<Address> {
        let text = fs::read_to_string(self.address_file()).ok()?;
        let (api, socket) = text.split_once('\n')?;
        Some(Address { socket: socket.to_owned(), api: api.parse().ok()? })
    }

    fn address_file(&self) -> PathBuf {
        self.place.dir.join("delegate-address")
    }

    /// Where it sends its events.
    pub fn events_socket(&self) -> PathBuf {
        self.place.dir.join("events.sock")
    }

    /// `delete`: what is left of a container whose shim has ended. Kata's fails at its first call after a crash, and
    /// where nothing is left.
    pub async fn delete(&self, id: &str, patience: Duration) {
        const CALL_AGAIN: u32 = 2;
        let bundle = paths::bundle(&self.place.dir, id);
        if !bundle.is_dir() {
            return;
        }
        for _ in 0..2 {
            let mut command = self.command(id, &["-bundle", &bundle.to_string_lossy()], "delete");
            command.stdout(Stdio::null()).stderr(Stdio::null());
            match end_of(&mut command, patience).await {
                Ok(CALL_AGAIN) => continue,
                Ok(status) => tracing::debug!(backend = self.name, id, status, "the downstream shim's delete"),
                Err(error) => tracing::warn!(backend = self.name, id, %error, "the downstream shim's delete"),
            }
            return;
        }
    }

    /// Waits for its processes' end, and brings it about.
    pub async fn gone(&self) {
        let patience = tokio::time::timeout(END, async {
            while !self.processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if patience.await.is_err() {
            for pid in self.processes() {
                tracing::warn!(backend = self.name, pid, "the downstream shim does not end: killing it");
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if let Some(address) = self.address() {
            let _ = fs::remove_file(address.path()); // most do so themselves
        }
    }

    /// The host's processes that were started with our directory for an address.
    fn processes(&self) -> Vec<i32> {
        processes::told("address", &self.place.dir)
    }
}

/// Reads what a shim logs, for ever, and logs it ourselves.
fn drain(fifo: &Path, backend: &str) -> io::Result<()> {
    // Read and write: without a writer it would report its end again and again.
    let fifo = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    let (fifo, backend) = (sys::watch(fifo.into())?, backend.to_owned());
    tokio::spawn(async move {
        let mut buffer = vec![0; 4 << 10];
        while let Ok(mut ready) = fifo.readable().await {
            let Ok(read) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?)) else { continue };
            let Ok(n) = read else { return };
            for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                match line.contains("level=error") || line.contains("level=fatal") {
                    true => tracing::warn!(backend, "{line}"),
                    false => tracing::debug!(backend, "{line}"),
                }
            }
        }
    });
    Ok(())
}

/// Runs a command to its end; one that takes longer is killed.
async fn end_of(command: &mut Command, patience: Duration) -> io::Result<u32> {
    let pid = reaper::spawn(command)?.id() as i32;
    let exit = tokio::time::timeout(patience, reaper::exit_of(pid)).await.map_err(|_| {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {} s", patience.as_secs()))
    })?;
    Ok(exit.status)
}
