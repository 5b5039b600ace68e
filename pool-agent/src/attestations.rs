//! `AttestationService`: the signed statements about the node's sandboxes, found and verified. Not here: who issues them, and when
//! (each sandbox's own shim); what is proven by one (`trust::attestation`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use trust::attestation::verify::{Expectations, Invalid, Verified, verify, verify_chain};
use trust::id::{BadId, Namespace, SandboxId};
use trust::keys::jwks::{BadJwkSet, TrustRoot};

use crate::ports::Ports;
use crate::statements::{self, Kept, StatementsError};

/// The statements about the node's sandboxes.
///
/// ```no_run
/// # async fn example(runtime: creto_runtime::Runtime) -> Result<(), Box<dyn std::error::Error>> {
/// let id = "sandbox-0123456789".parse()?;
/// let envelope = runtime.attestations.current(&id).await?; // for somebody else to verify, under keys that they trust
/// println!("{}", String::from_utf8_lossy(&envelope));
/// let verified = runtime.attestations.verify_history(&id).await?; // here, and all of it
/// println!("it works for {:?}; not proven: {:?}", verified.statement.predicate().agent, verified.not_proven);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AttestationService {
    ports: Arc<Ports>,
}

/// Why there is no statement, or no valid one.
#[derive(Debug, thiserror::Error)]
pub enum AttestationError {
    /// None is kept, or it cannot be read.
    #[error(transparent)]
    Statements(#[from] StatementsError),
    /// The namespace of the settings.
    #[error("containerd.namespace")]
    Namespace(#[from] BadId),
    /// The node's public keys.
    #[error("reading {}", path.display())]
    Keys {
        /// Where they are.
        path: PathBuf,
        /// Why not.
        #[source]
        why: io::Error,
    },
    /// They are none.
    #[error("the node's public keys")]
    BadKeys(#[from] BadJwkSet),
    /// It proves nothing.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The thread that looked has panicked.
    #[error("a bug: {0}")]
    Panicked(String),
}

impl AttestationService {
    /// Over these ports.
    pub fn new(ports: Arc<Ports>) -> Self {
        Self { ports }
    }

    /// A sandbox's current statement: a DSSE envelope, as it is kept. Nothing of it is verified.
    pub async fn current(&self, id: &SandboxId) -> Result<Vec<u8>, AttestationError> {
        self.look(id, |kept| kept.current()).await
    }

    /// All statements about a sandbox that are kept, from the first on. Nothing of them is verified.
    pub async fn history(&self, id: &SandboxId) -> Result<Vec<Vec<u8>>, AttestationError> {
        self.look(id, |kept| kept.files()?.iter().map(|file| statements::read(file)).collect()).await
    }

    /// Verifies an envelope, whoever it comes from, under this node's keys.
    pub async fn verify(&self, envelope: &[u8], expected: &Expectations) -> Result<Verified, AttestationError> {
        Ok(verify(envelope, &self.trust_root().await?, self.ports.now(), expected)?)
    }

    /// Verifies what is kept about a sandbox: its current statement, and that those before lead to it without a break.
    pub async fn verify_history(&self, id: &SandboxId) -> Result<Verified, AttestationError> {
        let (all, trusted) = (self.history(id).await?, self.trust_root().await?);
        let namespace = Some(self.namespace()?);
        let expected = Expectations { sandbox: Some(id.clone()), namespace, ..Expectations::default() };
        let verified = verify_chain(&all, &trusted, self.ports.now(), &expected)?;
        let root = self.ports.root.attestations();
        Ok(verified.ok_or(StatementsError::None { id: id.clone(), namespace: expected.namespace, root })?)
    }

    /// The keys under which this node's statements are verified. On another machine they must come from elsewhere than the statement.
    pub async fn trust_root(&self) -> Result<TrustRoot, AttestationError> {
        let path = self.ports.root.jwks();
        let keys = tokio::fs::read(&path).await.map_err(|why| AttestationError::Keys { path, why })?;
        Ok(TrustRoot::parse(&keys)?)
    }

    fn namespace(&self) -> Result<Namespace, AttestationError> {
        Ok(self.ports.config.containerd.namespace.parse()?)
    }

    async fn look<T: Send + 'static>(
        &self,
        id: &SandboxId,
        look: impl FnOnce(&Kept) -> Result<T, StatementsError> + Send + 'static,
    ) -> Result<T, AttestationError> {
        let (root, id, namespace) = (self.ports.root.attestations(), id.clone(), self.namespace()?);
        let found = tokio::task::spawn_blocking(move || look(&statements::find(&root, &id, Some(&namespace))?));
        Ok(found.await.map_err(|e| AttestationError::Panicked(e.to_string()))??)
    }
}
