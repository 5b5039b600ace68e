//! What happens to tasks, as containerd tells it: read until the reader goes away, subscribed to again when containerd was gone.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::pull::decode;
use super::{Containerd, ContainersError};

/// So many events wait for a slow reader; then containerd waits.
const WAITING: usize = 256;
/// The topic of an event of our own, by which it is known that a subscription is in force.
const NUDGE: &str = "/creto/listening";
/// Between two of them.
const SOON: Duration = Duration::from_millis(20);
/// Between two tries to subscribe.
const AWAY: Duration = Duration::from_millis(250);

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// From here on events are heard. Whatever happened before this, at the start and after each time that containerd was gone,
    /// was not: look at the list.
    Listening,
    /// A container's first process has ended.
    Exited {
        /// The container.
        id: String,
        /// Its exit status; 128 + n where signal n ended it.
        status: u32,
    },
    /// A container had no memory left, and a process was killed for it.
    OutOfMemory {
        /// The container.
        id: String,
    },
}

pub(super) fn subscribe(containerd: Containerd) -> mpsc::Receiver<TaskEvent> {
    let (send, receive) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut loud = true; // once for each time that it is gone
        loop {
            let heard = tokio::select! {
                () = send.closed() => return,
                heard = containerd.pass_on(&send, &mut loud) => heard,
            };
            if let Err(error) = heard
                && std::mem::take(&mut loud)
            {
                tracing::warn!(%error, "containerd's events are not heard; trying again");
            }
            tokio::select! {
                () = send.closed() => return,
                () = sleep(AWAY) => {}
            }
        }
    });
    receive
}

impl Containerd {
    /// Ends where containerd or the reader does.
    async fn pass_on(&self, send: &mpsc::Sender<TaskEvent>, loud: &mut bool) -> Result<(), ContainersError> {
        let doing = "listening to events";
        let failed = |status| self.meaning(&status, "events", doing, Duration::MAX);
        let of = |topic: &str| format!("namespace=={},topic==\"{topic}\"", self.settings.namespace);
        let filters = vec![of("/tasks/exit"), of("/tasks/oom"), of(NUDGE)];
        let request = self.endless(SubscribeRequest { filters });
        let (mut subscriber, mut publisher) =
            (EventsClient::new(self.channel().await?), EventsClient::new(self.channel().await?));
        let subscribing = subscriber.subscribe(request);
        tokio::pin!(subscribing);
        // containerd answers a subscription with its first event and not before: we see to one.
        let mut stream = loop {
            tokio::select! {
                answer = &mut subscribing => break answer.map_err(failed)?.into_inner(),
                () = sleep(SOON) => {
                    let nudge = PublishRequest { topic: NUDGE.to_owned(), event: Some(Any::default()) };
                    publisher.publish(self.endless(nudge)).await.map_err(failed)?;
                }
            }
        };
        *loud = true;
        if send.send(TaskEvent::Listening).await.is_err() {
            return Ok(());
        }
        while let Some(envelope) = stream.message().await.map_err(failed)? {
            if let Some(event) = event(&envelope)
                && send.send(event).await.is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What an envelope says; `None` for an exec's exit, which is its caller's business, and for anything else.
fn event(envelope: &Envelope) -> Option<TaskEvent> {
    let any = envelope.event.as_ref()?;
    if let Some(exit) = decode::<TaskExit>(any) {
        let of_the_first = exit.id == exit.container_id;
        return of_the_first.then_some(TaskEvent::Exited { id: exit.container_id, status: exit.exit_status });
    }
    decode::<TaskOom>(any).map(|oom| TaskEvent::OutOfMemory { id: oom.container_id })
}

#[cfg(test)]
mod tests {
    use containerd_client::to_any;

    use super::*;

    #[test]
    fn an_exit_is_the_containers_and_no_execs() {
        let exit =
            |id: &str| TaskExit { container_id: "c".into(), id: id.into(), exit_status: 137, ..TaskExit::default() };
        let oom = TaskOom { container_id: "c".into() };
        for (any, heard) in [
            (to_any(&exit("c")), Some(TaskEvent::Exited { id: "c".into(), status: 137 })),
            (to_any(&exit("e")), None),
            (to_any(&oom), Some(TaskEvent::OutOfMemory { id: "c".into() })),
            (prost_types::Any::default(), None),
        ] {
            assert_eq!(event(&Envelope { event: Some(any), ..Envelope::default() }), heard);
        }
    }
}
