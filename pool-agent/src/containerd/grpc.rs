//! The connection to containerd: dialled when first needed, again after containerd was restarted; every call has a namespace and a
//! deadline, and an error of [`ContainersError`].

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status, TimeoutExpired};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::{Instant, sleep};

use super::{
    Accounts, Container, Containers, ContainersError, Exit, Image, NewContainer, Progress, Refusal, TaskEvent, Usage,
    events, tasks,
};

/// A question to containerd's own books is answered within this, or never.
pub(super) const BOOKS: Duration = Duration::from_secs(10);
/// Between two tries, while containerd is away.
pub(super) const AWAY: Duration = Duration::from_millis(250);
/// A lease ends by itself so long after its maker was killed.
const LEASE: Duration = Duration::from_secs(3600);

/// Where containerd is, and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// containerd's socket.
    pub address: PathBuf,
    /// The containerd namespace that all is in.
    pub namespace: String,
    /// Where layers are unpacked.
    pub snapshotter: String,
    /// Docker's `config.json` with the registries' credentials; without it none are given.
    pub docker_config: Option<PathBuf>,
    /// Per-registry settings that containerd reads (mirrors, CAs): `certs.d`.
    pub registry_hosts: Option<PathBuf>,
    /// How long a pull may take.
    pub pull_within: Duration,
    /// How long making, starting and removing a task may take, each.
    pub task_within: Duration,
    /// How long a removal, and so an undo, waits for a containerd that has gone away.
    pub away_within: Duration,
}

impl Default for Settings {
    /// containerd as distributions install it, namespace `creto`, credentials of root.
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            namespace: "creto".into(),
            snapshotter: "overlayfs".into(),
            docker_config: super::credentials::default_path(),
            registry_hosts: Some("/etc/containerd/certs.d".into()),
            pull_within: Duration::from_secs(600),
            task_within: Duration::from_secs(60),
            away_within: Duration::from_secs(10),
        }
    }
}

/// The real containerd. A clone shares its connection.
#[derive(Clone)]
pub struct Containerd {
    pub(super) settings: Arc<Settings>,
    namespace: MetadataValue<Ascii>,
    channel: Arc<OnceCell<Channel>>,
    pub(super) accounts: Arc<Mutex<HashMap<String, Arc<Accounts>>>>,
}

/// A namespace that containerd cannot have.
#[derive(Debug, thiserror::Error)]
#[error("containerd namespace {0:?}: use letters, digits, '-', '.' and '_'")]
pub struct BadNamespace(String);

impl Containerd {
    /// Does not dial yet.
    pub fn new(settings: Settings) -> Result<Self, BadNamespace> {
        let name = &settings.namespace;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let header = name.parse().ok().filter(|_| !name.is_empty() && name.bytes().all(fits));
        let namespace = header.ok_or_else(|| BadNamespace(name.clone()))?;
        let (channel, accounts) = Default::default();
        Ok(Self { settings: Arc::new(settings), namespace, channel, accounts })
    }

    /// The connection. Once there was one, tonic dials again by itself.
    pub(super) async fn channel(&self) -> Result<Channel, ContainersError> {
        let dial = || containerd_client::connect(&self.settings.address);
        let channel = self.channel.get_or_try_init(dial).await;
        channel.cloned().map_err(|error| self.unavailable(&error))
    }

