//! `EgressController`: what the node's sandboxes may connect to, as it holds now, and its changes. A change goes by the sandbox's own shim,
//! so that its statement says what holds; all else is asked of creto-egress. Not here: policies' files (`egress::policy`), the fence
//! itself (creto-egress), which a sandbox gets when it is made.

use std::sync::Arc;

use egress::client::{Client, ClientError, DEADLINE};
use egress::policy::{Document, Protocol};
use egress::protocol::{Answer, Ask, Code, Explain, Explained, Listed, Refusal, Reloaded, SandboxKey};
use trust::id::SandboxId;
use trust::sandbox_api::Policy;

use crate::pool::member::{Change, Input};
use crate::ports::Ports;
use crate::sandbox::{Fence, Sandbox};
use crate::shim::ShimError;
use crate::spec::NetworkPolicy;
use crate::store::StoreError;

/// What sandboxes may connect to.
///
/// ```no_run
/// # async fn example(runtime: creto_runtime::Runtime) -> Result<(), Box<dyn std::error::Error>> {
/// use creto_runtime::spec::NetworkPolicy;
/// use egress::policy::Protocol;
///
/// let id = "sandbox-0123456789".parse()?;
/// let policy: NetworkPolicy = r#"{"rules": [{"id": "pypi", "destination": "pypi.org", "ports": [443], "action": "Allow"}]}"#.parse()?;
/// runtime.egress.set_policy(&id, policy).await?;
/// let explained = runtime.egress.explain(&id, "pypi.org", 443, Protocol::Tcp).await?;
/// println!("{:?}, by rule {:?}: {}", explained.verdict, explained.rule, explained.reason);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EgressController {
    ports: Arc<Ports>,
}

/// Why nothing is said of a fence, or changed of it.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// It has no network, is not this node's, or has ended.
    #[error("there is no fence around sandbox {0}")]
    NotFound(SandboxId),
    /// creto-egress does not answer: what stands in the kernel goes on standing.
    #[error(transparent)]
    Down(ClientError),
    /// It says no.
    #[error(transparent)]
    Refused(Refusal),
    /// The policy is not there, or cannot be read. Nothing was changed.
    #[error("network policy: {0}")]
    Policy(String),
    /// The sandbox's shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The agent's records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EgressController {
    /// Over these ports.
    pub fn new(ports: Arc<Ports>) -> Self {
        Self { ports }
    }

    /// The fences that stand on this node, whoever made the sandboxes.
    pub async fn fences(&self) -> Result<Vec<Listed>, EgressError> {
        match self.ask(Ask::List).await? {
            Answer::Fences(fences) => Ok(fences),
            other => Err(astray(&other)),
        }
    }

    /// The rules that hold for a sandbox: its policy's and its own.
    pub async fn rules(&self, id: &SandboxId) -> Result<Document, EgressError> {
        match self.ask_of(id, Ask::Get(self.key(id))).await? {
            Answer::Policy(rules) => Ok(rules),
            other => Err(astray(&other)),
        }
    }

    /// What becomes of a connection of a sandbox to a host's name or address, and why.
    pub async fn explain(
        &self,
        id: &SandboxId,
        destination: &str,
        port: u16,
        protocol: Protocol,
    ) -> Result<Explained, EgressError> {
        let flow = Explain { sandbox: self.key(id), destination: destination.to_owned(), port, protocol };
        match self.ask_of(id, Ask::Explain(flow)).await? {
            Answer::Explained(explained) => Ok(explained),
            other => Err(astray(&other)),
        }
    }

    /// Another policy for a sandbox that runs, at once; its statement is issued anew. Connections that it does not allow any more are cut.
    pub async fn set_policy(&self, id: &SandboxId, policy: NetworkPolicy) -> Result<Sandbox, EgressError> {
        let ports = &self.ports;
        ports.policies.resolve(&policy.to_ref()).map_err(|e| EgressError::Policy(e.to_string()))?;
        let before = ports.store.sandbox(id).await?.ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let asked = match &policy {
            NetworkPolicy::Named(name) => Policy::named(name.to_string()),
            NetworkPolicy::Inline(policy) => Policy::inline(policy.to_string()),
        };
        let bound = ports.shim(id).await?.update_policy(&id.to_string(), asked).await?;
        let mut spec = before.spec;
        spec.network_policy = Some(policy);
        let change = Change {
            spec: Some(spec),
            fence: Some(bound.ruleset.parse().map_or(Fence::Sealed, Fence::Ruleset)),
            attestation: bound.statement_digest.parse().ok(),
            ..Change::default()
        };
        Ok(ports.store.advance(id, Input::Amended, change, ports.now()).await?)
    }

    /// What the decision point has granted to a sandbox is forgotten, and connections that were granted end.
    pub async fn revoke(&self, id: &SandboxId) -> Result<(), EgressError> {
        self.ask_of(id, Ask::Revoke(self.key(id))).await.map(drop)
    }

    /// The policies' files are read again now, and those of the decision point.
    pub async fn reload(&self) -> Result<Reloaded, EgressError> {
        match self.ask(Ask::Reload).await? {
            Answer::Reloaded(reloaded) => Ok(reloaded),
            other => Err(astray(&other)),
        }
    }

    /// What creto-egress counts, as OpenMetrics text.
    pub async fn metrics(&self) -> Result<String, EgressError> {
        match self.ask(Ask::Metrics).await? {
            Answer::Metrics(text) => Ok(text),
            other => Err(astray(&other)),
        }
    }

    fn key(&self, id: &SandboxId) -> SandboxKey {
        SandboxKey { namespace: self.ports.config.containerd.namespace.clone(), id: id.to_string() }
    }

    async fn ask_of(&self, id: &SandboxId, ask: Ask) -> Result<Answer, EgressError> {
        self.ask(ask).await.map_err(|error| match error {
            EgressError::Refused(Refusal { code: Code::NoSuchSandbox, .. }) => EgressError::NotFound(id.clone()),
            other => other,
        })
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, EgressError> {
        let socket = self.ports.root.egress_socket();
        let asked = tokio::task::spawn_blocking(move || Client::connect(&socket, DEADLINE)?.ask(ask));
        asked.await.unwrap_or_else(|e| Err(ClientError::NoAnswer(e.to_string()))).map_err(|error| match error {
            ClientError::Refused(refusal) => EgressError::Refused(refusal),
            down => EgressError::Down(down),
        })
    }
}

/// Another answer than the question's.
fn astray(answer: &Answer) -> EgressError {
    EgressError::Down(ClientError::NoAnswer(format!("it says something else: {answer:?}")))
}
