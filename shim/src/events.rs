//! Events to containerd: one queue, one sender, order kept; redialled until containerd has taken each.
//! Source: containerd `services/events/ttrpc/v1`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;
use tokio::sync::{mpsc, oneshot};

const FORWARD_TIMEOUT_NS: i64 = 5_000_000_000;
const REDIAL: Duration = Duration::from_millis(200);
/// Events kept while containerd is away; the oldest is dropped, loudly, beyond it.
const KEPT: usize = 4096;

/// Where a shim's events go in.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::UnboundedSender<Item>,
    namespace: String,
    muted: Arc<AtomicBool>,
}

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Starts the sender. Without an address (no `TTRPC_ADDRESS`) events go nowhere.
    pub fn new(address: Option<String>, namespace: String) -> Self {
        let (queue, inbox) = mpsc::unbounded_channel();
        tokio::spawn(deliver(address, inbox));
        Self { queue, namespace, muted: Arc::default() }
    }

    /// Nothing is published from here on: the shim leaves with tasks, and containerd tells of their end itself.
    pub fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }

    /// Queues one event; never waits.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        if self.muted.load(Ordering::Relaxed) {
            return;
        }
        let value = match event.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => return tracing::error!(topic, %error, "event could not be encoded"),
        };
        let any = Any { type_url: event.descriptor_dyn().full_name().to_owned(), value, ..Default::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Default::default()
        };
        let _ = self.queue.send(Item::Event(Box::new(envelope))); // the sender ends with the process
    }

    /// Waits until all that was published has been taken, but no longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let (done, taken) = oneshot::channel();
        let _ = self.queue.send(Item::Flush(done));
        let _ = tokio::time::timeout(patience, taken).await;
    }
}

/// Protobuf's form of a time.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32, ..Default::default() }
}

async fn deliver(address: Option<String>, mut inbox: mpsc::UnboundedReceiver<Item>) {
    let mut waiting = VecDeque::new();
    let mut client = None;
    while let Some(item) = inbox.recv().await {
        waiting.push_back(item);
        while let Some(next) = waiting.pop_front() {
            let envelope = match next {
                Item::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
                Item::Event(envelope) => envelope,
            };
            let Some(address) = &address else { continue };
            if let Err(error) = forward(address, &mut client, &envelope).await {
                tracing::debug!(topic = %envelope.topic, %error, "containerd took no event; will redial");
                client = None;
                waiting.push_front(Item::Event(envelope)); // order is kept: nothing overtakes it
                tokio::time::sleep(REDIAL).await;
                while let Ok(more) = inbox.try_recv() {
                    waiting.push_back(more);
                }
                while waiting.len() > KEPT {
                    tracing::error!("event queue is full: dropping the oldest");
                    waiting.pop_front();
                }
            }
        }
    }
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    envelope: &Envelope,
) -> containerd_shim_protos::ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => {
            let address = if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
            client.insert(EventsClient::new(Client::connect(&address).await?))
        }
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope.clone()), ..Default::default() };
    client.forward(context::with_timeout(FORWARD_TIMEOUT_NS), &request).await.map(drop)
}
