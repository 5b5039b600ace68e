//! The end of a sandbox: its record says so first, then what runs is asked to end, then all of it is taken away, then the record
//! goes. Killed in between, the agent finds the record at its next start and goes on from there.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use trust::id::SandboxId;

use crate::making::unmake;
use crate::pool::member::{Change, Input};
use crate::ports::{Hand, Ports};
use crate::running::MAIN;
use crate::sandbox::Sandbox;
use crate::shim::Process;
use crate::spawn;
use crate::store::StoreError;

/// How an end comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// SIGTERM, and after the grace period SIGKILL.
    Graceful,
    /// SIGKILL at once.
    Forced,
}

/// Ends a sandbox that is in hand. Its record is gone afterwards; where something of the sandbox is left, the record stays and says
/// so, and the next look goes on.
pub async fn end(ports: &Ports, hand: &Hand, input: Input, manner: Manner) -> Result<Sandbox, StoreError> {
    let ended = mark(ports, hand, input).await?;
    finish(ports, hand, manner).await?;
    Ok(ended)
}

/// The same, that nobody waits for; nothing where somebody has it in hand. What is left where it fails is found by the next look.
pub fn end_soon(ports: &Arc<Ports>, id: &SandboxId, input: Input, manner: Manner) {
    let Some(hand) = ports.hands.take(id) else { return };
    let ports = ports.clone();
    tokio::spawn(async move {
        match end(&ports, &hand, input, manner).await {
            Ok(_) => {}
            Err(StoreError::WrongPhase(why)) => tracing::debug!(%why, "it is not taken down"), // a claim was faster
            Err(error) => tracing::warn!(sandbox = %hand.id(), %error, "it is not taken down yet"),
        }
    });
}

/// Its record says that it ends: from here on nobody gets it, and whoever finds the record goes on.
pub async fn mark(ports: &Ports, hand: &Hand, input: Input) -> Result<Sandbox, StoreError> {
    let ended = ports.store.advance(hand.id(), input, Change::default(), ports.now()).await?;
    tracing::info!(sandbox = %hand.id(), reason = ended.reason.as_ref().map(|reason| &*reason.code), "ends");
    Ok(ended)
}

/// Takes away what is left of one whose record says so, and then the record.
pub async fn finish(ports: &Ports, hand: &Hand, manner: Manner) -> Result<(), StoreError> {
    let id = hand.id();
    if manner == Manner::Graceful {
        ask(ports, id, ports.config.limits.grace).await;
    }
    if let Err(error) = spawn::remove(&ports.maker, id).await {
        tracing::error!(sandbox = %id, %error, "something of it is left: tried again later");
        return Ok(());
    }
    ports.store.remove(id).await.map(drop) // where there is no record, somebody else was faster
}

/// One that failed while it was made or bound: nothing in it is worth asking.
pub async fn give_up(ports: &Ports, hand: &Hand, code: &str, message: String) {
    if let Err(error) = end(ports, hand, Input::failed(code, message), Manner::Forced).await {
        tracing::error!(sandbox = %hand.id(), %error, "its record does not say that it failed");
        unmake(ports, hand.id()).await;
    }
}

/// Asks what runs to end: the claimed command where there is one, else the sandbox's own first process.
async fn ask(ports: &Ports, id: &SandboxId, grace: Duration) {
    let Ok(shim) = ports.shim(id).await else { return };
    let id = id.to_string();
    let main = Process { id: &id, exec: MAIN };
    let term = Signal::SIGTERM as u32;
    let asked = match shim.kill(main, term, false).await {
        Ok(()) => main,
        Err(_) => {
            let init = Process::init(&id);
            if shim.kill(init, term, false).await.is_err() {
                return; // it has ended
            }
            init
        }
    };
    if shim.wait(asked, grace).await.is_err() {
        tracing::info!(sandbox = id, ?grace, "it has not ended when asked: killed");
    }
}