    fn unavailable(&self, error: &dyn std::error::Error) -> ContainersError {
        let mut why = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            why = format!("{why}: {error}");
            cause = error.source();
        }
        ContainersError::Unavailable { address: self.settings.address.clone(), why }
    }

    /// A request in our namespace, with a deadline.
    pub(super) fn request<T>(&self, message: T, within: Duration) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(within);
        request
    }

    /// A request in our namespace that may take for ever: a stream, a wait.
    pub(super) fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// What a failed call means; `what` is the thing it was about, `doing` names the step.
    pub(super) fn meaning(&self, status: &Status, what: &str, doing: &str, within: Duration) -> ContainersError {
        let (doing, message) = (doing.to_owned(), status.message().to_owned());
        // What a server says has no source; what has one was made on our side of the connection.
        if let Some(source) = status.source() {
            return match is_timeout(source) {
                true => ContainersError::Timeout { doing, after: within },
                false => self.unavailable(status),
            };
        }
        match status.code() {
            Code::NotFound => ContainersError::NotFound(what.to_owned()),
            Code::AlreadyExists => ContainersError::AlreadyExists(what.to_owned()),
            // containerd's word for a call that was given up is as good as that for one that is late.
            Code::DeadlineExceeded | Code::Cancelled => ContainersError::Timeout { doing, after: within },
            Code::PermissionDenied | Code::Unauthenticated => {
                ContainersError::Refused { doing, refusal: Refusal::Forbidden, message }
            }
            Code::InvalidArgument => ContainersError::Refused { doing, refusal: Refusal::Invalid, message },
            Code::FailedPrecondition => ContainersError::Refused { doing, refusal: Refusal::State, message },
            Code::ResourceExhausted => ContainersError::Full { doing, message },
            // tonic's text where the connection's own task has ended; it keeps no source of that.
            Code::Unknown if message.starts_with("Service was not ready") => self.unavailable(status),
            // containerd has no code for errno ENOSPC; its text is strerror's.
            _ if message.contains("no space left on device") => ContainersError::Full { doing, message },
            _ => ContainersError::Failed { doing, message },
        }
    }

    /// Keeps containerd from collecting what is being made, until [`Lease::end`], or an hour at the most.
    pub(super) async fn lease(&self) -> Result<Lease, ContainersError> {
        let id = format!("creto-{}", random()?);
        let expires = humantime::format_rfc3339_seconds(SystemTime::now() + LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let header = id.parse().map_err(|_| failed("lease", "its id is no header"))?;
        let request = self.request(CreateRequest { id: id.clone(), labels }, BOOKS);
        let made = LeasesClient::new(self.channel().await?).create(request).await;
        made.map_err(|status| self.meaning(&status, &id, "making a lease", BOOKS))?;
        Ok(Lease { id, header })
    }
}

/// A hold on what a call makes.
pub(super) struct Lease {
    id: String,
    header: MetadataValue<Ascii>,
}

impl Lease {
    /// The same request, under the lease.
    pub fn on<T>(&self, mut request: Request<T>) -> Request<T> {
        request.metadata_mut().insert("containerd-lease", self.header.clone());
        request
    }

    /// Lets go, also where containerd is away for a while. Where that fails the lease ends by itself.
    pub async fn end(self, containerd: &Containerd) {
        let end = Instant::now() + containerd.settings.away_within;
        let ended = loop {
            match self.try_end(containerd).await {
                Err(error) if error.is_unavailable() && Instant::now() < end => sleep(AWAY).await,
                other => break other,
            }
        };
        if let Err(error) = ended {
            tracing::warn!(lease = self.id, %error, "a lease of containerd was not ended; it expires within the hour");
        }
    }

    async fn try_end(&self, containerd: &Containerd) -> Result<(), ContainersError> {
        let request = containerd.request(DeleteRequest { id: self.id.clone(), sync: false }, BOOKS);
        let ended = LeasesClient::new(containerd.channel().await?).delete(request).await;
        ended.map(drop).map_err(|status| containerd.meaning(&status, &self.id, "ending a lease", BOOKS))
    }
}

fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timeout)
}

