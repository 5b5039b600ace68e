//! The server of one pod: subreaper, both Task services and the sandbox's own on the inherited socket, signals, end of life.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::Server;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Call;
use crate::backend::{self, Place};
use crate::events::Events;
use crate::service::Service;
use crate::tasks::Pod;
use crate::{create, paths, reaper, rebind, sys};

/// How long a killed sandbox may take to be reaped.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long containerd may take from the `start` action to Create, and from the last Delete to Shutdown.
const NO_TASK: Duration = Duration::from_secs(30);
/// A pod looks so often whether containerd still has anything of it.
const LOOK: Duration = Duration::from_secs(10);

/// Serves until the pod is empty and containerd asks for the end, or on SIGTERM.
pub fn run(call: &Call) -> Result<(), Box<dyn std::error::Error>> {
    let listener = UnixListener::from(sys::inherited_listener().map_err(|_| "start it with the `start` action")?);
    listener.set_nonblocking(true)?;
    crate::log::to_bundle(call.bundle.as_deref().unwrap_or(Path::new(".")), call.debug);
    sys::share_one_heap();
    sys::become_subreaper()?;
    let group = std::env::var("CRETO_SHIM_GROUP").unwrap_or_else(|_| call.id.clone());
    let socket = std::env::var_os("CRETO_SHIM_SOCKET").map(PathBuf::from);
    let dir = paths::sandbox(&paths::state_root(), &call.address, &call.namespace, &group);
    std::fs::create_dir_all(&dir)?;
    let place = Place { dir, address: call.address.clone(), namespace: call.namespace.clone(), group };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(serve(call, listener, place));
    // Else it would wait for a thread that reads from somebody who does not end.
    runtime.shutdown_background();
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    done
}

async fn serve(call: &Call, listener: UnixListener, place: Place) -> Result<(), Box<dyn std::error::Error>> {
    tokio::spawn(reaper::run());
    let events = Events::new(std::env::var("TTRPC_ADDRESS").ok(), call.namespace.clone());
    let dir = place.dir.clone();
    let pod = Arc::new(Pod::new(place, events.clone()));
    let service = Arc::new(Service(pod.clone()));
    let v3 = create_task(service.clone());
    // v2 and v3 differ in the package's name only.
    let v2 = create_task(service).into_iter().map(|(name, s)| (name.replace(".v3.", ".v2."), s)).collect();
    let server = sys::add_listener(Server::new(), listener.into_raw_fd())?;
    let mut server = server.register_service(v3).register_service(v2).register_service(rebind::service(&pod));
    server.start().await?;
    let mut term = signal(SignalKind::terminate())?;
    let first = match &call.bundle {
        Some(bundle) => std::path::absolute(bundle)?,
        // Where containerd has started us; nowhere, where it has failed meanwhile and removed that.
        None => std::env::current_dir().unwrap_or_default(),
    };
    tokio::select! {
        () = pod.over.notified() => {}
        _ = term.recv() => {
            end_all(&pod).await;
            if pod.is_empty() {
                backend::forget(&dir);
            }
            // At once: a Delete that still came through would be one that nobody hears of. What containerd may ask
            // about is swept by the `delete` action, from disk.
            return Ok(());
        }
        () = unused(&pod) => tracing::warn!("there is no task: containerd has given up"),
        () = forgotten(&pod, &first) => {
            tracing::warn!("containerd has nothing of this pod any more: ending it");
            pod.end_when_empty(); // what is just being made is undone
            let _nothing_is_made = pod.creating.lock().await;
            end_all(&pod).await;
            create::abandon(&pod).await;
        }
    }
    let _nothing_is_made = pod.creating.lock().await; // a Create that comes now would outlive its shim
    events.flush(Duration::from_secs(2)).await;
    // The reply to Shutdown is on its way still; then nobody has anything to ask.
    let _ = tokio::time::timeout(Duration::from_millis(100), server.shutdown()).await;
    backend::forget(&dir);
    Ok(())
}

/// Resolves when there has been no task for so long: containerd has failed between `start` and Create, or whoever had the last one
/// deleted went before containerd had said Shutdown. Then it knows of no shim and never ends it.
async fn unused(pod: &Pod) {
    let mut empty = Duration::ZERO;
    while empty < NO_TASK {
        tokio::time::sleep(LOOK).await;
        let is_empty = pod.is_empty() && pod.creating.try_lock().is_ok();
        empty = if is_empty { empty + LOOK } else { Duration::ZERO };
    }
}

/// Resolves when containerd has removed the bundles of all that is in the pod, and has not told the pod: restarted while a task was
/// made, or in front of a shim that did not answer in time, it takes that for dead and forgets it.
async fn forgotten(pod: &Pod, first: &Path) {
    loop {
        tokio::time::sleep(LOOK).await;
        if !first.exists() && !pod.bundles().iter().any(|bundle| bundle.exists()) {
            return;
        }
    }
}

/// No sandbox may outlive the one who answers for it. Its end is not published: containerd does that for every
/// task of a shim that has gone, and one exit is enough.
async fn end_all(pod: &Pod) {
    pod.events.mute();
    tracing::info!("ending the pod's sandbox");
    if let Ok(backend) = pod.backend() {
        backend.end().await;
    }
    for key in pod.inits() {
        let Ok(mut done) = pod.with(&key, |p| p.done.subscribe()) else { continue };
        let _ = tokio::time::timeout(LAST_WORDS, done.wait_for(Option::is_some)).await;
    }
}
