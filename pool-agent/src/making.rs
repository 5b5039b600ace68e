//! Makes the sandbox of a record: a member that waits, or one that runs at once. What is wanted of the spawn, how long it may
//! take, and what its failures are called. Not here: who may have one ([`crate::admission`]), the record's phases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trust::attestation::dsse::Envelope;
use trust::attestation::statement::Statement;
use trust::digest::Digest;
use trust::id::{AgentId, SandboxId};
use trust::refusal;

use crate::causes;
use crate::containerd::spec::Limits;
use crate::containerd::{ContainersError, Refusal, Stdio};
use crate::error::SpawnError;
use crate::image::ImageRef;
use crate::pool::template::{Mode, Probe, Template};
use crate::ports::Ports;
use crate::pulling;
use crate::sandbox::{Fence, Sandbox};
use crate::shim::{Process, ShimError};
use crate::spawn::{self, Cause, Run, SpawnFailed, Step, Wanted};
use crate::spec::SandboxSpec;
use crate::statements;

/// Labels of containers: by them a member is known when its record is lost.
pub const POOL: &str = "creto.dev/pool";
/// The template's generation.
pub const GENERATION: &str = "creto.dev/pool-generation";
/// Annotations that the shim reads (docs/annotations.md).
const AGENT: &str = "creto.dev/agent";
const BACKEND: &str = "creto.dev/backend";
const RUNSC_PATH: &str = "creto.dev/runsc-path";
const SECRETS: &str = "creto.dev/secrets";
/// A statement's word for a sandbox without a network.
const SEALED: &str = "sealed";
/// A shim says so soon that something has ended.
const PROMPT: Duration = Duration::from_secs(1);

/// What runs in it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The holder: it waits, with deny-all, for whoever claims it.
    Hold,
    /// The workload, which nobody has claimed yet: with deny-all, too.
    Unclaimed {
        /// The holder is there, and asks from inside whether the workload is ready.
        asked: bool,
    },
    /// The workload.
    Workload,
}

impl First {
    /// Of a member of a pool.
    pub fn of_member(template: &Template) -> Self {
        match template.mode {
            Mode::Hold => Self::Hold,
            Mode::Run => {
                let probe = template.readiness.as_ref().map(|readiness| &readiness.probe);
                Self::Unclaimed { asked: matches!(probe, Some(Probe::Tcp(_) | Probe::File(_))) }
            }
        }
    }
}

/// A sandbox that is there, and what its shim says of it.
#[derive(Clone, Debug)]
pub struct Made {
    /// What holds its packets.
    pub fence: Fence,
    /// The current statement about it.
    pub attestation: Option<Digest>,
}

/// Makes one that somebody waits for, when it is its turn, in the order of arrival: more at a time than the node has processors for are
/// made no sooner, and leave none to whoever asks anything else.
pub async fn make_in_turn(ports: &Ports, sandbox: &Sandbox, first: First) -> Result<Made, SpawnError> {
    let within = ports.config.limits.spawn;
    let turn = tokio::time::timeout(within, ports.turns.acquire()).await;
    let turn = turn.map_err(|_| SpawnError::Timeout { waited: within, step: "waiting for its turn".into() })?;
    let _turn = turn.map_err(|_| SpawnError::Interrupted)?;
    make(ports, sandbox, first).await
}