/// 16 hex digits that nobody else has.
pub(super) fn random() -> Result<String, ContainersError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| failed("random bytes", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn failed(doing: impl Into<String>, message: impl ToString) -> ContainersError {
    ContainersError::Failed { doing: doing.into(), message: message.to_string() }
}

/// Under a poisoned lock the map is still whole: it is only ever inserted into.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Containers for Containerd {
    async fn version(&self) -> Result<String, ContainersError> {
        let answer = VersionClient::new(self.channel().await?).version(self.request((), BOOKS)).await;
        let answer = answer.map_err(|status| self.meaning(&status, "version", "asking for the version", BOOKS))?;
        Ok(answer.into_inner().version)
    }

    async fn image(&self, reference: &str, progress: Progress) -> Result<Image, ContainersError> {
        self.find_or_pull(reference, progress).await
    }

    async fn accounts(&self, image: &Image) -> Result<Arc<Accounts>, ContainersError> {
        self.accounts_of(image).await
    }

    async fn create(&self, new: NewContainer) -> Result<u32, ContainersError> {
        tasks::create(self.clone(), new).await
    }

    async fn start(&self, id: &str) -> Result<(), ContainersError> {
        self.start_task(id).await
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), ContainersError> {
        self.kill_task(id, signal, false).await
    }

    async fn wait(&self, id: &str) -> Result<Exit, ContainersError> {
        self.wait_for_task(id).await
    }

    async fn delete(&self, id: &str) -> Result<(), ContainersError> {
        self.delete_patiently(id).await
    }

    async fn list(&self, label: Option<(&str, &str)>) -> Result<Vec<Container>, ContainersError> {
        self.list_containers(label).await
    }

    async fn usage(&self, ids: &[&str]) -> Result<BTreeMap<String, Usage>, ContainersError> {
        self.usage_of(ids).await
    }

    fn events(&self) -> mpsc::Receiver<TaskEvent> {
        events::subscribe(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd() -> Containerd {
        Containerd::new(Settings { address: "/nowhere/c.sock".into(), ..Settings::default() }).unwrap()
    }

    #[test]
    fn what_a_status_means_is_what_callers_branch_on() {
        type Is = fn(&ContainersError) -> bool;
        let cases: [(Code, &str, Is); 10] = [
            (Code::NotFound, "", |e| matches!(e, ContainersError::NotFound(what) if what == "c1")),
            (Code::AlreadyExists, "", |e| matches!(e, ContainersError::AlreadyExists(what) if what == "c1")),
            (Code::DeadlineExceeded, "", |e| matches!(e, ContainersError::Timeout { .. })),
            (Code::Cancelled, "context canceled", |e| matches!(e, ContainersError::Timeout { .. })),
            (
                Code::PermissionDenied,
                "who are you",
                |e| matches!(e, ContainersError::Refused { refusal: Refusal::Forbidden, message, .. } if message == "who are you"),
            ),
            (Code::InvalidArgument, "", |e| matches!(e, ContainersError::Refused { refusal: Refusal::Invalid, .. })),
            (Code::FailedPrecondition, "", |e| matches!(e, ContainersError::Refused { refusal: Refusal::State, .. })),
            (Code::ResourceExhausted, "", |e| matches!(e, ContainersError::Full { .. })),
            (Code::Unknown, "write /x: no space left on device", |e| matches!(e, ContainersError::Full { .. })),
            // A shim that has gone, in containerd's words: containerd itself has answered.
            (Code::Unavailable, "ttrpc: closed", |e| matches!(e, ContainersError::Failed { .. })),
        ];
        for (code, message, is) in cases {
            let error = containerd().meaning(&Status::new(code, message), "c1", "making c1", BOOKS);
            assert!(is(&error), "{code:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn without_containerd_it_says_where_it_looked() {
        let error = containerd().version().await.unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("/nowhere/c.sock"), "{error}");
    }

    #[tokio::test]
    async fn a_containerd_that_hangs_and_one_that_hangs_up_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for hangs in [true, false] {
            let address = dir.path().join(format!("{hangs}.sock"));
            let listener = tokio::net::UnixListener::bind(&address).unwrap();
            let server = tokio::spawn(async move {
                loop {
                    let connection = listener.accept().await.unwrap();
                    if hangs {
                        std::mem::forget(connection);
                    }
                }
            });
            let containerd = Containerd::new(Settings { address, ..Settings::default() }).unwrap();
            let within = Duration::from_millis(if hangs { 50 } else { 60_000 });
            let asked = match containerd.channel().await {
                Ok(channel) => VersionClient::new(channel).version(containerd.request((), within)).await,
                Err(error) => panic!("{error}"),
            };
            let error = containerd.meaning(&asked.unwrap_err(), "version", "asking", within);
            assert_eq!(matches!(error, ContainersError::Timeout { .. }), hangs, "{error:?}");
            assert_eq!(error.is_unavailable(), !hangs, "{error:?}");
            server.abort();
        }
    }

    #[test]
    fn a_namespace_that_is_none_is_refused() {
        for name in ["", "a b", "a/b", "ä", "a\n"] {
            assert!(Containerd::new(Settings { namespace: name.into(), ..Settings::default() }).is_err(), "{name:?}");
        }
    }
}
