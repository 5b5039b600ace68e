//! The listeners, and each connection: a bound on how many there are, on how long a head may take, and over TCP on how often something
//! may be asked. Root, at the socket, and whoever comes over TCP have no room in common.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::response::{IntoResponse, Response};
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
use super::auth::{Auth, Peer, Via};
use super::limits::is_open;
use super::places::{NoPlace, Places};
use super::problem::Problem;
use super::stall::Impatient;
use super::tls::Tls;
use super::trace;
use crate::config;
use crate::daemon::{DaemonFailed, doing};
use crate::ports::Ports;

/// After an accept that failed: out of descriptors, say.
const AGAIN: Duration = Duration::from_millis(100);
/// Over the socket root alone comes in; so many connections at once.
const OVER_SOCKET: usize = 1024;
/// So many at once, of those that find all places taken over TCP, are told so.
const LOBBY: usize = 64;
/// The longest head, in bytes of its path and headers.
const HEAD: usize = 64 << 10;
/// After so long they may come again.
const BUSY: Duration = Duration::from_secs(1);

/// Where the agent listens.
pub struct Listeners {
    socket: UnixListener,
    tcp: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// What is spoken over TCP, where it is TLS.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }
}

/// Opens them. A socket that an earlier agent has left is replaced: no two run at a time ([`crate::daemon`]).
pub async fn listen(ports: &Ports) -> Result<Listeners, DaemonFailed> {
    let tls = ports.config.api.tls.as_ref().map(Tls::read).transpose()?.map(Arc::new);
    let path = ports.root.agent_socket();
    let _ = fs::remove_file(&path);
    let socket = doing(path.display().to_string(), UnixListener::bind(&path))?;
    doing(path.display().to_string(), fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))?;
    let tcp = match ports.config.api.listen {
        Some(address) => Some(doing(format!("listening on {address}"), TcpListener::bind(address).await)?),
        None => None,
    };
    Ok(Listeners { socket, tcp, tls })
}

/// Answers for ever.
pub fn serve(listeners: Listeners, api: Api) {
    let settings = api.ports.config.api.clone();
    let Listeners { socket, tcp, tls } = listeners;
    let (auth, router, head) = (api.auth.clone(), api.router(), settings.head); // made once: it is large
    let over_socket = router.clone();
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
                    let router = over_socket.clone();
                    tokio::spawn(async move {
                        let answer = move |mut request: Request<Incoming>| {
                            request.extensions_mut().insert(Via::Socket);
                            router.clone().call(request)
                        };
                        connection(stream, head, answer).await;
                        drop(place);
                    });
                }
                Err(error) => failed(&error).await,
            }
        }
    });
    if let Some(tcp) = tcp {
        tokio::spawn(serve_tcp(tcp, tls, OverTcp { auth, router, head }, settings));
    }
}

/// Who comes when all places are taken is told so, as long as there is room for that.
async fn serve_tcp(tcp: TcpListener, tls: Option<Arc<Tls>>, over: OverTcp, settings: config::Api) {
    let places = Places::new(settings.concurrent, settings.concurrent_of_address);
    let lobby = Arc::new(Semaphore::new(LOBBY));
    loop {
        let (stream, peer) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                failed(&error).await;
                continue;
            }
        };
        let (place, refused) = match places.take(peer.ip()) {
            Ok(place) => ((Some(place), None), None),
            Err(why) => match lobby.clone().try_acquire_owned() {
                Ok(in_lobby) => ((None, Some(in_lobby)), Some(why)),
                Err(_) => continue, // it is cut off
            },
        };
        let _ = stream.set_nodelay(true);
        let stream = Impatient::new(stream, settings.stall);
        let (tls, over) = (tls.as_deref().map(Tls::acceptor), over.clone());
        tokio::spawn(async move {
            let _place = place;
            let Some(acceptor) = tls else { return over.connection(stream, peer.ip(), refused).await };
            match tokio::time::timeout(over.head, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => over.connection(stream, peer.ip(), refused).await,
                Ok(Err(error)) => tracing::debug!(%error, "a caller does not speak TLS as we do"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
        });
    }
}

async fn failed(error: &io::Error) {
    tracing::warn!(%error, "accepting a caller");
    tokio::time::sleep(AGAIN).await;
}

/// What each connection over TCP has.
#[derive(Clone)]
struct OverTcp {
    auth: Arc<Auth>,
    router: Router,
    head: Duration,
}

impl OverTcp {
    async fn connection(self, stream: impl Stream, address: IpAddr, refused: Option<NoPlace>) {
        let Self { auth, router, head } = self;
        connection(stream, head, move |request| answer(request, router.clone(), auth.clone(), address, refused)).await;
    }
}

/// One request over TCP, within what may be asked.
async fn answer(
    mut request: Request<Incoming>,
    mut router: Router,
    auth: Arc<Auth>,
    address: IpAddr,
    refused: Option<NoPlace>,
) -> Result<Response, Infallible> {
    if let Some(why) = refused {
        let busy = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-callers", why.sentence()).again_after(BUSY);
        return Ok(([(CONNECTION, "close")], busy).into_response());
    }
    let peer = Peer::new(address);
    let may_prove = request.headers().contains_key(AUTHORIZATION) && !is_open(request.method(), request.uri().path());
    if !may_prove && let Err(too_often) = auth.limits.anonymous(address, Instant::now()) {
        return Ok(too_often.into_response());
    }
    request.extensions_mut().insert(Via::Tcp(peer.clone()));
    let response = router.call(request).await;
    if may_prove
        && !peer.is_proven()
        && let Err(too_often) = auth.limits.anonymous(address, Instant::now())
    {
        return Ok(too_often.into_response());
    }
    response
}

/// What hyper has room for it takes, however long a head is that comes at once: its own limit is one of reading on.
fn head_bytes(request: &Request<Incoming>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    request.uri().path_and_query().map_or(0, |path| path.as_str().len()) + headers.sum::<usize>()
}

fn too_long() -> Response {
    let why = format!("the path and the headers of a request have {HEAD} bytes at most");
    let problem = Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", why);
    ([(CONNECTION, "close")], problem).into_response()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

async fn connection<F, R>(stream: impl Stream, head: Duration, answer: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let answer = move |request: Request<Incoming>| {
        let is_long = head_bytes(&request) > HEAD;
        let trace = trace::begin(request.method(), request.uri().path(), request.headers());
        let answered = (!is_long).then(|| answer(request));
        async move {
            let Some(answered) = answered else { return Ok(too_long()) };
            match trace {
                Some(traced) => traced.answer(answered).await,
                None => answered.await,
            }
        }
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a caller is gone");
    }
}
