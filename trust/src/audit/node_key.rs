//! The node's own key as the signer of tree heads, and the keys under which a node's heads are verified.
//! Not here: how a head is signed and read (`tree_head`), where the keys are kept (`crate::keys`).

use super::tree_head::{NoteError, NoteKey, TreeHeadSigner};
use crate::id::NodeId;
use crate::keys::Signer;
use crate::keys::jwks::TrustRoot;

/// The name of a node's log: a URL without a scheme, as C2SP tlog-checkpoint wants it.
pub fn log_name(node: &NodeId) -> String {
    format!("creto.dev/audit/{node}")
}

/// The active key, in the name of the node's log.
#[derive(Debug)]
pub struct NodeKey {
    name: String,
    signer: Signer,
}

impl NodeKey {
    /// Keep it no longer than needed, as [`Signer`].
    pub fn new(node: &NodeId, signer: Signer) -> Self {
        Self { name: log_name(node), signer }
    }
}

impl TreeHeadSigner for NodeKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn public_key(&self) -> [u8; 32] {
        self.signer.secret().verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signer.sign(message)
    }
}

/// All keys with which the node signs heads, or has. A deprecated one counts as long as it is listed: what it signed is the
/// past, and the heads since are over the same records.
pub fn note_keys(node: &NodeId, trusted: &TrustRoot) -> Result<Vec<NoteKey>, NoteError> {
    let name = log_name(node);
    trusted.keys().iter().map(|trusted| NoteKey::new(&name, trusted.key.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::audit::tree_head::SignedTreeHead;
    use crate::clock::SystemClock;
    use crate::keys::Keyring;

    #[test]
    fn heads_outlive_the_rotation_of_their_key() {
        let dir = tempfile::tempdir().unwrap();
        let node = "node-1".parse().unwrap();
        let keyring = Keyring::open(dir.path(), &SystemClock).unwrap();
        let sign = || SignedTreeHead::sign(3, [7; 32], &NodeKey::new(&node, keyring.signer().unwrap())).unwrap();
        let before = sign();
        keyring.rotate(&SystemClock, Duration::ZERO).unwrap();
        let trusted = TrustRoot::parse(keyring.jwks().unwrap().as_bytes()).unwrap();
        let keys = note_keys(&node, &trusted).unwrap();
        for head in [before, sign()] {
            assert_eq!(head.verify(&keys).unwrap().origin, "creto.dev/audit/node-1");
        }
        let others = note_keys(&"node-2".parse().unwrap(), &trusted).unwrap();
        assert!(sign().verify(&others).is_err(), "another node's log");
    }
}
