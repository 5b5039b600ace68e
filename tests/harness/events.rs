//! What containerd's subscribers hear, by `ctr events`.

use serde_json::Value;

use super::process::Running;
use super::{Node, poll};

/// A subscription.
pub struct Events {
    ctr: Running,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// As `/tasks/start`.
    pub topic: String,
    /// Its fields, as ctr prints them.
    pub fields: Value,
}

impl Events {
    /// Subscribes; what happens after this is heard.
    pub fn of(node: &Node) -> Self {
        let events = Self { ctr: Running::start(node.ctr_command(&["events"])) };
        let mut tries = 0;
        let heard = poll(|| {
            tries += 1; // ctr does not say when it has subscribed: make news until it hears some
            node.ctr(&["namespaces", "label", node.namespace(), &format!("try={tries}")]).ok();
            events.ctr.stdout().contains("/namespaces/update").then_some(())
        });
        assert!(heard.is_some(), "ctr events hears nothing");
        events
    }

    /// All events of tasks so far, in the order of their coming.
    pub fn of_tasks(&self) -> Vec<Event> {
        self.ctr.stdout().lines().filter_map(parse).filter(|event| event.topic.starts_with("/tasks/")).collect()
    }

    /// Their topics, without `/tasks/`, for one container; an exec's name is appended to its events.
    pub fn of_container(&self, id: &str) -> Vec<String> {
        let field = |event: &Event, name: &str| event.fields.get(name).and_then(Value::as_str).map(str::to_owned);
        let of = self.of_tasks().into_iter().filter(|event| field(event, "container_id").as_deref() == Some(id));
        of.map(|event| {
            let topic = event.topic.trim_start_matches("/tasks/").to_owned();
            match field(&event, "exec_id").or_else(|| field(&event, "id")) {
                Some(exec) if exec != id => format!("{topic} {exec}"),
                _ => topic,
            }
        })
        .collect()
    }

    /// Waits until a container's events end with `topic`, and gives them all.
    #[track_caller]
    pub fn until(&self, id: &str, topic: &str) -> Vec<String> {
        let seen = poll(|| self.of_container(id).last().is_some_and(|last| last == topic).then_some(()));
        assert!(seen.is_some(), "no {topic} of {id}: {:?}", self.of_container(id));
        self.of_container(id)
    }
}

/// `2026-01-01 00:00:00.0 +0000 UTC NAMESPACE TOPIC {…}`
fn parse(line: &str) -> Option<Event> {
    let (head, fields) = line.split_at(line.find('{')?);
    Some(Event { topic: head.split_whitespace().last()?.to_owned(), fields: serde_json::from_str(fields).ok()? })
}
