//! The further containers of a pod: what runsc does not keep of them between Create and Start, and what they may have.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::cgroup::Resources;

/// What has become of a member's init.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Created,
    Started,
    /// Killed before it was started: the sandbox knows of no process that it could wait for.
    Killed,
}

#[derive(Default)]
struct Member {
    stdio: Option<[OwnedFd; 3]>,
    life: watch::Sender<Life>,
    limits: Resources,
    has_ended: bool,
    is_over: bool,
}

/// A member that has a memory limit and runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// containerd's id.
    pub id: String,
    /// Bytes.
    pub limit: u64,
}

/// By containerd's id; the container that the sandbox was made for is none.
#[derive(Default)]
pub struct Members {
    table: Mutex<HashMap<String, Member>>,
    news: Notify,
}

impl Members {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &str, f: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.table().get_mut(id).map(f)
    }

    /// A member is being made, with these limits.
    pub fn add(&self, id: &str, limits: Resources) {
        self.table().insert(id.to_owned(), Member { limits, ..Member::default() });
    }

    /// Its descriptors wait for its start.
    pub fn give(&self, id: &str, stdio: [OwnedFd; 3]) {
        self.with(id, |member| member.stdio = Some(stdio));
    }

    /// The descriptors that waited.
    pub fn take(&self, id: &str) -> Option<[OwnedFd; 3]> {
        self.with(id, |member| member.stdio.take()).flatten()
    }

    /// It was started.
    pub fn started(&self, id: &str) {
        self.becomes(id, Life::Started);
        self.news.notify_one();
    }

    /// It was killed before it was started.
    pub fn killed(&self, id: &str) {
        self.becomes(id, Life::Killed);
    }

    fn becomes(&self, id: &str, life: Life) {
        self.with(id, |member| member.life.send_replace(life));
    }

    /// Resolves when it is clear whether its init ever runs, and says so.
    pub async fn runs(&self, id: &str) -> bool {
        let Some(mut life) = self.with(id, |member| member.life.subscribe()) else { return false };
        let settled = life.wait_for(|life| *life != Life::Created).await;
        settled.is_ok_and(|life| *life == Life::Started)
    }

    /// Its init has ended.
    pub fn ended(&self, id: &str) {
        self.with(id, |member| member.has_ended = true);
    }

    /// Whether its init runs.
    pub fn is_running(&self, id: &str) -> bool {
        let runs = |member: &mut Member| *member.life.borrow() == Life::Started && !member.has_ended;
        self.with(id, runs).unwrap_or_default()
    }

    /// It was deleted.
    pub fn remove(&self, id: &str) {
        self.table().remove(id);
    }

    /// Whether the sandbox has its first container alone.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// What it may have.
    pub fn limits(&self, id: &str) -> Option<Resources> {
        self.with(id, |member| member.limits.clone())
    }

    /// It may have something else from now on.
    pub fn limit(&self, id: &str, limits: Resources) {
        self.with(id, |member| member.limits = limits);
        self.news.notify_one();
    }

    /// What each may have that has not ended.
    pub fn all_limits(&self) -> Vec<Resources> {
        self.table().values().filter(|member| !member.has_ended).map(|member| member.limits.clone()).collect()
    }

    /// It is killed for want of memory, or was not after all.
    pub fn is_over(&self, id: &str, is_over: bool) {
        self.with(id, |member| member.is_over = is_over);
    }

    /// Whether it was killed for that.
    pub fn was_over(&self, id: &str) -> bool {
        self.with(id, |member| member.is_over).unwrap_or_default()
    }

    /// Those whose memory is to be looked at.
    pub fn watched(&self) -> Vec<Watched> {
        let table = self.table();
        let runs = |m: &Member| *m.life.borrow() == Life::Started && !m.has_ended && !m.is_over;
        let of = |(id, m): (&String, &Member)| {
            m.limits.memory_limit().filter(|_| runs(m)).map(|limit| Watched { id: id.clone(), limit })
        };
        table.iter().filter_map(of).collect()
    }

    /// Resolves when one was started, or may have something else.
    pub async fn changed(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_member_is_waited_for_only_once_it_runs() {
        let members = Members::default();
        for id in ["started", "killed", "deleted"] {
            members.add(id, Resources::default());
        }
        let (a, b, c) = (members.runs("started"), members.runs("killed"), members.runs("deleted"));
        let news = async {
            members.started("started");
            members.killed("killed");
            members.remove("deleted");
        };
        assert_eq!(tokio::join!(a, b, c, news), (true, false, false, ()));
        assert!(!members.runs("stranger").await);
    }

    #[test]
    fn who_has_a_memory_limit_is_watched_while_it_runs_and_is_not_killed() {
        let members = Members::default();
        let limit = |bytes: i64| Resources::parse(&json!({"memory": {"limit": bytes}})).unwrap();
        let watched = |members: &Members| members.watched().into_iter().map(|one| one.limit).collect::<Vec<_>>();
        members.add("free", limit(-1));
        members.add("c", limit(5));
        members.started("free");
        assert_eq!(watched(&members), [0_u64; 0], "c does not run yet");
        members.started("c");
        assert_eq!(watched(&members), [5]);
        members.limit("c", limit(9));
        assert_eq!(watched(&members), [9]);
        members.is_over("c", true);
        assert_eq!((watched(&members).len(), members.was_over("c"), members.was_over("free")), (0, true, false));
        members.is_over("c", false);
        members.ended("c");
        assert_eq!((watched(&members).len(), members.all_limits().len(), members.is_running("c")), (0, 1, false));
    }
}
