//! `pool`: sandboxes that wait to be claimed. What is shown is here; what is changed is in [`change`].

pub mod change;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use trust::id::PoolName;

use super::agent_api::{Agent, AgentApiError, block_on, with_query};
use super::output::{self, Colour};
use super::terminal;
use crate::api::types::{PoolStats, Pools};
use crate::labels::BadLabel;
use crate::node::Root;
use crate::pool::file::BadFile;
use crate::pool::template::{Mode, Pool};
use crate::sandbox::Phase;
use crate::spec::BadSpec;
use crate::store::Failure;

/// The width of a pool's bar on a terminal, in characters.
const BAR: usize = 10;

/// What can be done with pools.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the pools
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a pool is asked to be
    Get(One),
    /// Print how a pool stands
    Stats(One),
    /// Make a pool, from a file or from options
    Create(Box<change::Create>),
    /// Change how many sandboxes wait, or for how long
    Update(change::Update),
    /// End the oldest that wait; others are made in their place
    Evict(change::Evict),
    /// Print what failed in a pool, the newest last
    Logs(Logs),
    /// Make one more member, at once
    Spawn {
        /// The pool
        pool: PoolName,
    },
    /// Let nobody claim from pools any more, and take down what waits in them
    Drain(change::Which),
    /// Let pools be claimed from again
    Enable(change::Which),
    /// Remove a pool, and what waits in it; what was claimed goes on
    Delete {
        /// The pool
        pool: PoolName,
    },
}

