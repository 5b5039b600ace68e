//! What `pool` changes: pools come and go, grow and shrink, and stop being claimed from.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, ValueEnum};
use hyper::Method;
use serde::de::IgnoredAny;
use trust::id::PoolName;

use super::{BAR, PoolError, all, path};
use crate::api::types::{Ended, Eviction, PoolRequest, PoolStats, PoolUpdate};
use crate::cli::agent_api::{Agent, block_on, with_query};
use crate::cli::chain;
use crate::cli::output;
use crate::cli::terminal::Progress;
use crate::cli::workload::Wish;
use crate::image::ImageRef;
use crate::pool::file::FilePool;
use crate::pool::template::{AutoScaling, Mode, Pool, Scaling, Template};
use crate::sandbox::{Phase, Sandbox};
use crate::spec::BadSpec;
use crate::store::Failure;

/// How often it is looked whether members are ready.
const LOOK: Duration = Duration::from_millis(200);

/// How a pool is to be.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Create {
    /// Its name, where it is described by options
    #[arg(group = "what", requires = "image")]
    name: Option<PoolName>,
    /// A file such as those in /etc/creto/pools.d
    #[arg(short, long, value_name = "FILE", group = "what", conflicts_with_all = ["image", "min_ready", "max_ready", "max_age", "mode"])]
    file: Option<PathBuf>,
    /// Its members' image, by tag or digest
    #[arg(long)]
    image: Option<ImageRef>,
    #[command(flatten)]
    wish: Wish,
    /// What runs in a member before it is claimed: nothing, or the image's own command
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    mode: Runs,
    #[command(flatten)]
    scale: Scale,
    /// Wait until so many members are ready as there should be at least
    #[arg(long)]
    wait: bool,
    /// How long that may take
    #[arg(long, value_name = "TIME", default_value = "5m", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// What runs in its members, instead of the image's own command
    #[arg(last = true, value_name = "COMMAND", requires = "image")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runs {
    Hold,
    Run,
}

/// How many wait, and for how long.
#[derive(Debug, Args)]
pub struct Scale {
    /// So many are ready at least
    #[arg(long, value_name = "COUNT")]
    min_ready: Option<u32>,
    /// So many are ready at most
    #[arg(long, value_name = "COUNT")]
    max_ready: Option<u32>,
    /// None waits longer
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// So many minutes' claims are ready, between the two
    #[arg(long, value_name = "FACTOR")]
    auto_scaling_headroom: Option<f64>,
    /// Whether the number follows the claims
    #[arg(long, value_name = "true|false")]
    auto_scaling_enabled: Option<bool>,
}

/// What changes.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["min_ready", "max_ready", "max_age", "auto_scaling_headroom", "auto_scaling_enabled"]))]
pub struct Update {
    /// The pool
    pool: PoolName,
    #[command(flatten)]
    scale: Scale,
}

/// Who ends.
#[derive(Debug, Args)]
pub struct Evict {
    /// The pool
    pool: PoolName,
    /// So many, the oldest first
    #[arg(long)]
    count: usize,
}

/// Which pools.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub struct Which {
    /// The pools
    #[arg(value_name = "POOL", group = "which")]
    pools: Vec<PoolName>,
    /// All of this node
    #[arg(long, group = "which")]
    all: bool,
}

impl Create {
    fn request(self) -> Result<PoolRequest, PoolError> {
        if let Some(path) = self.file {
            let text = fs::read_to_string(&path).map_err(|why| PoolError::Unreadable { path: path.clone(), why })?;
            let FilePool { name, template, scaling } = FilePool::parse(&path, &text)?;
            return Ok(PoolRequest { name, template, scaling });
        }
        let (Some(name), Some(image)) = (self.name, self.image) else { return Err(PoolError::Nameless) };
        let mode = match self.mode {
            Runs::Hold => Mode::Hold,
            Runs::Run => Mode::Run,
        };
        let template = Template { spec: self.wish.of(image, self.command)?, mode, readiness: None };
        Ok(PoolRequest { name, template, scaling: self.scale.scaling()? })
    }
}

