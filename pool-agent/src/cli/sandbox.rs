//! `spawn`, `get`, `terminate`, `logs`: sandboxes, one by one. `list` (all of them) is in [`list`](mod@list).

pub mod list;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use futures_util::stream::{self, StreamExt};
use hyper::Method;
use trust::clock::{Clock, SystemClock};
use trust::id::{AgentId, SandboxId, SandboxName};

use super::agent_api::{Agent, AgentApiError, block_on, with_query};
use super::events::{Listener, Said};
use super::output;
use super::session::{self, SessionError, Wanted};
use super::terminal::{self, Progress};
use super::workload::Wish;
use crate::api::types::{Ended, SandboxView, SpawnRequest, Usage};
use crate::events::PullProgress;
use crate::image::ImageRef;
use crate::labels::BadLabel;
use crate::node::Root;
use crate::sandbox::{Fence, Sandbox};

/// So many are ended at the same time.
const AT_ONCE: usize = 16;

/// What is to be made.
#[derive(Debug, Args)]
pub struct Spawn {
    /// The image, by tag or digest: python:3.11, python@sha256:…
    #[arg(long)]
    image: ImageRef,
    #[command(flatten)]
    wish: Wish,
    /// The agent it works for
    #[arg(long, value_name = "SPIFFE-ID")]
    agent: Option<AgentId>,
    /// As people call it, beside its id
    #[arg(long)]
    name: Option<SandboxName>,
    /// Carry what the command writes, until it ends; its exit code is ours then
    #[arg(long)]
    wait: bool,
    /// Say on stderr how long it took, in milliseconds
    #[arg(long)]
    time: bool,
    /// What runs in it, instead of the image's own command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Spawn {
    /// Whether the exit code is a command's.
    pub fn carries(&self) -> bool {
        self.wait
    }
}

/// Which sandbox.
#[derive(Debug, Args)]
pub struct Get {
    /// Its id or name
    id: SandboxId,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which sandboxes end.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub struct Terminate {
    /// Their ids or names
    #[arg(value_name = "ID", group = "which")]
    ids: Vec<SandboxId>,
    /// All of this node, those that wait in pools too
    #[arg(long, group = "which")]
    all: bool,
    /// At once, without asking them to end first
    #[arg(long)]
    force: bool,
}

/// Whose output.
#[derive(Debug, Args)]
pub struct Logs {
    /// Its id or name
    id: SandboxId,
    /// So many lines from the end; without: all that is kept
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Go on with what it writes, until it ends
    #[arg(long, short)]
    follow: bool,
}

/// Why a sandbox is not as was asked for.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum SandboxError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Label(#[from] BadLabel),
    /// Each on a line of its own.
    #[error("{}", .0.join("\n"))]
    NotEnded(Vec<String>),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

pub(super) fn spawn(asked: Spawn, root: &Root, out: &mut dyn Write) -> Result<u8, SandboxError> {
    let Spawn { image, wish, agent, name, wait, time, command } = asked;
    let api = Agent::of(root);
    let request = SpawnRequest { spec: wish.of(image, command)?, name, agent };
    block_on(async {
        let begun = Instant::now();
        let sandbox = spawned(&api, &request).await?;
        if time {
            writeln!(io::stderr(), "spawn: {}", output::millis(begun.elapsed().as_secs_f64() * 1e3))?;
        }
        if wait {
            return attached(&api, &sandbox.id, out).await;
        }
        writeln!(out, "{}", sandbox.id)?;
        Ok(0)
    })
}

/// Asks for it, and says meanwhile to whoever watches that it is being made.
async fn spawned(api: &Agent, request: &SpawnRequest) -> Result<Sandbox, AgentApiError> {
    let begun = Instant::now();
    let mut progress = Progress::begin();
    // Before it is asked for, or the beginning is missed; that nobody tells how the pull goes is no reason not to spawn.
    let mut listener = match terminal::is_stderr() {
        true => Listener::begin(api, None).await.ok(),
        false => None,
    };
    let mut answer = std::pin::pin!(api.tell(Method::POST, "/v1/sandboxes", request));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            Some(pull) = pulled(&mut listener) => if pull.image == request.spec.image {
                progress.pulled(&format!("pulling {}", pull.image), pull.bytes, pull.total);
            },
            _ = tick.tick() => {
                let seconds = begun.elapsed().as_secs_f64();
                progress.say(&format!("{} under {}: {seconds:.1} s", request.spec.image, request.spec.backend));
            }
        }
    }
}

/// The next that is told of a pull; none where nobody tells any more.
async fn pulled(listener: &mut Option<Listener>) -> Option<PullProgress> {
    loop {
        match listener.as_mut()?.next().await {
            Ok(Some(Said::Pull(pull))) => return Some(pull),
            Ok(Some(Said::Sandbox(_))) => {}
            Ok(Some(Said::Lost) | None) | Err(_) => *listener = None,
        }
    }
}

