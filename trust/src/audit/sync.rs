//! Brings a spool's files to the disk, on a thread of its own: a sync takes milliseconds, which a sandbox need not wait.
//!
//! Whatever has come in while the last sync ran goes with the next: each file's data, then the directory that names them,
//! then the spool's root that names the directory. Not here: writing the files (`spool`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

/// It opens files and syncs them: no deep stack.
const STACK: usize = 128 * 1024;

/// The thread; what was handed to it is on the disk once it is dropped.
#[derive(Debug)]
pub(super) struct Syncer {
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    /// A file with its final name.
    File(PathBuf),
    /// To be told when all before it are on the disk.
    Tell(Sender<()>),
}

impl Syncer {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, jobs) = channel();
        let thread = Builder::new().name("audit-sync".into()).stack_size(STACK).spawn(move || run(&jobs))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a file. The spool's limits bound the queue.
    pub(super) fn file(&self, path: PathBuf) {
        self.send(Job::File(path));
    }

    /// Gives word when all files so far are on the disk.
    pub(super) fn done(&self) -> Receiver<()> {
        let (tell, done) = channel();
        self.send(Job::Tell(tell));
        done
    }

    fn send(&self, job: Job) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(job); // the thread ends only after the queue
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let (mut files, mut tell) = (Vec::new(), Vec::new());
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            match job {
                Job::File(path) => files.push(path),
                Job::Tell(done) => tell.push(done),
            }
        }
        to_disk(&files);
        for done in tell {
            let _ = done.send(()); // nobody waits any more
        }
    }
}

/// Syncs files and the directories above them. A file that is gone was drained: the ledger has synced its copy.
pub(super) fn to_disk(files: &[PathBuf]) {
    let above = |paths: &[PathBuf]| {
        let distinct: BTreeSet<_> = paths.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
        distinct.into_iter().collect::<Vec<_>>()
    };
    let producers = above(files);
    let roots = above(&producers);
    for path in files.iter().chain(&producers).chain(&roots) {
        match File::open(path).and_then(|file| file.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), %error, "audit records might not survive a power cut");
            }
            _ => {}
        }
    }
}