impl Scale {
    /// Of a new pool.
    fn scaling(self) -> Result<Scaling, BadSpec> {
        let min_ready = self.min_ready.unwrap_or(1);
        let mut scaling = Scaling::fixed(min_ready, self.max_ready.unwrap_or(min_ready.saturating_mul(2)))?;
        scaling.max_age = self.max_age;
        if let Some(headroom) = self.auto_scaling_headroom {
            scaling.auto_scaling = AutoScaling { enabled: true, headroom };
        }
        if let Some(enabled) = self.auto_scaling_enabled {
            scaling.auto_scaling.enabled = enabled;
        }
        scaling.checked()
    }
}

pub(super) fn create(api: &Agent, asked: Create, out: &mut dyn Write) -> Result<(), PoolError> {
    let wait = asked.wait.then_some(asked.timeout);
    let request = asked.request()?;
    block_on(async {
        let Pool { name, scaling, .. } = api.tell(Method::POST, "/v1/warm-pools", &request).await?;
        if let Some(timeout) = wait {
            ready(api, &name, timeout).await?;
        }
        let Scaling { min_ready, max_ready, .. } = scaling;
        Ok(writeln!(out, "pool {name}: {min_ready} to {max_ready} ready")?)
    })
}

/// Waits until as many are ready as there should be at least, and shows how many there are, and what goes wrong meanwhile.
async fn ready(api: &Agent, pool: &PoolName, timeout: Duration) -> Result<(), PoolError> {
    let (begun, progress) = (Instant::now(), Progress::begin());
    loop {
        let stats: PoolStats = api.ask(Method::GET, &format!("{}/stats", path(pool))).await?;
        let (ready, wanted) = (stats.ready, stats.scaling.min_ready as usize);
        if ready >= wanted {
            return Ok(());
        }
        let late = begun.elapsed() >= timeout;
        let failure = if late || progress.is_shown() { last_failure(api, pool).await } else { None };
        if late {
            let why = failure.map(|failure| failure.message);
            return Err(PoolError::NotReady { pool: pool.clone(), ready, wanted, waited: timeout, why });
        }
        let failed = failure.map_or_else(String::new, |failure| format!(", {} at {}", failure.code, failure.at));
        let (bar, warming) = (output::bar(ready, wanted, BAR), stats.warming);
        progress.say(&format!("{pool} {bar} {ready}/{wanted} ready, {warming} warming{failed}"));
        tokio::time::sleep(LOOK).await;
    }
}

/// The newest; `None` where there is none, or it cannot be had: that is no reason to fail.
async fn last_failure(api: &Agent, pool: &PoolName) -> Option<Failure> {
    let path = with_query(&format!("{}/logs", path(pool)), [("phase", Phase::Warming.name()), ("limit", "1")]);
    api.ask::<Vec<Failure>>(Method::GET, &path).await.ok()?.pop()
}

pub(super) fn update(api: &Agent, asked: Update, out: &mut dyn Write) -> Result<(), PoolError> {
    let Scale { min_ready, max_ready, max_age, auto_scaling_headroom, auto_scaling_enabled } = asked.scale;
    let update =
        PoolUpdate { min_ready, max_ready, max_age, auto_scaling_enabled, auto_scaling_headroom, template: None };
    let Pool { name, scaling, .. } = block_on(api.tell(Method::PATCH, &path(&asked.pool), &update))?;
    let Scaling { min_ready, max_ready, .. } = scaling;
    Ok(writeln!(out, "pool {name}: {min_ready} to {max_ready} ready")?)
}

pub(super) fn evict(api: &Agent, asked: &Evict, out: &mut dyn Write) -> Result<(), PoolError> {
    let (path, count) = (format!("{}/evictions", path(&asked.pool)), asked.count);
    let ended: Ended = block_on(api.tell(Method::POST, &path, &Eviction { count }))?;
    for id in ended.sandboxes {
        writeln!(out, "{id}")?;
    }
    Ok(())
}

pub(super) fn spawn(api: &Agent, pool: &PoolName, out: &mut dyn Write) -> Result<(), PoolError> {
    let sandbox: Sandbox = block_on(api.ask(Method::POST, &format!("{}/members", path(pool))))?;
    Ok(writeln!(out, "{}", sandbox.id)?)
}

