//! `claim`: a sandbox out of a pool, with an identity, a policy and secrets of its own, and a command started in it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hyper::Method;
use trust::id::{AgentId, PoolName};

use super::agent_api::{Agent, AgentApiError, block_on};
use super::output;
use super::sandbox::{SandboxError, attached};
use super::workload::Process;
use crate::api::types::{ClaimRequest, Claimed, OnEmpty, Took};
use crate::labels::LabelSelector;
use crate::node::Root;
use crate::sandbox::IdempotencyKey;
use crate::spec::{NetworkPolicy, SecretRef};

/// What is claimed, and for whom.
#[derive(Debug, Args)]
pub struct Claim {
    /// The pool
    pool: PoolName,
    /// The agent that the sandbox works for
    #[arg(long, value_name = "SPIFFE-ID")]
    agent: Option<AgentId>,
    /// What it may connect to: a policy's name, or the policy as JSON; without: the pool's, else the agent's own
    #[arg(long, value_name = "NAME|JSON")]
    policy: Option<NetworkPolicy>,
    /// A secret it may know, as file:NAME or command:NAME; may be given several times
    #[arg(long = "secret", value_name = "REF")]
    secrets: Vec<SecretRef>,
    #[command(flatten)]
    process: Process,
    /// Where no member is ready: make a sandbox, wait for a member, or fail
    #[arg(long, value_name = "WHAT", default_value = "cold")]
    on_empty: Empty,
    /// How long the claim may take in all; without: 30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Asked again by the same key, the same sandbox is answered
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Only a member with these labels, such as team=a,tier!=gold
    #[arg(long)]
    selector: Option<LabelSelector>,
    /// The sandbox ends so long after the claim
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Print the answer as JSON; a command is then started, and not waited for
    #[arg(long)]
    json: bool,
    /// Say on stderr how long it took, in milliseconds
    #[arg(long)]
    time: bool,
    /// What runs in it, instead of the pool's command: its output is carried here, and its exit code is ours
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Empty {
    Cold,
    Wait,
    Fail,
}

/// Why nothing was claimed, or what was claimed did not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ClaimError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

impl Claim {
    /// Whether the exit code is a command's.
    pub fn carries(&self) -> bool {
        !self.json && !self.command.is_empty()
    }
}

pub(super) fn run(asked: Claim, root: &Root, out: &mut dyn Write) -> Result<u8, ClaimError> {
    let (carries, api) = (asked.carries(), Agent::of(root));
    let path = format!("/v1/warm-pools/{}/claims", asked.pool);
    let (json, time) = (asked.json, asked.time);
    let request = request(asked);
    block_on(async {
        let begun = Instant::now();
        let claimed: Claimed = api.tell(Method::POST, &path, &request).await?;
        if time {
            writeln!(io::stderr(), "{}", told(&claimed, begun.elapsed()))?;
        }
        if json {
            output::json(out, &claimed)?;
            return Ok(0);
        }
        if carries {
            return Ok(attached(&api, &claimed.sandbox.id, out).await?);
        }
        writeln!(out, "{}", claimed.sandbox.id)?;
        Ok(0)
    })
}

fn request(asked: Claim) -> ClaimRequest {
    ClaimRequest {
        agent: asked.agent,
        idempotency_key: asked.idempotency_key,
        on_empty: match asked.on_empty {
            Empty::Cold => OnEmpty::Cold,
            Empty::Wait => OnEmpty::Wait,
            Empty::Fail => OnEmpty::Fail,
        },
        timeout: asked.timeout,
        network_policy: asked.policy,
        secrets: asked.secrets,
        selector: asked.selector,
        command: asked.command,
        env: asked.process.env.into_iter().collect(),
        cwd: asked.process.cwd,
        user: asked.process.user,
        ttl: asked.ttl,
    }
}

fn told(claimed: &Claimed, whole: Duration) -> String {
    let Took { take, bind, keep, start, total, .. } = claimed.took;
    let millis = |micros: u64| output::millis(micros as f64 / 1e3);
    format!(
        "claim: {} (take {}, bind {}, keep {}, start {}; {} with the way there), {}",
        millis(total),
        millis(take),
        millis(bind),
        millis(keep),
        millis(start),
        output::millis(whole.as_secs_f64() * 1e3),
        if claimed.warm { "warm" } else { "cold: no member was ready" }
    )
}
