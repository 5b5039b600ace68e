//! After a restart, and whenever containerd was away: records, containers and networks are made to agree. Members that wait and
//! sandboxes that run are adopted; what was being made, or ended while nobody looked, is taken down; what no record knows is swept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trust::id::SandboxId;

use crate::containerd::{Container, ContainersError, Status, TaskEvent};
use crate::ending::{Manner, end_soon, finish, mark};
use crate::making::unmake;
use crate::pool::member::Input;
use crate::pools::WarmPoolManager;
use crate::ports::Ports;
use crate::running;
use crate::sandbox::{Phase, Sandbox};
use crate::store::{Filter, StoreError};

/// What cannot be made to agree.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// containerd.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What becomes of a record, by what containerd has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It goes on.
    Adopt,
    /// It ends, and why.
    End(&'static str, &'static str),
}

fn fate(sandbox: &Sandbox, container: Option<&Container>) -> Fate {
    let runs = container
        .and_then(|c| c.task.as_ref())
        .is_some_and(|task| matches!(task.status, Status::Running | Status::Paused | Status::Unknown));
    match sandbox.phase {
        Phase::Warming => Fate::End("interrupted", "the agent ended while it was being made"),
        Phase::Terminating | Phase::Failed => Fate::End("over", "it had ended"),
        Phase::Ready | Phase::Claimed | Phase::Running if !runs => Fate::End("exited", "it ended while nobody looked"),
        // One that is Claimed may be asked for again; if it is not, the pool takes it down.
        Phase::Ready | Phase::Claimed | Phase::Running => Fate::Adopt,
    }
}

/// Makes them agree.
pub async fn agree(pools: &WarmPoolManager) -> Result<(), RecoveryError> {
    let ports = pools.ports();
    let containers: BTreeMap<String, Container> =
        ports.maker.containers.list(None).await?.into_iter().map(|c| (c.id.clone(), c)).collect();
    let filter = Filter::of_node(&ports.node);
    let records = ports.store.sandboxes(&filter).await?;
    let known: BTreeSet<String> = records.iter().map(|sandbox| sandbox.id.to_string()).collect();
    for sandbox in &records {
        match fate(sandbox, containers.get(&sandbox.id.to_string())) {
            Fate::Adopt if sandbox.phase == Phase::Running => running::watch(ports, None, &sandbox.id),
            Fate::Adopt => {}
            Fate::End(code, why) => {
                let Some(hand) = ports.hands.take(&sandbox.id) else { continue };
                mark(ports, &hand, Input::ended(code, why)).await?; // nobody is handed it any more
                let ports = ports.clone();
                tokio::spawn(async move {
                    if let Err(error) = finish(&ports, &hand, Manner::Forced).await {
                        tracing::warn!(sandbox = %hand.id(), %error, "it is not taken down yet");
                    }
                });
            }
        }
    }
    let wired = ports.maker.networks.attached().unwrap_or_else(|error| {
        tracing::error!(%error, "what is left of networks is not known");
        BTreeSet::new()
    });
    let strangers = containers.keys().filter_map(|id| id.parse::<SandboxId>().ok()).chain(wired);
    for id in strangers.filter(|id| !known.contains(&id.to_string())).collect::<BTreeSet<_>>() {
        // A record comes before its container: without one, nobody of this process is making it.
        let Some(hand) = ports.hands.take(&id) else { continue };
        tracing::warn!(sandbox = %id, "no record knows it: swept");
        let ports = ports.clone();
        tokio::spawn(async move {
            unmake(&ports, hand.id()).await;
        });
    }
    pools.look();
    Ok(())
}

/// Hears of sandboxes that end by themselves, for as long as it is awaited; makes all agree first, and after each time that
/// containerd was away.
pub async fn listen(pools: WarmPoolManager) {
    let mut events = pools.ports().maker.containers.events();
    while let Some(event) = events.recv().await {
        let ports = pools.ports();
        match event {
            TaskEvent::Listening => {
                if let Err(error) = agree(&pools).await {
                    tracing::error!(%error, "records and containers may not agree");
                }
            }
            TaskEvent::Exited { id, status } => {
                let Ok(id) = id.parse::<SandboxId>() else { continue };
                ports.exits.note(&id, status);
                let message = has_ended(status);
                let member = ports.store.sandbox(&id).await.ok().flatten();
                let input = match member.map(|sandbox| sandbox.phase) {
                    Some(Phase::Running) => Input::ended("exited", message),
                    Some(_) => Input::failed("exited", message),
                    None => continue,
                };
                end_soon(ports, &id, input, Manner::Forced);
                pools.look();
            }
            TaskEvent::OutOfMemory { id } => {
                tracing::warn!(sandbox = id, "out of memory: the kernel ends what is in it")
            }
        }
    }
}

/// For people: why a sandbox is over.
pub fn has_ended(status: u32) -> String {
    format!("its first process has ended with {status}")
}

/// Ends what has lived as long as it may; asked now and then.
pub async fn expire(ports: &Arc<Ports>) -> Result<(), StoreError> {
    let filter = Filter { phase: Some(Phase::Running), ..Filter::of_node(&ports.node) };
    let now = ports.now();
    for sandbox in ports.store.sandboxes(&filter).await? {
        if sandbox.expires_at.is_some_and(|at| at <= now) {
            let input = Input::ended("expired", "its time to live is over");
            end_soon(ports, &sandbox.id, input, Manner::Graceful);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use trust::clock::Timestamp;

    use super::*;
    use crate::containerd::Task;
    use crate::spec::SandboxSpec;

    #[test]
    fn what_runs_is_adopted_and_what_is_half_made_is_not() {
        let container = |status| Container {
            id: "a".into(),
            image: "i".into(),
            labels: BTreeMap::new(),
            task: Some(Task { pid: 1, status, exit: None }),
            created: None,
        };
        let none = Container { task: None, ..container(Status::Running) };
        let running = container(Status::Running);
        let stopped = container(Status::Stopped);
        let unknown = container(Status::Unknown); // its shim does not answer just now: containerd says so soon
        for (phase, container, code) in [
            (Phase::Ready, Some(&running), None),
            (Phase::Running, Some(&running), None),
            (Phase::Claimed, Some(&running), None),
            (Phase::Running, Some(&unknown), None),
            (Phase::Ready, Some(&stopped), Some("exited")),
            (Phase::Ready, Some(&none), Some("exited")),
            (Phase::Running, None, Some("exited")),
            (Phase::Warming, Some(&running), Some("interrupted")),
            (Phase::Warming, None, Some("interrupted")),
            (Phase::Failed, Some(&running), Some("over")),
            (Phase::Terminating, None, Some("over")),
        ] {
            let (id, node) = ("a".parse().unwrap(), "n".parse().unwrap());
            let spec = SandboxSpec::of("i".parse().unwrap());
            let sandbox = Sandbox { phase, ..Sandbox::wished(id, node, None, spec, Timestamp::from_unix(0)) };
            let found = match fate(&sandbox, container) {
                Fate::Adopt => None,
                Fate::End(code, _) => Some(code),
            };
            assert_eq!(found, code, "{phase} {container:?}");
        }
    }
}