/// Which pool.
#[derive(Debug, Args)]
pub struct One {
    /// The pool
    pool: PoolName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which failures.
#[derive(Debug, Args)]
pub struct Logs {
    /// The pool
    pool: PoolName,
    /// Only of members in this phase, such as Warming
    #[arg(long)]
    phase: Option<Phase>,
    /// So many at most, the newest
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a pool is not shown, or not changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PoolError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error(transparent)]
    Label(#[from] BadLabel),
    #[error("reading {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error(transparent)]
    File(#[from] BadFile),
    #[error(transparent)]
    Spec(#[from] BadSpec),
    #[error("a pool has a name and an image, or a file that says both")]
    Nameless,
    /// Each on a line of its own.
    #[error("{}", .0.join("\n"))]
    Some(Vec<String>),
    #[error(
        "after {} {ready} of {wanted} members are ready{}\nsee `creto-runtime-cli pool logs {pool} --phase Warming`",
        humantime::format_duration(*waited),
        why.as_ref().map_or_else(String::new, |why| format!(": {why}"))
    )]
    NotReady {
        pool: PoolName,
        ready: usize,
        wanted: usize,
        waited: Duration,
        /// The newest failure.
        why: Option<String>,
    },
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

pub(super) fn run(verb: Verb, root: &Root, out: &mut dyn Write) -> Result<(), PoolError> {
    let api = &Agent::of(root);
    match verb {
        Verb::List { json } => list(api, json, out),
        Verb::Get(asked) => get(api, &asked, out),
        Verb::Stats(asked) => {
            let stats: PoolStats = block_on(api.ask(Method::GET, &format!("{}/stats", path(&asked.pool))))?;
            if asked.json { Ok(output::json(out, &stats)?) } else { Ok(block(out, &stats)?) }
        }
        Verb::Logs(asked) => logs(api, &asked, out),
        Verb::Create(asked) => change::create(api, *asked, out),
        Verb::Update(asked) => change::update(api, asked, out),
        Verb::Evict(asked) => change::evict(api, &asked, out),
        Verb::Spawn { pool } => change::spawn(api, &pool, out),
        Verb::Drain(asked) => change::drain(api, &asked, out),
        Verb::Enable(asked) => change::enable(api, &asked, out),
        Verb::Delete { pool } => change::delete(api, &pool, out),
    }
}

fn path(pool: &PoolName) -> String {
    format!("/v1/warm-pools/{pool}")
}

/// All pools, as they stand.
pub(super) async fn all(api: &Agent) -> Result<Vec<PoolStats>, AgentApiError> {
    let Pools { pools } = api.ask(Method::GET, "/v1/warm-pools").await?;
    Ok(pools)
}

fn list(api: &Agent, json: bool, out: &mut dyn Write) -> Result<(), PoolError> {
    let pools = block_on(all(api))?;
    if json {
        return Ok(output::json(out, &pools)?);
    }
    Ok(table(out, &pools, terminal::is_stdout(), terminal::has_colour())?)
}

/// For people; `top` shows it too.
pub(super) fn table(out: &mut dyn Write, pools: &[PoolStats], bars: bool, colour: bool) -> io::Result<()> {
    let rows = pools.iter().map(|stats| {
        let (ready, most) = (stats.ready, stats.scaling.max_ready as usize);
        let ready = match bars {
            true => format!("{} {ready}/{most}", output::bar(ready, most, BAR)),
            false => format!("{ready}/{most}"),
        };
        vec![
            stats.pool.to_string(),
            if stats.draining { "draining" } else { "open" }.into(),
            ready,
            stats.claimed.to_string(),
            stats.warming.to_string(),
            format!("{:.1}", stats.claims_per_minute),
            output::or_dash(stats.avg_claim_millis.map(output::millis)),
            output::or_dash(stats.p99_claim_millis.map(output::millis)),
            output::or_dash(stats.hit_ratio.map(|ratio| format!("{:.0}%", ratio * 100.0))),
            output::or_dash(stats.oldest_seconds.map(|age| output::age(Duration::from_secs(age)))),
        ]
    });
    let heading = ["POOL", "STATE", "READY", "CLAIMED", "WARMING", "CLAIMS/MIN", "AVG", "P99", "HITS", "OLDEST"];
    match colour {
        true => output::coloured_table(out, &heading, rows, "STATE", |state| match state {
            "open" => Colour::Green,
            _ => Colour::Yellow,
        }),
        false => output::table(out, &heading, rows),
    }
}

/// The runbook's block.
fn block(out: &mut dyn Write, stats: &PoolStats) -> io::Result<()> {
    writeln!(out, "Pool: {}", stats.pool)?;
    writeln!(out, "Ready: {}/{}", stats.ready, stats.scaling.max_ready)?;
    writeln!(out, "Claimed: {}", stats.claimed)?;
    writeln!(out, "Warming: {}", stats.warming)?;
    writeln!(out, "Claims/min: {:.1}", stats.claims_per_minute)?;
    writeln!(out, "Avg claim latency: {}", output::or_dash(stats.avg_claim_millis.map(output::millis)))?;
    writeln!(out, "P99 claim latency: {}", output::or_dash(stats.p99_claim_millis.map(output::millis)))?;
    let oldest = stats.oldest_seconds.map(|age| output::age(Duration::from_secs(age)));
    writeln!(out, "Oldest sandbox age: {}", output::or_dash(oldest))?;
    match stats.draining {
        true => writeln!(out, "Draining: nothing is claimed from it any more"),
        false => Ok(()),
    }
}

fn get(api: &Agent, asked: &One, out: &mut dyn Write) -> Result<(), PoolError> {
    let pool: Pool = block_on(api.ask(Method::GET, &path(&asked.pool)))?;
    if asked.json {
        return Ok(output::json(out, &pool)?);
    }
    let generation = pool.generation();
    let Pool { name, template, scaling, draining, origin, created_at, .. } = pool;
    let spec = template.spec;
    let (limits, scales) = (spec.resource_limits, scaling.auto_scaling);
    output::fields(
        out,
        &[
            ("Pool", Some(name.to_string())),
            ("Image", Some(spec.image.to_string())),
            ("Runtime", Some(spec.backend.to_string())),
            ("Command", (!spec.command.is_empty()).then(|| spec.command.join(" "))),
            ("Network policy", spec.network_policy.map(|policy| policy.to_string())),
            ("Memory limit", limits.memory_bytes.map(|memory| memory.to_string())),
            ("CPU limit", limits.cpu_millis.map(|cpus| cpus.to_string())),
            (
                "Mode",
                Some(
                    match template.mode {
                        Mode::Hold => "hold",
                        Mode::Run => "run",
                    }
                    .into(),
                ),
            ),
            ("Min ready", Some(scaling.min_ready.to_string())),
            ("Max ready", Some(scaling.max_ready.to_string())),
            ("Max age", scaling.max_age.map(|age| humantime::format_duration(age).to_string())),
            ("Auto-scaling", Some(if scales.enabled { format!("headroom {}", scales.headroom) } else { "off".into() })),
            ("Draining", draining.then(|| "yes".into())),
            ("Generation", Some(generation.to_string())),
            ("From", Some(format!("{origin:?}").to_lowercase())),
            ("Created at", Some(created_at.to_string())),
        ],
    )?;
    Ok(())
}

fn logs(api: &Agent, asked: &Logs, out: &mut dyn Write) -> Result<(), PoolError> {
    let mut query = vec![("limit", asked.limit.to_string())];
    query.extend(asked.phase.map(|phase| ("phase", phase.name().to_owned())));
    let path = with_query(&format!("{}/logs", path(&asked.pool)), query);
    let failures: Vec<Failure> = block_on(api.ask(Method::GET, &path))?;
    if asked.json {
        return Ok(output::json(out, &failures)?);
    }
    let rows = failures.into_iter().rev().map(|failure| {
        let Failure { at, sandbox, phase, code, message, .. } = failure;
        vec![at.to_string(), phase.to_string(), sandbox.to_string(), code, message]
    });
    Ok(output::table(out, &["TIME", "PHASE", "SANDBOX", "CODE", "MESSAGE"], rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::template::Scaling;

    fn stats() -> PoolStats {
        PoolStats {
            pool: "agent-executor-pool".parse().unwrap(),
            scaling: Scaling::fixed(5, 20).unwrap(),
            draining: false,
            ready: 12,
            claimed: 8,
            warming: 2,
            claims_per_minute: 15.3,
            avg_claim_millis: Some(82.0),
            p99_claim_millis: Some(95.2),
            hit_ratio: Some(0.987),
            oldest_seconds: Some(45 * 60 + 12),
        }
    }

    #[test]
    fn stats_are_the_runbooks_block() {
        let printed = |stats: &PoolStats| {
            let mut out = Vec::new();
            block(&mut out, stats).unwrap();
            String::from_utf8(out).unwrap()
        };
        let runbook = "Pool: agent-executor-pool\nReady: 12/20\nClaimed: 8\nWarming: 2\nClaims/min: 15.3\n\
                       Avg claim latency: 82ms\nP99 claim latency: 95ms\nOldest sandbox age: 45m\n";
        assert_eq!(printed(&stats()), runbook);
        let fresh = PoolStats { avg_claim_millis: None, p99_claim_millis: None, oldest_seconds: None, ..stats() };
        assert!(printed(&fresh).contains("P99 claim latency: -\nOldest sandbox age: -\n"));
        assert!(printed(&PoolStats { draining: true, ..stats() }).starts_with(runbook));
    }

    #[test]
    fn people_see_how_full_a_pool_is() {
        let mut out = Vec::new();
        table(&mut out, &[stats()], true, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("open   ██████░░░░ 12/20  8 "), "{text}");
        let (mut out, draining) = (Vec::new(), PoolStats { draining: true, ..stats() });
        table(&mut out, &[draining], true, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\u{1b}[33mdraining\u{1b}[0m  ██████░░░░ 12/20"), "{text}");
    }
}
