//! `GET /v1/events`: what happens to sandboxes, as server-sent events (WHATWG HTML, "Server-sent events"). Each has an id; a client that
//! sends the last one as `Last-Event-ID` misses nothing that is kept still. Who cannot be told all is told `lost`, and loses its connection.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use trust::id::{PoolName, SandboxId};

use super::Api;
use super::auth::Via;
use super::input::Asked;
use super::problem::Problem;
use super::route::{Access, Route, get};
use crate::events::{Heard, News, Reader};

/// Where nothing happens, a line says so often that the connection is alive.
const ALIVE: Duration = Duration::from_secs(15);
/// A client comes again after so long.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Of this sandbox alone.
    sandbox: Option<SandboxId>,
    /// Of this pool's sandboxes alone.
    pool: Option<PoolName>,
}

pub fn routes() -> Vec<Route> {
    vec![
        get("/v1/events", events)
            .named("listenToEvents", "What happens to sandboxes, as server-sent events: `sandbox`, `pull`, and `lost` at the end of what can be told.")
            .may(Access::Anyone)
            .query::<Which>()
            .answers_as::<String>("text/event-stream", StatusCode::OK, "Until the client goes.")
            .problems(&[(503, "too-many-listeners")]),
    ]
}

/// One client.
struct Listener {
    reader: Reader,
    which: Which,
    via: Via,
    /// Over TCP, where there is room for some alone.
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener {
    fn wants(&self, news: &News) -> bool {
        // Over TCP anybody may look at records, and at nothing else.
        let open = matches!(self.via, Via::Socket) || matches!(news, News::Sandbox(_));
        open && self.which.sandbox.as_ref().is_none_or(|id| id == news.sandbox())
            && self.which.pool.as_ref().is_none_or(|pool| news.pool() == Some(pool))
    }

    async fn next(&mut self) -> (Event, bool) {
        loop {
            match self.reader.next().await {
                Heard::News(mark, news) if self.wants(&news) => return (event(&news).id(mark.to_string()), false),
                Heard::News(..) => {}
                Heard::Lost(mark) => {
                    let hint = "events are missing: look at GET /v1/sandboxes, and go on from this one's id";
                    let lost = Event::default().event("lost").id(mark.to_string());
                    return (lost.data(json!({ "hint": hint }).to_string()), true);
                }
            }
        }
    }
}

fn event(news: &News) -> Event {
    let (kind, data) = match news {
        News::Sandbox(change) => ("sandbox", serde_json::to_string(change)),
        News::Pull(pull) => ("pull", serde_json::to_string(pull)),
    };
    Event::default().event(kind).data(data.unwrap_or_default()) // names and numbers: it does not fail
}

async fn events(
    State(api): State<Api>,
    Extension(via): Extension<Via>,
    headers: HeaderMap,
    Asked(which): Asked<Which>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let place = match &via {
        Via::Socket => None,
        Via::Tcp(_) => Some(api.listeners.clone().try_acquire_owned().map_err(|_| {
            let why = "as many listen to events over TCP as may (a fourth of api.concurrent)";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-listeners", why).again_after(ALIVE)
        })?),
    };
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty());
    // What is no mark of ours is of another run of the agent.
    let reader = match last.map(str::parse) {
        None => api.ports.events.read(None),
        Some(Ok(mark)) => api.ports.events.read(Some(mark)),
        Some(Err(())) => api.ports.events.read_after_a_stranger(),
    };
    let begin = Event::default().comment("listening").retry(AGAIN); // whatever happens from here on is told
    let news = stream::unfold(Some(Listener { reader, which, via, _place: place }), async |listener| {
        let mut listener = listener?;
        let (event, is_last) = listener.next().await;
        Some((Ok(event), (!is_last).then_some(listener)))
    });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(begin)]), news);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(ALIVE).text("alive")))
}
