//! containerd is killed while a sandbox is made: the spawn says that it is away, undoes what it has made when it is back, and a retry
//! works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use creto_runtime::containerd::{
    Accounts, Container, Containerd, Containers, ContainersError, Exit, Image, NewContainer, Progress, TaskEvent,
    Usage, quietly,
};
use creto_runtime::spawn::{Cause, Node as Parts, SpawnFailed, Step, spawn};
use nix::sys::signal::Signal;

use crate::harness::agent::Agent;
use crate::harness::process::Running;
use crate::harness::{Node, Setup, wait_until};

/// Has containerd killed in front of one call, once.
struct Killer {
    containerd: Containerd,
    at: &'static str,
    order: Sender<()>,
    done: Mutex<Receiver<()>>,
    fired: AtomicBool,
}

impl Killer {
    fn before(&self, call: &str) {
        if call == self.at && !self.fired.swap(true, Ordering::Relaxed) {
            self.order.send(()).unwrap();
            self.done.lock().unwrap().recv().unwrap();
        }
    }
}

#[async_trait]
impl Containers for Killer {
    async fn version(&self) -> Result<String, ContainersError> {
        self.containerd.version().await
    }
    async fn image(&self, name: &str, progress: Progress) -> Result<Image, ContainersError> {
        self.before("image");
        self.containerd.image(name, progress).await
    }
    async fn accounts(&self, image: &Image) -> Result<Arc<Accounts>, ContainersError> {
        self.before("accounts");
        self.containerd.accounts(image).await
    }
    async fn create(&self, new: NewContainer) -> Result<u32, ContainersError> {
        self.before("create");
        self.containerd.create(new).await
    }
    async fn start(&self, id: &str) -> Result<(), ContainersError> {
        self.before("start");
        self.containerd.start(id).await
    }
    async fn kill(&self, id: &str, signal: i32) -> Result<(), ContainersError> {
        self.containerd.kill(id, signal).await
    }
    async fn wait(&self, id: &str) -> Result<Exit, ContainersError> {
        self.containerd.wait(id).await
    }
    async fn delete(&self, id: &str) -> Result<(), ContainersError> {
        self.containerd.delete(id).await
    }
    async fn list(&self, label: Option<(&str, &str)>) -> Result<Vec<Container>, ContainersError> {
        self.containerd.list(label).await
    }
    async fn usage(&self, ids: &[&str]) -> Result<BTreeMap<String, Usage>, ContainersError> {
        self.containerd.usage(ids).await
    }
    fn events(&self) -> tokio::sync::mpsc::Receiver<TaskEvent> {
        self.containerd.events()
    }
}

fn is_unavailable(failed: &SpawnFailed) -> bool {
    matches!(&failed.cause, Cause::Containers(error) if error.is_unavailable())
}

fn runs_and_goes(agent: &Agent, id: &str) {
    agent.block_on(async {
        agent.spawn(agent.wanted(id, &["true"])).await.unwrap();
        assert_eq!(agent.containerd.wait(id).await.unwrap().status, 0);
        agent.remove(id).await;
    });
    agent.assert_nothing_left();
}

#[test]
fn killed_between_two_steps_it_is_away_and_nothing_is_half_made() {
    let node = Node::with(Setup::default());
    let agent = Agent::of(&node, "10-creto.conflist");
    for (at, step) in
        [("accounts", Step::Spec), ("image", Step::Image), ("create", Step::Create), ("start", Step::Start)]
    {
        let failed = thread::scope(|scope| {
            let (order, ordered) = channel();
            let (killed, done) = channel();
            let node = &node;
            scope.spawn(move || {
                ordered.recv().unwrap();
                node.kill_containerd();
                killed.send(()).unwrap();
                node.start_containerd(); // while the undo waits for it
            });
            let fired = AtomicBool::new(false);
            let killer = Killer { containerd: agent.containerd.clone(), at, order, done: Mutex::new(done), fired };
            let parts = Parts { containers: Arc::new(killer), ..agent.parts() };
            node.note("s");
            agent.block_on(spawn(&parts, agent.wanted("s", &["sleep", "1000"]), quietly())).expect_err(at)
        });
        assert!(is_unavailable(&failed) && failed.step == step, "{at}: {failed:?}");
        agent.assert_nothing_left();
        runs_and_goes(&agent, "s");
    }
}

#[test]
fn killed_at_any_moment_of_a_creation_it_leaves_nothing_that_a_removal_does_not_find() {
    let node = Node::with(Setup::default());
    let agent = Agent::of(&node, "10-creto.conflist");
    for after in [0, 20, 60, 120, 200, 300, 450] {
        // One that was killed in its snapshotter cannot make the next snapshot before it has collected its own garbage.
        wait_until("containerd makes snapshots", || {
            let spawned = agent.block_on(agent.spawn(agent.wanted("before", &["true"])));
            agent.block_on(agent.remove("before"));
            spawned.is_ok()
        });
        let spawned = thread::scope(|scope| {
            let node = &node;
            scope.spawn(move || {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "any moment is as good as any other; this thread is its own"
                )]
                thread::sleep(Duration::from_millis(after));
                node.kill_containerd();
                node.start_containerd();
            });
            agent.block_on(agent.spawn(agent.wanted("s", &["sleep", "1000"])))
        });
        match spawned {
            // It was faster, and what runs is not touched by containerd's end.
            Ok(_) => assert_eq!(agent.block_on(agent.containerd.list(None)).unwrap().len(), 1, "after {after} ms"),
            Err(failed) => assert!(is_unavailable(&failed), "after {after} ms: {failed:?}"),
        }
        agent.block_on(agent.remove("s"));
        agent.assert_nothing_left();
    }
}

#[test]
fn a_client_that_is_killed_at_any_moment_of_a_creation_leaves_nothing_that_a_removal_does_not_find() {
    let node = Node::with(Setup::default());
    for after in [0, 10, 30, 60, 100, 150, 200, 250, 300, 400] {
        let args = node.run_args("s", &["--detach"], &["sleep", "1000"]);
        let client = Running::start(node.ctr_command(&args));
        wait_until("it has a shim", || !node.shims().is_empty());
        #[expect(clippy::disallowed_methods, reason = "any moment is as good as any other; this thread is its own")]
        thread::sleep(Duration::from_millis(after));
        client.signal(Signal::SIGKILL);
        client.finish_without_input();
        if node.task("s").is_some() {
            node.ctr(&["task", "rm", "--force", "s"]);
        }
        wait_until("the container is gone", || {
            node.ctr(&["container", "rm", "s"]);
            node.ctr(&["container", "ls", "-q"]).ok().is_empty()
        });
        node.assert_nothing_left();
    }
}
