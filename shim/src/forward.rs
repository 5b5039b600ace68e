//! Port-forward (`kubectl port-forward`): containerd connects to 127.0.0.1 in the pod's network namespace, on the host, where
//! no sandbox listens. Whoever does so is connected with the same port inside, through the control socket. Until somebody does
//! there is one listening socket and one rule, which packets of the namespace's loopback alone meet (`rules`).
//! gVisor's end knows no half of a connection: the end of either direction is the end of both.

mod listener;
mod rules;

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use trust::audit::Event;

use crate::error::TaskError;
use crate::tasks::{Key, Pod};

/// So many connections at a time; more wait to be accepted.
const MOST: usize = 128;
/// In each direction of a connection, bytes.
const BUFFER: usize = 16 << 10;
/// After an accept that failed for want of something.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether anybody will ask: of what is no pod's sandbox, nobody does.
pub fn is_asked_of(spec: &Value) -> bool {
    spec.pointer("/annotations/io.kubernetes.cri.container-type").and_then(Value::as_str) == Some("sandbox")
}

/// Carries connections into the sandbox, whose first container has this key and process, until it has ended. Where that
/// cannot be, the pod does without.
pub fn serve(pod: &Arc<Pod>, key: &Key, pid: i32) {
    let listener = match listener::open(pid) {
        Ok(listener) => listener,
        Err(error) => {
            let advice = "port-forward will not reach this pod; it needs the kernel's nf_tables and nft_tproxy";
            return tracing::warn!(sandbox = key.id, %error, advice);
        }
    };
    let Ok(mut done) = pod.with(key, |p| p.done.subscribe()) else { return };
    let (pod, id) = (Arc::downgrade(pod), key.id.clone());
    tokio::spawn(async move {
        // All that is open is dropped with this, and the namespace let go.
        tokio::select! {
            () = accept(&pod, &id, listener) => {}
            _ = done.wait_for(Option::is_some) => {}
        }
    });
}

async fn accept(pod: &Weak<Pod>, id: &str, listener: TcpListener) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() || (open.len() >= MOST && open.join_next().await.is_some()) {}
        match listener.accept().await {
            Ok((client, _)) => {
                let Some(pod) = pod.upgrade() else { return };
                let id = id.to_owned();
                open.spawn(async move {
                    let Ok(port) = client.local_addr().map(|at| at.port()) else { return };
                    let inside = connect(&pod, &id, port).await;
                    let error = inside.as_ref().err().map(|error| error.to_string().as_str().into());
                    if let Some(bound) = pod.bound() {
                        bound.record(vec![Event::PortForwarded { port, error }]);
                    }
                    drop(pod);
                    match inside {
                        Ok(inside) => carry(client, inside).await,
                        Err(error) => refuse(&client, port, &error),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for port-forward");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// The sandbox's end of a connection to one of its ports.
async fn connect(pod: &Pod, id: &str, port: u16) -> Result<UnixStream, TaskError> {
    let failed = |e| TaskError::host("connecting with the sandbox", e);
    let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = UnixStream::from_std(ours).map_err(failed)?;
    pod.backend()?.connect(id, port, theirs.into()).await?;
    Ok(ours)
}

async fn carry(mut client: TcpStream, mut inside: UnixStream) {
    let carried = copy_bidirectional_with_sizes(&mut client, &mut inside, BUFFER, BUFFER).await;
    tracing::debug!(?carried, "a forwarded connection has ended");
}

/// Nobody listens there. The kernel has accepted already: a reset is the nearest to a refusal.
fn refuse(client: &TcpStream, port: u16, why: &TaskError) {
    let reset = client.set_zero_linger();
    tracing::debug!(port, %why, ?reset, "a connection for port-forward was refused");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_pod_s_sandbox_is_asked() {
        for (kind, asked) in
            [(json!("sandbox"), true), (json!("container"), false), (json!(7), false), (json!(null), false)]
        {
            let spec = json!({"annotations": {"io.kubernetes.cri.container-type": kind}});
            assert_eq!(is_asked_of(&spec), asked, "{kind}");
        }
        assert!(!is_asked_of(&json!({})));
    }
}
