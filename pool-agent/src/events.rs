//! What happens to this node's sandboxes, for whoever wants to hear of it. The last changes are kept in a ring, each with a number; a
//! reader is a number, too, so that one that does not keep up costs nothing: what it wanted next is gone some time, and it is told so.
//! Not here: how they are written to a client (`api::events`), and where records change (`store::told`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use trust::id::{AgentId, NodeId, PoolName, SandboxId};

use crate::image::ImageRef;
use crate::sandbox::{Phase, Reason, Sandbox};

/// So many changes are kept.
const KEPT: usize = 4096;

/// A sandbox's record has changed: what of it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxChange {
    /// Which sandbox.
    pub id: SandboxId,
    /// Where it is.
    pub node: NodeId,
    /// Whose member it was made as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why it failed, or why it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The record's: of two changes of a sandbox the one with the higher revision is later.
    pub revision: u64,
    /// For whom it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Nothing is left of it; its record, of which this is the last state, is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

impl SandboxChange {
    /// To what a record says now.
    pub fn to(sandbox: &Sandbox) -> Self {
        Self {
            id: sandbox.id.clone(),
            node: sandbox.node.clone(),
            pool: sandbox.pool.as_ref().map(|member| member.pool.clone()),
            phase: sandbox.phase,
            reason: sandbox.reason.clone(),
            revision: sandbox.revision,
            agent: sandbox.agent.clone(),
            gone: false,
        }
    }
}

/// How far the pull of an image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// The image, as it was asked for.
    pub image: ImageRef,
    /// For which sandbox.
    pub sandbox: SandboxId,
    /// Whose member that is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Bytes so far.
    pub bytes: u64,
    /// Bytes in all, as far as it is known.
    pub total: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// To a sandbox's record.
    Sandbox(SandboxChange),
    /// An image is being pulled.
    Pull(PullProgress),
}

impl News {
    /// Of which sandbox.
    pub fn sandbox(&self) -> &SandboxId {
        match self {
            Self::Sandbox(change) => &change.id,
            Self::Pull(pull) => &pull.sandbox,
        }
    }

    /// Of which pool.
    pub fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::Sandbox(change) => change.pool.as_ref(),
            Self::Pull(pull) => pull.pool.as_ref(),
        }
    }
}

/// Where one is in what happened: this run of the agent, and a number. A client gives it back to go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    run: u32,
    number: u64,
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{}", self.run, self.number)
    }
}

impl std::str::FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, number) = text.split_once('-').ok_or(())?;
        Ok(Self { run: u32::from_str_radix(run, 16).map_err(drop)?, number: number.parse().map_err(drop)? })
    }
}

/// What has happened last.
#[derive(Debug)]
pub struct Events {
    run: u32,
    kept: usize,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the newest, 0 before there is one.
    newest: u64,
    news: VecDeque<Arc<News>>,
}

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Something has happened.
    News(Mark, Arc<News>),
    /// What it wanted is not kept any more, or was told by another run of the agent. What is from here on would be told again.
    Lost(Mark),
}

/// Somebody who reads.
#[derive(Debug)]
pub struct Reader {
    events: Arc<Events>,
    /// What it has read last; none where that is not known here.
    last: Option<u64>,
    changed: watch::Receiver<u64>,
}

impl Events {
    /// Of a run of the agent; `run` tells it from others.
    pub fn new(run: u32) -> Self {
        Self::keeping(run, KEPT)
    }