/// Carries what a sandbox's own command writes until it ends. Whoever ends us ends the sandbox: it was made for this.
pub(super) async fn attached(api: &Agent, id: &SandboxId, out: &mut dyn Write) -> Result<u8, SandboxError> {
    let carried = async {
        let stream = api.stream(&format!("/v1/sandboxes/{id}/attach")).await?;
        Ok(session::carry(stream, Wanted::default(), out).await?)
    };
    tokio::select! {
        code = carried => match code {
            Err(SandboxError::Session(SessionError::Ended)) => {}
            code => return code,
        },
        _ = tokio::signal::ctrl_c() => {}
    }
    api.ask::<Sandbox>(Method::DELETE, &one(id, false)).await?;
    Err(SessionError::Ended.into())
}

pub(super) fn get(asked: &Get, root: &Root, out: &mut dyn Write) -> Result<(), SandboxError> {
    let path = format!("/v1/sandboxes/{}", asked.id);
    let view: SandboxView = block_on(Agent::of(root).ask(Method::GET, &path))?;
    if asked.json {
        return Ok(output::json(out, &view)?);
    }
    let SandboxView { sandbox, usage } = view;
    let spec = &sandbox.spec;
    let limits = spec.resource_limits;
    let command = (!spec.command.is_empty()).then(|| spec.command.join(" "));
    let fence = sandbox.fence.map(|fence| match fence {
        Fence::Sealed => "sealed: no network".to_owned(),
        Fence::Ruleset(digest) => format!("ruleset {digest}"),
    });
    let age = SystemClock.timestamp().since(sandbox.created_at);
    output::fields(
        out,
        &[
            ("Id", Some(sandbox.id.to_string())),
            ("Name", sandbox.name.as_ref().map(ToString::to_string)),
            ("Status", Some(sandbox.status().to_owned())),
            ("Reason", sandbox.reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message))),
            ("Node", Some(sandbox.node.to_string())),
            ("Pool", sandbox.pool.as_ref().map(|member| member.pool.to_string())),
            ("Agent", sandbox.agent.as_ref().map(ToString::to_string)),
            ("Runtime", Some(spec.backend.to_string())),
            ("Image", Some(spec.image.to_string())),
            ("Command", command),
            ("Network policy", spec.network_policy.as_ref().map(ToString::to_string)),
            ("Fence", fence),
            ("Memory limit", limits.memory_bytes.map(|memory| memory.to_string())),
            ("CPU limit", limits.cpu_millis.map(|cpus| cpus.to_string())),
            ("Memory", usage.map(|usage| output::bytes(usage.memory_bytes))),
            ("CPU", usage.map(|Usage { cpu_percent, .. }| format!("{cpu_percent:.1}%"))),
            ("Attestation", sandbox.attestation.map(|digest| digest.to_string())),
            ("Age", Some(output::age(age))),
            ("Expires at", sandbox.expires_at.map(|at| at.to_string())),
        ],
    )?;
    Ok(())
}

pub(super) fn terminate(asked: &Terminate, root: &Root, out: &mut dyn Write) -> Result<(), SandboxError> {
    let api = &Agent::of(root);
    let force = asked.force;
    block_on(async {
        if asked.all {
            let path = with_query("/v1/sandboxes", force.then_some(("force", "true")));
            let ended: Ended = api.ask(Method::DELETE, &path).await?;
            return said(&ended, out);
        }
        let ends = asked.ids.iter().map(|id| async move {
            let path = one(id, force);
            (id, api.ask::<Sandbox>(Method::DELETE, &path).await)
        });
        let mut ends = stream::iter(ends).buffered(AT_ONCE);
        let mut failed = Vec::new();
        while let Some((id, end)) = ends.next().await {
            match end {
                Ok(_) => writeln!(out, "{id}")?,
                Err(error) if error.is_of_all() => return Err(error.into()),
                Err(error) => failed.push(format!("{id}: {}", super::chain(&error))),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(SandboxError::NotEnded(failed)) }
    })
}

fn one(id: &SandboxId, force: bool) -> String {
    with_query(&format!("/v1/sandboxes/{id}"), force.then_some(("force", "true")))
}

fn said(ended: &Ended, out: &mut dyn Write) -> Result<(), SandboxError> {
    for id in &ended.sandboxes {
        writeln!(out, "{id}")?;
    }
    Ok(())
}

pub(super) fn logs(asked: &Logs, root: &Root, out: &mut dyn Write) -> Result<(), SandboxError> {
    let path = format!("/v1/sandboxes/{}/logs", asked.id);
    let tail = asked.tail.map(|lines| ("tail", lines.to_string()));
    let path = with_query(&path, tail.into_iter().chain(asked.follow.then(|| ("follow", "true".to_owned()))));
    Ok(block_on(Agent::of(root).copy(&path, out))?)
}
