//! Kills what a node is made of, as a lack of memory does: at any moment, one or two at a time; and starts it again, as a service
//! manager does.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::plan::Dice;
use crate::harness::etcd::Etcd;
use crate::harness::pool_agent::PoolAgent;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent,
    Shim,
    Egress,
    Containerd,
    Etcd,
}

/// The node, and what has been done to it.
pub struct Chaos<'a> {
    pub agent: &'a PoolAgent<'a>,
    pub etcd: Option<&'a Etcd<'a>>,
    /// Whose shims were killed: these sandboxes have ended.
    pub killed: Mutex<BTreeSet<String>>,
    /// What was killed, in order.
    pub history: Mutex<Vec<String>>,
}

impl<'a> Chaos<'a> {
    pub fn of(agent: &'a PoolAgent<'a>, etcd: Option<&'a Etcd<'a>>) -> Self {
        Self { agent, etcd, killed: Mutex::default(), history: Mutex::default() }
    }

    /// Goes on until it is told that it is enough; everything runs then.
    pub fn run(&self, dice: &mut Dice, enough: &AtomicBool) {
        use Victim::*;
        let mut all = vec![Agent, Agent, Shim, Shim, Shim, Egress, Containerd];
        all.extend(self.etcd.map(|_| Etcd));
        while !enough.load(Ordering::Relaxed) {
            pause(dice, 3000);
            let mut victims = vec![dice.one(&all)];
            if dice.below(3) == 0 {
                victims.push(dice.one(&all));
            }
            victims.dedup();
            self.history.lock().unwrap().push(format!("{victims:?}"));
            for victim in &victims {
                self.kill(*victim, dice);
            }
            pause(dice, 300);
            // The agent last: without its etcd it does not start.
            victims.sort_by_key(|victim| *victim == Agent);
            victims.iter().for_each(|victim| self.start(*victim));
            self.agent.revive();
        }
    }

    fn kill(&self, victim: Victim, dice: &mut Dice) {
        let network = self.agent.network;
        match victim {
            Victim::Agent => self.agent.stop(Signal::SIGKILL),
            Victim::Egress => network.stop_egress(Signal::SIGKILL),
            Victim::Containerd => network.node.kill_containerd(),
            Victim::Etcd => self.etcd.iter().for_each(|etcd| etcd.kill()),
            Victim::Shim => {
                // Those that serve, and not `delete`, which takes away what is left of one: nobody would do it again.
                let serves = |pid: &i32| !command(*pid).contains(&"delete".to_owned());
                let shims: Vec<_> = network.node.shims().into_iter().filter(serves).collect();
                let Some(pid) = (!shims.is_empty()).then(|| dice.one(&shims)) else { return };
                // Before it is dead: whoever sees that it is, finds the reason.
                self.killed.lock().unwrap().extend(sandbox_of(pid));
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended by itself
            }
        }
    }

    fn start(&self, victim: Victim) {
        let network = self.agent.network;
        match victim {
            Victim::Agent => self.agent.launch(),
            Victim::Egress => network.start_egress(),
            Victim::Containerd => network.node.start_containerd(),
            Victim::Etcd => self.etcd.iter().for_each(|etcd| etcd.start_again()),
            Victim::Shim => {}
        }
    }
}

/// The sandbox that a shim was started for.
fn sandbox_of(pid: i32) -> Option<String> {
    command(pid).into_iter().skip_while(|word| *word != "-id").nth(1)
}

fn command(pid: i32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).split('\0').map(str::to_owned).collect()
}

#[expect(clippy::disallowed_methods, reason = "any moment is as good as any other; this thread is its own")]
fn pause(dice: &mut Dice, at_most: usize) {
    std::thread::sleep(Duration::from_millis(dice.below(at_most) as u64));
}
