//! The listeners, and each connection: a bound on how many there are, on how long a head may take.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower_service::Service;

use super::Api;
use super::auth::Via;
use crate::daemon::{DaemonFailed, doing};
use crate::ports::Ports;

/// After an accept that failed: out of descriptors, say.
const AGAIN: Duration = Duration::from_millis(100);
/// Over the socket root alone comes in; so many connections at once.
const OVER_SOCKET: usize = 1024;

/// Where the agent listens.
pub struct Listeners {
    socket: UnixListener,
    tcp: Option<TcpListener>,
}

/// Opens them. A socket that an earlier agent has left is replaced: no two run at a time ([`crate::daemon`]).
pub async fn listen(ports: &Ports) -> Result<Listeners, DaemonFailed> {
    let path = ports.root.agent_socket();
    let _ = fs::remove_file(&path);
    let socket = doing(path.display().to_string(), UnixListener::bind(&path))?;
    doing(path.display().to_string(), fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))?;
    let tcp = match ports.config.api.listen {
        Some(address) => Some(doing(format!("listening on {address}"), TcpListener::bind(address).await)?),
        None => None,
    };
    Ok(Listeners { socket, tcp })
}

/// Answers for ever.
pub fn serve(listeners: Listeners, api: Api) {
    let settings = api.ports.config.api.clone();
    let Listeners { socket, tcp } = listeners;
    let (over_socket, head) = (api.clone(), settings.head);
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(OVER_SOCKET));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().map(|peer| peer.uid());
                    if !matches!(uid, Ok(0)) {
                        tracing::warn!(?uid, "a caller that is not root was sent away");
                        continue;
                    }
                    let connection = connection(stream, over_socket.clone(), Via::Socket, head);
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => failed(&error).await,
            }
        }
    });
    let Some(tcp) = tcp else { return };
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(settings.concurrent));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match tcp.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let connection = connection(stream, api.clone(), Via::Tcp, head);
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => failed(&error).await,
            }
        }
    });
}

async fn failed(error: &io::Error) {
    tracing::warn!(%error, "accepting a caller");
    tokio::time::sleep(AGAIN).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, api: Api, via: Via, head: Duration) {
    let router = api.router();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(via);
        router.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a caller is gone");
    }
}
