//! What the client itself changes on a node, into the audit record: keys, agents. The next drain takes it into the ledger.

use trust::audit::record::Text;
use trust::audit::{About, Audit, Event, Limits, Spool};
use trust::id::AgentId;

use crate::node::{Node, Root};

/// Records a change that is done, and so must not be done again: where it cannot be recorded that is loud, and no failure.
pub fn changed(root: &Root, node: &Node, agent: Option<&AgentId>, event: Event) {
    let about = About { agent: agent.map(|agent| Text::from(agent.to_string().as_str())), ..About::default() };
    match Spool::new(&root.spool(), "cli", &node.id.to_string(), Limits::default()) {
        Ok(spool) => spool.record(&about, event), // loud by itself where it fails; dropped, the spool is on the disk
        Err(error) => tracing::error!(%error, event = event.name(), "the change is not in the audit record"),
    }
}
