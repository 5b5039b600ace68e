//! `creto.sandbox.v1.Sandbox`, beside the Task services: who asks there may have the sandbox told of, handed over, or given
//! another network policy. Wire types (`trust::sandbox_api`) end here; each request is read whole before anything is done.
//! Not here: what a claim changes, and in which order (`bound::claim`).

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use containerd_shim_protos::ttrpc::proto::{Request, Response};
use containerd_shim_protos::ttrpc::{self, Code};
use egress::policy::Document;
use egress::protocol::PolicyRef;
use trust::id::PolicyName;
use trust::refusal::Cause;
use trust::sandbox_api::{
    self as api, Claim, DESCRIBE, DescribeRequest, Description, Message, Proven, REBIND, RebindRequest, SERVICE,
    UPDATE_POLICY, UpdatePolicyRequest,
};

use crate::bound::Bound;
use crate::bound::claim::{Asked, Claimed, Failed, Standing};
use crate::bound::statement::Stand;
use crate::error::TaskError;
use crate::secrets::SecretRef;
use crate::task::Phase;
use crate::tasks::{Key, Pod};

/// The service of a pod, as ttrpc takes it.
pub fn service(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let method = |call: Call| -> Box<dyn MethodHandler + Send + Sync> { Box::new(Method { pod: pod.clone(), call }) };
    let methods = [(DESCRIBE, Call::Describe), (REBIND, Call::Rebind), (UPDATE_POLICY, Call::UpdatePolicy)];
    let methods = methods.map(|(name, call)| (name.to_owned(), method(call))).into();
    HashMap::from([(SERVICE.to_owned(), Service { methods, streams: HashMap::new() })])
}

#[derive(Clone, Copy)]
enum Call {
    Describe,
    Rebind,
    UpdatePolicy,
}

struct Method {
    pod: Arc<Pod>,
    call: Call,
}

#[async_trait]
impl MethodHandler for Method {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let (pod, call) = (self.pod.clone(), self.call);
        // In a task of its own: a client that goes away must not leave a sandbox half-way.
        let answered = tokio::spawn(async move { answer(&pod, call, &request.payload).await }).await;
        let answered = answered.unwrap_or_else(|e| Err(TaskError::host("answering", e)));
        let mut response = Response::new();
        match answered {
            Ok(payload) => {
                response.set_status(ttrpc::get_status(Code::OK, ""));
                response.payload = payload;
            }
            Err(error) => response.set_status(ttrpc::get_status(error.code(), error)),
        }
        Ok(response)
    }
}

async fn answer(pod: &Arc<Pod>, call: Call, request: &[u8]) -> Result<Vec<u8>, TaskError> {
    match call {
        Call::Describe => {
            let asked: DescribeRequest = decode(request)?;
            Ok(describe(pod, &*of(pod, &asked.sandbox)?).encode_to_vec())
        }
        Call::Rebind => {
            let (sandbox, asked) = claim(request)?;
            let bound = running(pod, &sandbox)?;
            match bound.claim(asked).await {
                Ok(Claimed { stand, took }) => Ok(api::Bound { took: Some(took), ..wire(stand) }.encode_to_vec()),
                Err(Failed { error, loose }) => {
                    if loose {
                        tracing::error!(sandbox, "ended, for nobody knows what is in it and around it");
                        pod.backend()?.end().await;
                    }
                    Err(error)
                }
            }
        }
        Call::UpdatePolicy => {
            let asked: UpdatePolicyRequest = decode(request)?;
            let policy = policy(asked.policy)?.ok_or_else(|| invalid("policy", "missing"))?;
            Ok(wire(running(pod, &asked.sandbox)?.update_policy(policy).await?).encode_to_vec())
        }
    }
}

/// The sandbox, if it is the one that is meant.
fn of(pod: &Pod, sandbox: &str) -> Result<Arc<Bound>, TaskError> {
    let none = || TaskError::NotFound(format!("sandbox {sandbox:?}"));
    pod.bound().filter(|_| pod.begins_with(sandbox) && pod.has(&Key::init(sandbox))).ok_or_else(none)
}

/// The same, if its first container runs.
fn running(pod: &Pod, sandbox: &str) -> Result<Arc<Bound>, TaskError> {
    let (bound, key) = (of(pod, sandbox)?, Key::init(sandbox));
    match pod.with(&key, |process| process.phase)? {
        Phase::Running => Ok(bound),
        phase => Err(TaskError::WrongPhase { verb: "bind anew", what: key.to_string(), phase }),
    }
}