    fn keeping(run: u32, kept: usize) -> Self {
        Self { run, kept, ring: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Something has happened.
    pub fn tell(&self, news: News) {
        let mut ring = self.lock();
        if ring.news.len() == self.kept {
            ring.news.pop_front();
        }
        ring.news.push_back(Arc::new(news));
        ring.newest += 1;
        self.newest.send_replace(ring.newest);
    }

    /// Reads what comes after this mark, or from now on.
    pub fn read(self: &Arc<Self>, after: Option<Mark>) -> Reader {
        let newest = self.lock().newest;
        let last = match after {
            None => Some(newest),
            Some(mark) if mark.run == self.run && mark.number <= newest => Some(mark.number),
            Some(_) => None,
        };
        Reader { events: self.clone(), last, changed: self.newest.subscribe() }
    }

    /// Reads on from where another run of the agent was, or nobody: from now on, with something lost before.
    pub fn read_after_a_stranger(self: &Arc<Self>) -> Reader {
        Reader { last: None, ..self.read(None) }
    }

    /// What comes after a number: nothing yet, or what is heard of it.
    fn after(&self, last: Option<u64>) -> Option<Heard> {
        let ring = self.lock();
        let mark = |number| Mark { run: self.run, number };
        let oldest = ring.newest + 1 - ring.news.len() as u64;
        let Some(next) = last.map(|last| last + 1).filter(|next| *next >= oldest) else {
            return Some(Heard::Lost(mark(ring.newest)));
        };
        let news = ring.news.get(usize::try_from(next - oldest).unwrap_or(usize::MAX))?;
        Some(Heard::News(mark(next), news.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// What happens next. Waits for it.
    pub async fn next(&mut self) -> Heard {
        loop {
            self.changed.mark_unchanged(); // before the look, or what comes between is missed
            if let Some(heard) = self.events.after(self.last) {
                let (Heard::News(mark, _) | Heard::Lost(mark)) = &heard;
                self.last = Some(mark.number);
                return heard;
            }
            let _ = self.changed.changed().await; // the sender is as alive as `events`
        }
    }
}

#[cfg(test)]
mod tests {
    use trust::clock::Timestamp;

    use super::*;
    use crate::spec::SandboxSpec;

    fn news(id: &str) -> News {
        let spec = SandboxSpec::of("a".parse().unwrap());
        let sandbox = Sandbox::wished(id.parse().unwrap(), "n".parse().unwrap(), None, spec, Timestamp::from_unix(0));
        News::Sandbox(SandboxChange::to(&sandbox))
    }

    fn told(ids: &[&str]) -> Arc<Events> {
        let events = Arc::new(Events::keeping(7, 3));
        ids.iter().for_each(|id| events.tell(news(id)));
        events
    }

    /// The ids that are told, `!` for what is lost, until there is nothing more.
    fn all(events: &Arc<Events>, after: Option<&str>) -> String {
        let mut reader = events.read(after.map(|mark| mark.parse().unwrap()));
        let mut heard = String::new();
        while let Some(next) = events.after(reader.last) {
            heard += &match &next {
                Heard::News(_, news) => news.sandbox().to_string(),
                Heard::Lost(_) => "!".to_owned(),
            };
            let (Heard::News(mark, _) | Heard::Lost(mark)) = next;
            reader.last = Some(mark.number);
        }
        heard
    }

    #[test]
    fn a_reader_goes_on_where_it_was_or_is_told_that_it_cannot() {
        let five = told(&["a", "b", "c", "d", "e"]);
        for (after, heard) in [
            (None, ""),
            (Some("00000007-5"), ""),
            (Some("00000007-4"), "e"),
            (Some("00000007-2"), "cde"),
            (Some("00000007-1"), "!"),
            (Some("00000007-6"), "!"),
            (Some("00000008-4"), "!"),
        ] {
            assert_eq!(all(&five, after), heard, "{after:?}");
        }
        let none = told(&[]);
        assert_eq!((all(&none, None), all(&none, Some("00000007-0"))), (String::new(), String::new()));
        for no_mark in ["", "7", "x-1", "7-x", "7--1"] {
            assert!(no_mark.parse::<Mark>().is_err(), "{no_mark}");
        }
    }

    #[tokio::test]
    async fn what_comes_while_it_waits_is_heard_and_whoever_is_late_has_lost() {
        let events = told(&["a"]);
        let mut reader = events.read(None);
        let (heard, ()) = tokio::join!(reader.next(), async { events.tell(news("b")) });
        assert_eq!(heard, Heard::News("7-2".parse().unwrap(), Arc::new(news("b"))));
        ["c", "d", "e", "f"].iter().for_each(|id| events.tell(news(id)));
        assert_eq!(reader.next().await, Heard::Lost("7-6".parse().unwrap()));
        events.tell(news("g"));
        assert!(matches!(reader.next().await, Heard::News(_, news) if news.sandbox().to_string() == "g"));
    }
}
