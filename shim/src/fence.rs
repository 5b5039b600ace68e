//! The fence around a sandbox that has a network: creto-egress puts it up, on the host, before the first instruction. Without
//! it such a sandbox does not start; one without an interface needs none.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use egress::client::{Client, ClientError, DEADLINE};
use egress::protocol::{Answer, Ask, Attach, Code, Fence, PolicyRef, Question, Refusal, SandboxKey};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use trust::digest::Digest;

use crate::backend::Place;
use crate::bound::Bound;
use crate::error::TaskError;
use crate::paths;

/// Before the daemon is asked again for what it has to tell.
const AGAIN: Duration = Duration::from_secs(2);

/// As creto-egress knows a pod's sandbox.
pub fn key(place: &Place) -> SandboxKey {
    SandboxKey { namespace: place.namespace.clone(), id: place.group.clone() }
}

/// Asks for the fence around the network namespace of a process; none where nothing in it can send a packet.
pub async fn attach(
    place: &Place,
    pid: i32,
    agent: Option<String>,
    policy: PolicyRef,
    attestation: Option<Digest>,
) -> Result<Option<Fence>, TaskError> {
    let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let attach = Attach { sandbox: key(place), agent, netns, policy, attestation };
    let asked = tokio::task::spawn_blocking(move || Client::connect(&paths::egress(), DEADLINE)?.attach(attach));
    let fence = asked.await.map_err(|e| TaskError::host("asking for the fence", e))?;
    match fence {
        Ok(fence) => Ok(Some(fence)),
        Err(ClientError::Refused(Refusal { code: Code::Sealed, .. })) => Ok(None),
        Err(ClientError::Refused(refusal)) => Err(TaskError::Rejected(format!("the sandbox's network: {refusal}"))),
        Err(other) => Err(TaskError::host("the sandbox has a network and no fence around it", other)),
    }
}

/// Takes a fence down, whether there is one or not. One that cannot be asked for sweeps by itself what belongs to nobody.
pub fn detach(place: &Place) {
    let asked = Client::connect(&paths::egress(), DEADLINE).and_then(|mut daemon| daemon.done(Ask::Detach(key(place))));
    match asked {
        Ok(()) | Err(ClientError::Down { .. }) => {}
        Err(error) => tracing::warn!(sandbox = place.group, %error, "the fence stands on"),
    }
}

/// Tells the sandbox's owner of every change of its fence, for as long as there is one.
pub fn watch(bound: &Arc<Bound>, place: Place) {
    let bound = Arc::downgrade(bound);
    tokio::spawn(async move {
        while bound.strong_count() > 0 {
            if let Err(error) = follow(&bound, &place, &paths::egress()).await {
                tracing::debug!(sandbox = place.group, %error, "creto-egress tells nothing for now");
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

async fn follow(bound: &Weak<Bound>, place: &Place, socket: &Path) -> Result<(), Error> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await?);
    stream.write_all(&Question::line(Ask::Watch(key(place)))?).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let Answer::Fence(fence) = serde_json::from_str(&line)? else {
            return Err(Error::new(ErrorKind::InvalidData, line)); // refused: there is no fence
        };
        let Some(bound) = bound.upgrade() else { return Ok(()) };
        if let Err(error) = bound.fenced(fence) {
            tracing::error!(sandbox = place.group, %error, "the new fence is not attested");
        }
        line.clear();
    }
    Ok(())
}
