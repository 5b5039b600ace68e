//! Events, to whom TTRPC_ADDRESS names; without it there are none, and no error (§2). One queue, one sender.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_sync::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;

use crate::config::Copies;
use crate::linger;
use crate::sandbox::Exit;

const DEADLINE_NS: i64 = 5_000_000_000;
/// §4: an event that comes after its reply does so within 3 ms.
pub const AFTER_REPLY: Duration = Duration::from_millis(3);

/// Where events go in.
#[derive(Clone)]
pub struct Events {
    queue: Sender<Item>,
    namespace: String,
}

struct Item {
    envelope: Envelope,
    copies: Copies,
    delay: Duration,
    taken: Sender<()>,
}

impl Events {
    /// Starts the sender.
    pub fn new(namespace: String) -> Self {
        let (queue, items) = channel();
        std::thread::spawn(move || deliver(std::env::var("TTRPC_ADDRESS").ok(), items));
        Self { queue, namespace }
    }

    /// Queues an event, to be sent after `delay`. What is returned ends when it has been taken, or cannot be.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn, copies: Copies, delay: Duration) -> Receiver<()> {
        let value = event.write_to_bytes_dyn().unwrap_or_default(); // no event lacks a required field
        let any = Any { type_url: event.descriptor_dyn().full_name().to_owned(), value, ..Default::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Default::default()
        };
        let (taken, answer) = channel();
        let _ = self.queue.send(Item { envelope, copies, delay, taken });
        answer
    }
}

fn deliver(address: Option<String>, items: Receiver<Item>) {
    let Some(address) = address else { return items.iter().for_each(drop) };
    let address = if address.contains("://") { address } else { format!("unix://{address}") };
    let mut client = None;
    for Item { envelope, copies, delay, taken } in items {
        linger(delay);
        let times = match copies {
            Copies::None => 0,
            Copies::Normal => 1,
            Copies::Doubled => 2,
        };
        for _ in 0..times {
            let connected = client.take().or_else(|| Some(EventsClient::new(Client::connect(&address).ok()?)));
            let request = ForwardRequest { envelope: MessageField::some(envelope.clone()), ..Default::default() };
            client = connected.filter(|c| c.forward(context::with_timeout(DEADLINE_NS), &request).is_ok());
        }
        let _ = taken.send(());
    }
}

/// Protobuf's form of a time.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32, ..Default::default() }
}

/// When a process ended; where it has not, Go's time of nothing: the first of January of the year 1 (§3).
pub fn exited_at(exit: Option<Exit>) -> MessageField<Timestamp> {
    let year_one = Timestamp { seconds: -62_135_596_800, ..Default::default() };
    MessageField::some(exit.map_or(year_one, |exit| timestamp(exit.at)))
}