pub(super) fn drain(api: &Agent, asked: &Which, out: &mut dyn Write) -> Result<(), PoolError> {
    each(api, asked, "drain", "drains: nothing is claimed from it any more", out)
}

pub(super) fn enable(api: &Agent, asked: &Which, out: &mut dyn Write) -> Result<(), PoolError> {
    each(api, asked, "enable", "is open", out)
}

/// One that fails stops no other.
fn each(api: &Agent, asked: &Which, verb: &str, done: &str, out: &mut dyn Write) -> Result<(), PoolError> {
    block_on(async {
        let pools = match asked.all {
            true => all(api).await?.into_iter().map(|stats| stats.pool).collect(),
            false => asked.pools.clone(),
        };
        let mut failed = Vec::new();
        for pool in pools {
            match api.ask::<PoolStats>(Method::POST, &format!("{}/{verb}", path(&pool))).await {
                Ok(_) => writeln!(out, "pool {pool} {done}")?,
                Err(error) if error.is_of_all() => return Err(error.into()),
                Err(error) => failed.push(format!("{pool}: {}", chain(&error))),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(PoolError::Some(failed)) }
    })
}

pub(super) fn delete(api: &Agent, pool: &PoolName, out: &mut dyn Write) -> Result<(), PoolError> {
    block_on(api.ask::<IgnoredAny>(Method::DELETE, &path(pool)))?;
    Ok(writeln!(out, "pool {pool} is gone")?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn request(line: &str) -> Result<PoolRequest, PoolError> {
        Line::parse_from(["create"].into_iter().chain(line.split_whitespace())).create.request()
    }

    #[test]
    fn options_describe_a_pool() {
        for (line, min, max, scales, headroom) in [
            ("demo --image a", 1, 2, false, 1.5),
            ("demo --image a --min-ready 3", 3, 6, false, 1.5),
            ("demo --image a --min-ready 0 --max-ready 9", 0, 9, false, 1.5),
            ("demo --image a --auto-scaling-headroom 2.5", 1, 2, true, 2.5),
            ("demo --image a --auto-scaling-headroom 2 --auto-scaling-enabled false", 1, 2, false, 2.0),
            ("demo --image a --auto-scaling-enabled true", 1, 2, true, 1.5),
        ] {
            let PoolRequest { scaling, .. } = request(line).unwrap();
            assert_eq!((scaling.min_ready, scaling.max_ready), (min, max), "{line}");
            assert_eq!((scaling.auto_scaling.enabled, scaling.auto_scaling.headroom), (scales, headroom), "{line}");
        }
        let line =
            "demo --image python:3.11 --memory 512Mi --env A=b --label team=x --mode run --max-age 45m -- serve -p 80";
        let PoolRequest { name, template, scaling } = request(line).unwrap();
        assert_eq!((&*name.to_string(), template.mode), ("demo", Mode::Run));
        assert_eq!(template.spec.command, ["serve", "-p", "80"]);
        assert_eq!((template.spec.env["A"].as_str(), template.spec.labels.get("team")), ("b", Some("x")));
        assert_eq!(template.spec.resource_limits.memory_bytes, Some("512Mi".parse().unwrap()));
        assert_eq!(scaling.max_age, Some(Duration::from_secs(2700)));
        let error = request("demo --image a --min-ready 3 --max-ready 2").unwrap_err().to_string();
        assert!(error.contains("min_ready 3 is more than max_ready 2"), "{error}");
    }

    #[test]
    fn a_file_describes_the_same_pool() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo.toml");
        let file = || request(&format!("-f {}", path.display()));
        assert!(matches!(file(), Err(PoolError::Unreadable { .. })));
        fs::write(&path, "image = \"python:3.11\"\nmin_ready = 3\nmax_ready = 6\n").unwrap();
        assert_eq!(file().unwrap(), request("demo --image python:3.11 --min-ready 3").unwrap());
        fs::write(&path, "image = \"python:3.11\"\nmin_ready = \"many\"\nmax_ready = 6\n").unwrap();
        let error = file().unwrap_err().to_string();
        assert!(error.contains("demo.toml") && error.contains("line 2"), "{error}");
    }
}