/// Makes it. Nothing of it is left where that fails.
pub async fn make(ports: &Ports, sandbox: &Sandbox, first: First) -> Result<Made, SpawnError> {
    let began = Instant::now();
    let spec = &sandbox.spec;
    let wanted = wanted(ports, sandbox, first)?;
    let within = ports.config.limits.spawn;
    let spawned = tokio::time::timeout(within, spawn::spawn(&ports.maker, wanted, pulling::told(ports, sandbox))).await;
    match spawned {
        Ok(Ok(spawned)) => {
            tracing::info!(sandbox = %sandbox.id, backend = %spec.backend, pid = spawned.pid, took = ?began.elapsed(), steps = ?spawned.took, "made")
        }
        Ok(Err(failed)) => return Err(failure(&spec.image, failed)),
        Err(_) => {
            // It goes on until its own undo; what it makes nevertheless is swept, for its record says that it failed.
            return Err(SpawnError::Timeout { waited: within, step: "making the sandbox".into() });
        }
    }
    let error = match described(ports, &sandbox.id, spec.network).await {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    // The workload may be over by now, and its fence gone: it has run nevertheless.
    if first != First::Hold
        && has_ended(ports, &sandbox.id).await
        && let Some(made) = stated(ports, &sandbox.id)
    {
        return Ok(made);
    }
    unmake(ports, &sandbox.id).await;
    Err(SpawnError::StartFailed(format!("its shim does not describe it: {error}")))
}

async fn has_ended(ports: &Ports, id: &SandboxId) -> bool {
    let Ok(shim) = ports.shim(id).await else { return false };
    let exit = shim.wait(Process::init(&id.to_string()), PROMPT).await;
    exit.inspect(|exit| ports.exits.note(id, exit.status)).is_ok()
}

/// What one was behind that has ended, by the last statement about it: a shim runs nothing that has a network before its fence stands.
fn stated(ports: &Ports, id: &SandboxId) -> Option<Made> {
    let envelope = statements::find(&ports.root.attestations(), id, None).and_then(|kept| kept.current()).ok()?;
    let envelope = Envelope::parse(&envelope).ok()?;
    let statement = Statement::parse(envelope.unverified_payload()).ok()?;
    let ruleset = statement.predicate().fence.as_ref().filter(|fence| fence.mechanism != SEALED);
    let fence = ruleset.map_or(Fence::Sealed, |fence| Fence::Ruleset(fence.digest));
    Some(Made { fence, attestation: Some(envelope.statement_digest()) })
}

/// What its shim says of a sandbox.
pub async fn described(ports: &Ports, id: &SandboxId, network: bool) -> Result<Made, ShimError> {
    let description = ports.shim(id).await?.describe(&id.to_string()).await?;
    let bound = description.bound.unwrap_or_default();
    let fence = match bound.ruleset.parse::<Digest>() {
        Ok(ruleset) => Fence::Ruleset(ruleset),
        Err(_) if !network => Fence::Sealed,
        Err(_) => return Err(ShimError::Refused("it has a network, and no fence".into())),
    };
    Ok(Made { fence, attestation: bound.statement_digest.parse().ok() })
}

/// Takes away whatever there is of it; what cannot be is loud, and goes with the next sweep.
pub async fn unmake(ports: &Ports, id: &SandboxId) {
    if let Err(error) = spawn::remove(&ports.maker, id).await {
        tracing::error!(sandbox = %id, %error, "it is not taken away yet");
    }
}

fn wanted(ports: &Ports, sandbox: &Sandbox, first: First) -> Result<Wanted, SpawnError> {
    let spec = &sandbox.spec;
    let mut labels = BTreeMap::new();
    if let Some(member) = &sandbox.pool {
        labels.insert(POOL.to_owned(), member.pool.to_string());
        labels.insert(GENERATION.to_owned(), member.generation.to_string());
    }
    let log = ports.log(&sandbox.id);
    let made = log.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.map_err(|e| SpawnError::ResourceExhausted(format!("the directory of {}: {e}", log.display())))?;
    let run = match first {
        First::Hold => Run::Hold(ports.holder.clone()),
        First::Unclaimed { .. } | First::Workload => {
            Run::Command((!spec.command.is_empty()).then(|| spec.command.clone()))
        }
    };
    let mounts = match first {
        First::Unclaimed { asked: true } => vec![spawn::holder(&ports.holder)],
        First::Hold | First::Unclaimed { asked: false } | First::Workload => Vec::new(),
    };
    Ok(Wanted {
        id: sandbox.id.clone(),
        image: spec.image.to_string(),
        run,
        env: spec.env.clone(),
        cwd: spec.cwd.as_ref().map(ToString::to_string),
        user: spec.user.as_ref().map(ToString::to_string),
        limits: limits(spec),
        network: spec.network,
        annotations: annotations(spec, sandbox.agent.as_ref(), first),
        labels,
        mounts,
        stdio: Stdio::Log(log),
        runtime: ports.config.containerd.runtime.clone(),
        runtime_path: None,
    })
}

fn limits(spec: &SandboxSpec) -> Limits {
    let limits = &spec.resource_limits;
    Limits {
        memory_bytes: limits.memory_bytes.map(|memory| memory.bytes()),
        cpu_millis: limits.cpu_millis.map(|cpus| cpus.millis()),
        pids: limits.pids.map(|pids| pids.get().into()),
    }
}

/// What the shim is told. Whoever holds a sandbox for a claim says nothing of agent, policy and secrets: the claim does.
fn annotations(spec: &SandboxSpec, agent: Option<&AgentId>, first: First) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([(BACKEND.to_owned(), spec.backend.name().to_owned())]);
    if let Some(path) = &spec.runsc_path {
        all.insert(RUNSC_PATH.to_owned(), path.to_string());
    }
    if let First::Unclaimed { .. } = first {
        all.insert(spawn::CLAIMABLE.to_owned(), "true".to_owned());
        all.insert(spawn::NETWORK_POLICY.to_owned(), spawn::DENY_ALL.to_owned());
    }
    if first == First::Workload {
        if let Some(agent) = agent {
            all.insert(AGENT.to_owned(), agent.to_string());
        }
        if let Some(policy) = &spec.network_policy {
            all.insert(spawn::NETWORK_POLICY.to_owned(), policy.to_string());
        }
        if !spec.secrets.is_empty() {
            let secrets: Vec<_> = spec.secrets.iter().map(ToString::to_string).collect();
            all.insert(SECRETS.to_owned(), secrets.join(","));
        }
    }
    all
}

