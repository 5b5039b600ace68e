//! Pulling by containerd's transfer service (1.7 and later): containerd talks to the registry, asks us who we are to it over one
//! stream, and tells over another how far it is. containerd 2 speaks
//! plain HTTP to loopback alone, but where `certs.d` says otherwise; 1.7 speaks HTTPS alone.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::streaming_client::StreamingClient;
use containerd_client::services::v1::transfer_client::TransferClient;
use containerd_client::services::v1::{StreamInit, TransferOptions, TransferRequest};
use containerd_client::to_any;
use containerd_client::tonic::{Code, Status, Streaming};
use containerd_client::types::Platform;
use containerd_client::types::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry, Progress as Report, RegistryResolver,
    UnpackConfiguration,
};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::credentials::{self, Credentials};
use super::grpc::{BOOKS, failed, random};
use super::{Containerd, ContainersError, Progress, Pulled, Refusal};

/// A stream of containerd's, by its id; it ends with this value.
struct Stream {
    id: String,
    pump: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Containerd {
    /// Pulls an image by its full name, and unpacks it on the way where containerd can.
    pub(super) async fn pull(&self, name: &str, progress: Progress) -> Result<(), ContainersError> {
        let snapshotter = self.settings.snapshotter.clone();
        let unpack = UnpackConfiguration { platform: Some(this_machine()), snapshotter };
        match self.transfer(name, vec![unpack], progress.clone()).await {
            // Its transfer service is not configured for the snapshotter: we unpack what it has pulled.
            Err(ContainersError::Refused { refusal: Refusal::Invalid, .. }) => {
                self.transfer(name, vec![], progress).await
            }
            other => other,
        }
    }

    async fn transfer(
        &self,
        name: &str,
        unpacks: Vec<UnpackConfiguration>,
        progress: Progress,
    ) -> Result<(), ContainersError> {
        let within = self.settings.pull_within;
        let auth = match self.settings.docker_config.clone() {
            Some(file) => Some(self.credentials_stream(file).await?),
            None => None,
        };
        let progress = self.progress_stream(progress).await?;
        let resolver = RegistryResolver {
            auth_stream: auth.as_ref().map(|stream| stream.id.clone()).unwrap_or_default(),
            host_dir: text(self.settings.registry_hosts.as_deref()),
            ..RegistryResolver::default()
        };
        let source = OciRegistry { reference: name.to_owned(), resolver: Some(resolver) };
        let platforms = vec![this_machine()];
        let store = ImageStore { name: name.to_owned(), platforms, unpacks, ..ImageStore::default() };
        let request = TransferRequest {
            source: Some(to_any(&source)),
            destination: Some(to_any(&store)),
            options: Some(TransferOptions { progress_stream: progress.id.clone() }),
        };
        let done = TransferClient::new(self.channel().await?).transfer(self.request(request, within)).await;
        done.map(drop).map_err(|status| self.meaning_of_a_pull(&status, name))
    }

    fn meaning_of_a_pull(&self, status: &Status, name: &str) -> ContainersError {
        let why = status.message().to_owned();
        match why_not(status.code(), &why) {
            WhyNot::NotFound => ContainersError::ImageNotFound(name.to_owned()),
            WhyNot::Forbidden => ContainersError::ImageForbidden { image: name.to_owned(), why },
            WhyNot::TooOld => failed(
                format!("pulling image {name}"),
                "containerd 1.7 or later can pull; import it (ctr -n creto image import)",
            ),
            WhyNot::Other => self.meaning(status, name, &format!("pulling image {name}"), self.settings.pull_within),
        }
    }

    /// Opens a stream and gives its id, where to write, and what comes in.
    async fn stream(&self) -> Result<(String, mpsc::Sender<Any>, Streaming<Any>), ContainersError> {
        let id = format!("creto-{}", random()?);
        let (send, receive) = mpsc::channel(1);
        send.try_send(to_any(&StreamInit { id: id.clone() })).map_err(|error| failed("opening a stream", error))?;
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(receive);
        let failed = |status: Status| match status.code() {
            Code::Unimplemented => failed("pulling an image", "containerd 1.7 or later can pull: import it instead"),
            _ => self.meaning(&status, &id, "opening a stream to containerd", BOOKS),
        };
        let opened = StreamingClient::new(self.channel().await?).stream(self.endless(outgoing)).await;
        let mut incoming = opened.map_err(failed)?.into_inner();
        incoming.message().await.map_err(failed)?; // an empty message: it is registered
        Ok((id, send, incoming))
    }

    /// Answers who we are, as often as it is asked.
    async fn credentials_stream(&self, file: PathBuf) -> Result<Stream, ContainersError> {
        let (id, send, mut incoming) = self.stream().await?;
        let pump = tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let Some(asked) = decode::<AuthRequest>(&message) else { continue };
                let file = file.clone();
                // A helper is a program: it may take its time.
                let told = tokio::task::spawn_blocking(move || answer(&file, &asked.host)).await;
                let Ok(told) = told else { return };
                if send.send(to_any(&told)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Stream { id, pump: pump.abort_handle() })
    }

    /// Passes on what containerd tells.
    async fn progress_stream(&self, progress: Progress) -> Result<Stream, ContainersError> {
        let (id, send, mut incoming) = self.stream().await?;
        let pump = tokio::spawn(async move {
            let _open = send; // half-closed, containerd would end it
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(report) = decode::<Report>(&message) {
                    let bytes = |number: i64| u64::try_from(number).unwrap_or_default();
                    let (done, total) = (bytes(report.progress), bytes(report.total));
                    progress(Pulled { event: report.event, name: report.name, bytes: done, total });
                }
            }
        });
        Ok(Stream { id, pump: pump.abort_handle() })
    }
}

