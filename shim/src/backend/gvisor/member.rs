//! The further containers of a pod: what runsc does not keep of them between Create and Start.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

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
}

/// By containerd's id; the container that the sandbox was made for is none.
#[derive(Default)]
pub struct Members(Mutex<HashMap<String, Member>>);

impl Members {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member is being made.
    pub fn add(&self, id: &str) {
        self.table().insert(id.to_owned(), Member::default());
    }

    /// Its descriptors wait for its start.
    pub fn give(&self, id: &str, stdio: [OwnedFd; 3]) {
        if let Some(member) = self.table().get_mut(id) {
            member.stdio = Some(stdio);
        }
    }

    /// The descriptors that waited.
    pub fn take(&self, id: &str) -> Option<[OwnedFd; 3]> {
        self.table().get_mut(id)?.stdio.take()
    }

    /// It was started.
    pub fn started(&self, id: &str) {
        self.becomes(id, Life::Started);
    }

    /// It was killed before it was started.
    pub fn killed(&self, id: &str) {
        self.becomes(id, Life::Killed);
    }

    fn becomes(&self, id: &str, life: Life) {
        if let Some(member) = self.table().get(id) {
            member.life.send_replace(life);
        }
    }

    /// Resolves when it is clear whether its init ever runs, and says so.
    pub async fn runs(&self, id: &str) -> bool {
        let Some(mut life) = self.table().get(id).map(|member| member.life.subscribe()) else { return false };
        let settled = life.wait_for(|life| *life != Life::Created).await;
        settled.is_ok_and(|life| *life == Life::Started)
    }

    /// It was deleted.
    pub fn remove(&self, id: &str) {
        self.table().remove(id);
    }

    /// Whether the sandbox has its first container alone.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_member_is_waited_for_only_once_it_runs() {
        let members = Members::default();
        for id in ["started", "killed", "deleted"] {
            members.add(id);
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
}