/// What a failed spawn is called.
fn failure(image: &ImageRef, failed: SpawnFailed) -> SpawnError {
    let step = failed.step;
    // Of the shim's refusals containerd keeps the message alone.
    if let Cause::Containers(ContainersError::Refused { message, .. } | ContainersError::Failed { message, .. }) =
        &failed.cause
        && let Some((cause, message)) = refusal::Cause::of(message)
    {
        return causes::of_spawn(cause, message);
    }
    match failed.cause {
        Cause::Containers(error) => match error {
            ContainersError::Reference(_) | ContainersError::ImageNotFound(_) => {
                SpawnError::ImageNotFound(image.clone())
            }
            ContainersError::ImageForbidden { why, .. } | ContainersError::ImageUnusable { why, .. } => {
                SpawnError::ImageUnavailable(image.clone(), why)
            }
            ContainersError::Unavailable { .. } => SpawnError::BackendUnavailable(error.to_string()),
            ContainersError::Refused { refusal: Refusal::Forbidden, message, .. } => {
                SpawnError::IdentityRejected(message)
            }
            ContainersError::Timeout { after, .. } => SpawnError::Timeout { waited: after, step: step.to_string() },
            ContainersError::Full { .. } => SpawnError::ResourceExhausted(error.to_string()),
            _ if step == Step::Image => SpawnError::ImageUnavailable(image.clone(), error.to_string()),
            _ => SpawnError::StartFailed(error.to_string()),
        },
        Cause::Network(error) => SpawnError::NetworkUnavailable(error.to_string()),
        Cause::Spec(error) => SpawnError::StartFailed(error.to_string()),
        Cause::Panicked(why) => SpawnError::StartFailed(why),
    }
}

/// Ids that nobody has had: a word, and ten random hexadecimal digits.
pub fn fresh_id(word: &str) -> Result<SandboxId, SpawnError> {
    let mut random = [0; 5];
    let failed = |why: String| SpawnError::ResourceExhausted(format!("no new id: {why}"));
    getrandom::fill(&mut random).map_err(|e| failed(e.to_string()))?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{word}-{hex}").parse().map_err(|e: trust::id::BadId| failed(e.to_string()))
}

/// How long something took, in whole microseconds.
pub fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