/// What a registry is told; where the file cannot be read that is loud, and it is asked without.
fn answer(file: &Path, host: &str) -> AuthResponse {
    let mut told = AuthResponse::default();
    match credentials::of(file, host) {
        Ok(Credentials::Password(name, word)) => {
            told.set_auth_type(AuthType::Credentials);
            (told.username, told.secret) = (name, word);
        }
        Ok(Credentials::Token(token)) => {
            told.set_auth_type(AuthType::Refresh);
            told.secret = token;
        }
        Ok(Credentials::None) => {}
        Err(error) => tracing::warn!(%error, "a registry is asked without credentials"),
    }
    told
}

/// containerd names types with or without a prefix; the end is the name.
pub(super) fn decode<T: Message + Name + Default>(any: &Any) -> Option<T> {
    let name = any.type_url.rsplit('/').next()?;
    (name == T::full_name()).then(|| T::decode(&any.value[..]).ok())?
}

fn text(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn this_machine() -> Platform {
    Platform { os: "linux".into(), architecture: super::images::architecture().into(), ..Platform::default() }
}

#[derive(Debug, PartialEq, Eq)]
enum WhyNot {
    NotFound,
    Forbidden,
    TooOld,
    Other,
}

/// containerd has a code for what is not there, and text alone for a registry that refuses: the status line that the registry
/// sent, or its resolver's `ErrInvalidAuthorization` (core/remotes/docker/errdesc.go).
fn why_not(code: Code, message: &str) -> WhyNot {
    const REFUSED: [&str; 4] = ["401 Unauthorized", "403 Forbidden", "authorization failed", "pull access denied"];
    match code {
        Code::NotFound => WhyNot::NotFound,
        Code::Unimplemented => WhyNot::TooOld,
        Code::PermissionDenied | Code::Unauthenticated => WhyNot::Forbidden,
        _ if REFUSED.iter().any(|text| message.contains(text)) => WhyNot::Forbidden,
        _ => WhyNot::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_and_forbidden_are_told_apart() {
        for (code, message, why) in [
            (Code::NotFound, "failed to resolve image: 127.0.0.1:5000/a:x: not found", WhyNot::NotFound),
            (
                Code::Unknown,
                "unexpected status from HEAD request to http://r/v2/a: 401 Unauthorized",
                WhyNot::Forbidden,
            ),
            (
                Code::Unknown,
                "pull access denied, repository does not exist or may require authorization",
                WhyNot::Forbidden,
            ),
            (Code::PermissionDenied, "", WhyNot::Forbidden),
            (Code::Unimplemented, "unknown service", WhyNot::TooOld),
            (Code::Unknown, "dial tcp: lookup nowhere: no such host", WhyNot::Other),
            (Code::Unavailable, "", WhyNot::Other),
        ] {
            assert_eq!(why_not(code, message), why, "{code:?} {message}");
        }
    }
}
