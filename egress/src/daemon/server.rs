//! egress.sock: reads a question, asks the node's sandboxes, writes the answer. Only root is answered.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::metrics::Shown;
use super::ruleset::Slot;
use super::sandboxes::Sandboxes;
use crate::protocol::{Answer, Ask, Code, MAX_LINE, Refusal, SandboxKey};

/// Callers at a time; one more waits to be let in. Each sandbox's shim is one for as long as that lives: it watches its fence.
const CALLERS: usize = Slot::MAX as usize + 1024;

/// Listens at a path that only root can reach, or on what a service manager has opened there; of a daemon that was killed the
/// socket is taken over.
pub fn listen(path: &Path, activated: Option<StdListener>) -> io::Result<UnixListener> {
    if let Some(activated) = activated {
        activated.set_nonblocking(true)?;
        return UnixListener::from_std(activated);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another creto-egress answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?; // found only when it is as it should be
    Ok(listener)
}

/// Answers callers for ever.
pub async fn serve(listener: UnixListener, sandboxes: Arc<Sandboxes>, metrics: Shown) {
    let room = Arc::new(Semaphore::new(CALLERS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (sandboxes, metrics) = (sandboxes.clone(), metrics.clone());
                tokio::spawn(async move {
                    if let Err(error) = caller(stream, &sandboxes, &metrics).await {
                        tracing::debug!(%error, "a caller is gone");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a caller");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await; // out of descriptors, say
            }
        }
    }
}

async fn caller(stream: UnixStream, sandboxes: &Sandboxes, metrics: &Shown) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != Uid::effective().as_raw() {
        tracing::warn!(uid, "a caller that is not root was sent away");
        return Ok(());
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let message = format!("a question is one line of at most {MAX_LINE} bytes");
            return write(&mut writer, &Answer::Refused(Refusal { code: Code::BadQuestion, message })).await;
        }
        match Ask::parse(&line) {
            Ok(Ask::Watch(sandbox)) => return watch(sandboxes, &sandbox, &mut writer).await,
            Ok(ask) => {
                let answer = answer(sandboxes, metrics, ask).await.unwrap_or_else(Answer::Refused);
                write(&mut writer, &answer).await?;
            }
            Err(refusal) => write(&mut writer, &Answer::Refused(refusal)).await?,
        }
    }
}

async fn answer(sandboxes: &Sandboxes, metrics: &Shown, ask: Ask) -> Result<Answer, Refusal> {
    Ok(match ask {
        Ask::Attach(attach) => Answer::Fence(sandboxes.attach(attach).await?),
        Ask::Rebind(rebind) => Answer::Fence(sandboxes.rebind(rebind).await?),
        Ask::Update(update) => Answer::Fence(sandboxes.update(update).await?),
        Ask::AddRule(own) => Answer::Fence(sandboxes.add_rule(own).await?),
        Ask::RemoveRule(own) => Answer::Fence(sandboxes.remove_rule(own).await?),
        Ask::Detach(sandbox) => sandboxes.detach(&sandbox).await.map(|()| Answer::Done)?,
        Ask::List => Answer::Fences(sandboxes.list().await),
        Ask::Get(sandbox) => Answer::Policy(sandboxes.get(&sandbox)?),
        Ask::Explain(flow) => Answer::Explained(sandboxes.explain(&flow)?),
        Ask::Revoke(sandbox) => sandboxes.revoke(&sandbox).await.map(|()| Answer::Done)?,
        Ask::Reload => Answer::Reloaded(sandboxes.reload().await),
        Ask::Metrics => Answer::Metrics(metrics.text().await),
        Ask::Watch(sandbox) => Answer::Fence(sandboxes.watch(&sandbox)?.borrow().clone()),
    })
}

async fn watch(sandboxes: &Sandboxes, sandbox: &SandboxKey, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut changes = match sandboxes.watch(sandbox) {
        Ok(changes) => changes,
        Err(refusal) => return write(writer, &Answer::Refused(refusal)).await,
    };
    loop {
        let fence = changes.borrow_and_update().clone();
        write(writer, &Answer::Fence(fence)).await?;
        if changes.changed().await.is_err() {
            return Ok(()); // detached
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
