//! Real parts for the tests: a private containerd per test, driven by that version's own `ctr`, over a real runsc.
//! Reading order: `containerd` (the node that a test asks for), then what it is made of.

pub mod agent;
pub mod api;
pub mod cli;
pub mod collector;
pub mod containerd;
pub mod cri;
pub mod etcd;
pub mod events;
pub mod http;
pub mod images;
pub mod internet;
pub mod kata;
pub mod leaks;
pub mod markdown;
pub mod netns;
pub mod network;
pub mod nhi;
pub mod operator;
pub mod parts;
pub mod pool_agent;
pub mod process;
pub mod registry;
pub mod shim;
pub mod specs;
pub mod terminal;
pub mod trust;
pub mod wire;

use std::time::{Duration, Instant};

pub use containerd::{Node, Setup};
pub use parts::{Containerd, Runsc};

/// Nothing that a test waits for takes this long on the slowest machine; a longer wait is a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until `attempt` gives something; `None` after [`PATIENCE`].
pub fn poll<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    const PAUSE: Duration = Duration::from_millis(20);
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one pause between two looks; a test has its thread to itself"
        )]
        std::thread::sleep(PAUSE);
    }
}

/// Waits for a condition; the test fails where it never comes.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    assert!(poll(|| condition().then_some(())).is_some(), "waited {} s in vain for: {what}", PATIENCE.as_secs());
}
