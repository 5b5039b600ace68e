//! `events`: what happens to sandboxes, a line each, as the node agent tells it; and the reading of server-sent events, for whoever
//! listens meanwhile.

use std::io::{self, Write};

use bytes::Bytes;
use clap::Args;
use serde::de::DeserializeOwned;
use trust::id::{PoolName, SandboxId};

use super::agent_api::{Agent, AgentApiError, Answer, block_on, with_query};
use super::output;
use crate::events::{PullProgress, SandboxChange};
use crate::node::Root;

/// Of which sandboxes, and how.
#[derive(Debug, Args)]
pub struct Asked {
    /// Of one sandbox, by its id
    #[arg(long, value_name = "ID")]
    sandbox: Option<SandboxId>,
    /// Of the members of one pool
    #[arg(long)]
    pool: Option<PoolName>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Why it does not go on.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The node agent.
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    /// We were too slow.
    #[error("events are missing, for they came faster than they were read: look at the list, and listen again")]
    Lost,
    /// What came is of another version.
    #[error("an event that this client does not read: are it and creto-pool-agent of the same version?")]
    Unreadable(#[from] serde_json::Error),
    /// The answer cannot be passed on.
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

/// What is told.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// A record has changed.
    Sandbox(SandboxChange),
    /// A pull goes on.
    Pull(PullProgress),
    /// We were too slow.
    Lost,
}

pub(super) fn run(asked: &Asked, root: &Root, out: &mut dyn Write) -> Result<(), EventsError> {
    let sandbox = asked.sandbox.as_ref().map(|id| ("sandbox", id.to_string()));
    let pool = asked.pool.as_ref().map(|pool| ("pool", pool.to_string()));
    block_on(async {
        let mut listener = Listener::begin(&Agent::of(root), sandbox.into_iter().chain(pool)).await?;
        while let Some(said) = listener.next().await? {
            match said {
                Said::Sandbox(change) if asked.json => writeln!(out, "{}", serde_json::to_string(&change)?)?,
                Said::Sandbox(change) => line(out, &change)?,
                Said::Pull(pull) if asked.json => writeln!(out, "{}", serde_json::to_string(&pull)?)?,
                Said::Pull(PullProgress { image, sandbox, bytes, total, .. }) => {
                    let (bytes, total) = (output::bytes(bytes), output::bytes(total));
                    writeln!(out, "{sandbox} pulls {image}: {bytes} of {total}")?;
                }
                Said::Lost => return Err(EventsError::Lost),
            }
            out.flush()?;
        }
        Ok(())
    })
}

fn line(out: &mut dyn Write, change: &SandboxChange) -> io::Result<()> {
    let phase = if change.gone { "gone" } else { change.phase.name() };
    let reason = change.reason.as_ref().map(|reason| format!(" ({}: {})", reason.code, reason.message));
    let of = |what: &str, name: Option<String>| name.map(|name| format!(" {what} {name}")).unwrap_or_default();
    let pool = of("of", change.pool.as_ref().map(ToString::to_string));
    let agent = of("for", change.agent.as_ref().map(ToString::to_string));
    writeln!(out, "{}{pool}{agent}: {phase}{}", change.id, output::plain(&reason.unwrap_or_default()))
}

/// Listens to what the node agent tells.
pub struct Listener {
    body: Answer,
    unread: Unread,
}

impl Listener {
    /// Whatever happens once this has returned is told.
    pub async fn begin(
        api: &Agent,
        which: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, EventsError> {
        let body = api.listen(&with_query("/v1/events", which)).await?;
        Ok(Self { body, unread: Unread::default() })
    }

    /// What happens next; none where the agent tells no more.
    pub async fn next(&mut self) -> Result<Option<Said>, EventsError> {
        loop {
            while let Some((event, data)) = self.unread.event() {
                match &*event {
                    "sandbox" => return Ok(Some(Said::Sandbox(read(&data)?))),
                    "pull" => return Ok(Some(Said::Pull(read(&data)?))),
                    "lost" => return Ok(Some(Said::Lost)),
                    _ => {} // of a later version
                }
            }
            match self.body.next().await? {
                Some(bytes) => self.unread.add(&bytes),
                None => return Ok(None),
            }
        }
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, EventsError> {
    Ok(serde_json::from_str(data)?)
}

/// Bytes of an event stream that are not read yet (WHATWG HTML, "Server-sent events": fields, an empty line ends an event). Our agent
/// ends lines by LF alone, and its data is one line.
#[derive(Debug, Default)]
struct Unread(Vec<u8>);

impl Unread {
    fn add(&mut self, bytes: &Bytes) {
        self.0.extend_from_slice(bytes);
    }

    /// The next event that has data, if it is there whole.
    fn event(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.0.windows(2).position(|two| two == b"\n\n")?;
            let block: Vec<u8> = self.0.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let field = |name: &str| {
                let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim_start().to_owned());
                block.lines().find_map(value)
            };
            if let Some(data) = field("data") {
                return Some((field("event").unwrap_or_default(), data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whole_however_they_come() {
        let text = ": listening\nretry: 1000\n\nevent: sandbox\ndata: {\"a\": 1}\nid: 7-1\n\n: alive\n\nevent: lost\ndata: {}\n\nevent: half";
        for size in [1, 7, text.len()] {
            let (mut unread, mut events) = (Unread::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                unread.add(&Bytes::copy_from_slice(part));
                events.extend(std::iter::from_fn(|| unread.event()));
            }
            let expected = [("sandbox", "{\"a\": 1}"), ("lost", "{}")].map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(events, expected, "{size} bytes at once");
        }
    }
}
