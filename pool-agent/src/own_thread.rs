//! Work that changes what a thread is (its namespaces, its root): on a thread of its own, which ends with it, so that nothing else
//! ever runs on it and the kernel takes back what it entered, also when the agent is killed.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// Runs `work` to its end, also where nobody waits for it any more.
pub async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = send.send(work()); // nobody waits any more
    })?;
    receive.await.map_err(|_| io::Error::other("its thread has panicked"))?
}