fn describe(pod: &Pod, bound: &Bound) -> Description {
    let phase = pod.with(&Key::init(&pod.place.group), |process| process.phase);
    let phase = match phase {
        Err(_) => api::Phase::Unspecified,
        Ok(Phase::Created) => api::Phase::Created,
        Ok(Phase::Starting | Phase::DiedEarly(_) | Phase::Running) => api::Phase::Running,
        Ok(Phase::Paused) => api::Phase::Paused,
        Ok(Phase::Stopped(_)) => api::Phase::Stopped,
    };
    let (claim, claim_id, spoilt) = bound.told_of_claim(|claim| match claim {
        Standing::Never => (Claim::Never, String::new(), String::new()),
        Standing::Waits => (Claim::Waiting, String::new(), String::new()),
        Standing::Taken { claim, .. } => (Claim::Taken, claim.to_string(), String::new()),
        Standing::Spoilt(spoilt) => (Claim::Spoilt, spoilt.claim.to_string(), spoilt.to_string()),
    });
    Description {
        id: pod.place.group.clone(),
        namespace: pod.place.namespace.clone(),
        phase: phase.into(),
        backend: bound.backend(),
        agent: bound.bond().identity.agent().map(ToString::to_string).unwrap_or_default(),
        claim: claim.into(),
        claim_id,
        spoilt,
        pid: bound.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        bound: bound.stand().map(wire),
    }
}

fn wire(Stand { statement, digest, workload, policy, fence }: Stand) -> api::Bound {
    api::Bound {
        statement,
        statement_digest: digest.to_string(),
        workload: workload.to_string(),
        policy_digest: policy.to_string(),
        generation: fence.map_or(0, |(generation, _)| generation),
        ruleset: fence.map(|(_, ruleset)| ruleset.to_string()).unwrap_or_default(),
        took: None,
    }
}

/// A claim, and of which sandbox.
pub fn claim(request: &[u8]) -> Result<(String, Asked), TaskError> {
    let RebindRequest { sandbox, claim_id, agent, proven, policy: asked, secrets, pool, pool_generation } =
        decode(request)?;
    let agent = (!agent.is_empty()).then(|| agent.parse().map_err(|e| invalid("agent", e))).transpose()?;
    let by_token = match Proven::try_from(proven) {
        Ok(Proven::Token) => true,
        Ok(Proven::Operator) => false,
        Ok(Proven::Unspecified) if agent.is_none() => false,
        Ok(Proven::Unspecified) | Err(_) => return Err(invalid("proven", "say how the agent was proven")),
    };
    let generation = (!pool_generation.is_empty()).then(|| pool_generation.parse());
    let asked = Asked {
        claim: claim_id.parse().map_err(|e| invalid("claim_id", e))?,
        pool: pool.parse().map_err(|e| invalid("pool", e))?,
        generation: generation.transpose().map_err(|e| invalid("pool_generation", e))?,
        agent,
        by_token,
        policy: policy(asked)?,
        secrets: match &secrets[..] {
            [] => Vec::new(),
            named => SecretRef::parse_list(&named.join(","))?,
        },
    };
    Ok((sandbox, asked))
}

/// A policy that can be read; which rules a named one has is looked up later. The caller is the operator: what pods may choose
/// (`egress.annotation`) does not bind it.
fn policy(asked: Option<api::Policy>) -> Result<Option<PolicyRef>, TaskError> {
    let Some(asked) = asked else { return Ok(None) };
    match asked.policy {
        None => Err(bad_policy("empty: name one, or give it as JSON")),
        Some(api::policy::Policy::Named(name)) => {
            let name: PolicyName = name.parse().map_err(bad_policy)?;
            Ok(Some(PolicyRef::Named(name.to_string())))
        }
        Some(api::policy::Policy::Inline(json)) => {
            let policy = serde_json::from_str(&json).map_err(bad_policy)?;
            Document::from_json_value(&policy).map_err(bad_policy)?;
            Ok(Some(PolicyRef::Inline(policy)))
        }
    }
}

fn bad_policy(why: impl std::fmt::Display) -> TaskError {
    invalid("policy", why).because(Cause::PolicyInvalid)
}

fn decode<M: Message + Default>(request: &[u8]) -> Result<M, TaskError> {
    M::decode(request).map_err(|e| TaskError::Invalid(format!("the request cannot be read: {e}")))
}

fn invalid(field: &str, why: impl std::fmt::Display) -> TaskError {
    TaskError::Invalid(format!("{field}: {why}"))
}

#[cfg(test)]
mod tests;
