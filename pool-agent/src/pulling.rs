//! How far the pull of an image has come, told as an event now and then: what containerd reports of each part, added up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::containerd::{Progress, Pulled};
use crate::events::{News, PullProgress};
use crate::ports::Ports;
use crate::sandbox::Sandbox;

/// It is told so often at most; but its end at once.
const EVERY: Duration = Duration::from_millis(200);

/// The pull of one image.
#[derive(Debug, Default)]
struct Pull {
    /// Of each part: bytes so far, and in all.
    parts: HashMap<String, (u64, u64)>,
    told: Option<(Instant, (u64, u64))>,
}

impl Pull {
    /// What is to be told now, in bytes so far and in all.
    fn add(&mut self, pulled: Pulled, now: Instant) -> Option<(u64, u64)> {
        // Unpacking counts other bytes, and what is waited for has none yet.
        if pulled.total == 0 || !matches!(&*pulled.event, "downloading" | "complete") {
            return None;
        }
        let part = self.parts.entry(pulled.name).or_default();
        *part = (part.0.max(pulled.bytes.min(pulled.total)), pulled.total);
        let all = self.parts.values().fold((0, 0), |all, part| (all.0 + part.0, all.1 + part.1));
        let is_due = match self.told {
            Some((_, told)) if told == all => false,
            Some((at, _)) => all.0 == all.1 || now.duration_since(at) >= EVERY,
            None => true,
        };
        is_due.then(|| {
            self.told = Some((now, all));
            all
        })
    }
}

/// Tells how far the pull of a sandbox's image has come, if it is pulled at all.
pub fn told(ports: &Ports, sandbox: &Sandbox) -> Progress {
    let (events, pull) = (ports.events.clone(), Mutex::<Pull>::default());
    let (image, id) = (sandbox.spec.image.clone(), sandbox.id.clone());
    let pool = sandbox.pool.as_ref().map(|member| member.pool.clone());
    Arc::new(move |pulled| {
        let told = pull.lock().unwrap_or_else(PoisonError::into_inner).add(pulled, Instant::now());
        if let Some((bytes, total)) = told {
            let (image, sandbox, pool) = (image.clone(), id.clone(), pool.clone());
            events.tell(News::Pull(PullProgress { image, sandbox, pool, bytes, total }));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_up_and_told_now_and_then_and_at_the_end() {
        let (mut pull, begun) = (Pull::default(), Instant::now());
        for (millis, event, name, bytes, total, told) in [
            (0, "resolving", "image", 0, 0, None),
            (0, "downloading", "a", 10, 100, Some((10, 100))),
            (50, "downloading", "b", 5, 50, None),
            (100, "downloading", "a", 60, 100, None),
            (200, "downloading", "a", 60, 100, Some((65, 150))),
            (500, "downloading", "a", 60, 100, None),
            (510, "downloading", "a", 40, 100, None),
            (520, "complete", "a", 100, 100, Some((105, 150))),
            (530, "extracting", "a", 7, 9, None),
            (540, "complete", "b", 50, 50, Some((150, 150))),
            (900, "complete", "b", 50, 50, None),
        ] {
            let pulled = Pulled { event: event.into(), name: name.into(), bytes, total };
            assert_eq!(pull.add(pulled, begun + Duration::from_millis(millis)), told, "at {millis} ms");
        }
    }
}
