//! The server of one pod: subreaper, both Task services on the inherited socket, signals, end of life.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::Server;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Call;
use crate::backend::gvisor::cli::Runsc;
use crate::events::Events;
use crate::service::{Pod, Service};
use crate::{paths, reaper, sys};

/// Serves until the pod is empty and containerd asks for the end, or on SIGTERM.
pub fn run(call: &Call) -> Result<(), Box<dyn std::error::Error>> {
    let listener = UnixListener::from(sys::inherited_listener().map_err(|_| "start it with the `start` action")?);
    listener.set_nonblocking(true)?;
    sys::become_subreaper()?;
    let group = std::env::var("CRETO_SHIM_GROUP").unwrap_or_else(|_| call.id.clone());
    let socket = std::env::var_os("CRETO_SHIM_SOCKET").map(PathBuf::from);
    let dir = paths::sandbox(&paths::state_root(), &call.address, &call.namespace, &group);
    std::fs::create_dir_all(dir.join("runsc"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(serve(call, listener, &group, dir.clone()));
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    Runsc::new(&dir).forget();
    done
}

async fn serve(
    call: &Call,
    listener: UnixListener,
    group: &str,
    dir: PathBuf,
) -> Result<(), Box<dyn std::error::Error>> {
    tokio::spawn(reaper::run());
    let events = Events::new(std::env::var("TTRPC_ADDRESS").ok(), call.namespace.clone());
    let pod = Arc::new(Pod::new(dir, group, call.namespace.clone(), events.clone()));
    let service = Arc::new(Service(pod.clone()));
    let v3 = create_task(service.clone());
    // v2 and v3 differ in the package's name only.
    let v2 = create_task(service).into_iter().map(|(name, s)| (name.replace(".v3.", ".v2."), s)).collect();
    let mut server =
        sys::add_listener(Server::new(), listener.into_raw_fd())?.register_service(v3).register_service(v2);
    server.start().await?;
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        () = pod.over.notified() => {}
        _ = term.recv() => tracing::info!("SIGTERM"),
    }
    events.flush(Duration::from_secs(2)).await;
    // The reply to Shutdown is on its way still; then nobody has anything to ask.
    let _ = tokio::time::timeout(Duration::from_millis(100), server.shutdown()).await;
    Ok(())
}
