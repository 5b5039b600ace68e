//! A fence for a sandbox that had none, or all of it anew. Which marks and addresses are taken is looked at for one newcomer after the
//! other.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::time::Instant;

use trust::chain::chain;
use trust::digest::Digest;

use super::standings::Turn;
use super::{Put, Sandboxes, bind, document, kernel, refused, silent};
use crate::daemon::netns::{self, Network, Port};
use crate::daemon::ruleset::Slot;
use crate::daemon::state::Kept;
use crate::protocol::{Attach, Code, Fence, Interface, Refusal};

impl Sandboxes {
    /// Puts up a fence, or puts the sandbox's anew.
    pub async fn attach(&self, attach: Attach) -> Result<Fence, Refusal> {
        let began = Instant::now();
        let _newcomer = self.standings.newcomer().await;
        let turn = self.standings.turn(&attach.sandbox).await;
        let policy = self.resolve(&attach.policy, &[])?;
        let ports = look(&attach)?;
        let interfaces: Vec<_> = ports.iter().map(|port| port.interface.clone()).collect();
        self.own_addresses(&turn, &interfaces).await?;
        let before = self.standings.get(turn.sandbox());
        let slot = match &before {
            Some(before) => before.kept.slot(),
            None => self.free_slot().await?,
        };
        let slot = slot.ok_or_else(|| refused(Code::Kernel)(&"all marks for packets are taken"))?;
        let generation = before.as_ref().map_or(0, |before| before.kept.fence.generation) + 1;
        let fence = Fence {
            sandbox: attach.sandbox.clone(),
            mark: slot.mark(),
            interfaces,
            ruleset: Digest::of(b""),
            policy: policy.digest(),
            generation,
        };
        let (own_rules, document) = (Vec::new(), document(&policy));
        let kept = Kept { attach, own_rules, policy: document, ports, fence, frame: None, put: None };
        self.recorder.know(&kept.attach, generation);
        let put_up = async {
            self.state.put(&kept).map_err(|e| refused(Code::State)(&e))?;
            self.worker.bind(bind(&kept)).await.map_err(silent)?; // a name that is asked for at once is known
            self.enforce(kept.clone(), &policy, Put::Whole).await
        };
        match put_up.await {
            Ok(kept) => {
                let fence = self.standings.put(&turn, kept, policy);
                self.metrics.standing(self.standings.count());
                self.metrics.attached(began);
                Ok(fence)
            }
            Err(refusal) => {
                let sandbox = turn.sandbox();
                tracing::error!(%sandbox, error = refusal.message, "no new fence");
                let undone = match before {
                    // What stood goes on standing: a sandbox that runs is never without.
                    Some(before) => {
                        self.recorder.know(&before.kept.attach, before.kept.fence.generation);
                        self.state.put(&before.kept).map_err(|e| refused(Code::State)(&e))
                    }
                    None => self.take_down(&turn, &kept).await,
                };
                if let Err(error) = undone {
                    tracing::error!(%sandbox, %error, "what was put up of it is left");
                }
                Err(refusal)
            }
        }
    }

    /// No other sandbox has one of these addresses. One that is just being taken down is waited for.
    async fn own_addresses(&self, turn: &Turn, interfaces: &[Interface]) -> Result<(), Refusal> {
        let shared = || {
            let others = self.standings.all().into_iter().filter(|other| other.kept.attach.sandbox != *turn.sandbox());
            let mut shared = others.filter_map(|other| {
                let mut theirs = other.kept.fence.interfaces.iter().flat_map(|interface| &interface.addresses);
                let is_ours = |address: &&IpAddr| interfaces.iter().any(|own| own.addresses.contains(address));
                let address = theirs.find(|address| is_ours(address) && !is_link_local(address))?;
                Some((other.kept.attach.sandbox.clone(), *address))
            });
            shared.next()
        };
        if let Some((other, _)) = shared() {
            drop(self.standings.turn(&other).await);
        }
        match shared() {
            None => Ok(()),
            Some((other, address)) => {
                let why = format!("its address {address} is that of {other}: each sandbox needs addresses of its own");
                Err(refused(Code::NotFenceable)(&why))
            }
        }
    }

    /// The lowest one that no fence has, nor one in the kernel that nothing more is known of.
    async fn free_slot(&self) -> Result<Option<Slot>, Refusal> {
        let taken: BTreeSet<_> = self.standings.all().iter().filter_map(|found| found.kept.slot()).collect();
        for slot in (1..=Slot::MAX).filter_map(Slot::new).filter(|slot| !taken.contains(slot)) {
            if self.enforcer.ask(move |fences| fences.is_free(slot)).await.map_err(kernel)? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The interfaces of a sandbox, all of which can be fenced.
fn look(attach: &Attach) -> Result<Vec<Port>, Refusal> {
    let refused = refused(Code::NotFenceable);
    let netns = File::open(&attach.netns);
    let netns = netns.map_err(|e| refused(&format!("its network namespace {}: {e}", attach.netns.display())))?;
    match netns::look(netns).map_err(|e| refused(&chain(&e)))? {
        Network::Wired(ports) => Ok(ports),
        Network::Sealed => {
            let message = "its network namespace has no interface but lo: there is nothing to fence".to_owned();
            Err(Refusal { code: Code::Sealed, message })
        }
    }
}
