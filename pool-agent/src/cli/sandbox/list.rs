//! `list`: the node's sandboxes. Programs get ids, one a line; people a table.

use std::cmp::Ordering;
use std::io::Write;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use hyper::Method;
use trust::clock::{Clock, SystemClock, Timestamp};

use super::SandboxError;
use crate::api::types::{SandboxView, Sandboxes, Usage};
use crate::cli::agent_api::{Agent, block_on, with_query};
use crate::cli::output::{self, Colour};
use crate::cli::terminal;
use crate::labels::LabelSelector;
use crate::node::Root;
use crate::sandbox::Phase;

/// A cold spawn's word for [`Phase::Warming`].
const CREATING: &str = "Creating";

/// Which sandboxes, in which order.
#[derive(Debug, Args)]
pub struct List {
    /// Only those that are Creating, Warming, Ready, Claimed, Running, Terminating or Failed
    #[arg(long)]
    status: Option<Status>,
    /// Only those with these labels, such as team=a,tier!=gold
    #[arg(long)]
    selector: Option<LabelSelector>,
    /// Only those that use so much of one processor, such as '>80%'
    #[arg(long, value_name = "BOUND", allow_hyphen_values = true)]
    cpu_usage: Option<Bound>,
    /// By what they use, or by age, the least first; without: the oldest first
    #[arg(long, value_name = "WHAT")]
    sort_by: Option<SortBy>,
    /// The most first
    #[arg(long, requires = "sort_by")]
    descending: bool,
    /// So many at most
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What they can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(missing_docs, reason = "their names say it")]
pub enum SortBy {
    CpuUsage,
    MemoryUsage,
    Age,
}

/// A status as the table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    phase: Phase,
    shown: &'static str,
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case(CREATING) {
            return Ok(Self { phase: Phase::Warming, shown: CREATING });
        }
        let phase: Phase = text.parse().map_err(|e| format!("{e}, {CREATING}"))?;
        Ok(Self { phase, shown: phase.name() })
    }
}

/// A bound on how much of a processor is used, in percent: `>80%`, `<=5`.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    fits: fn(&f64, &f64) -> bool,
    percent: f64,
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        type Operator = (&'static str, fn(&f64, &f64) -> bool);
        // The longer ones first: one begins with the other.
        let operators: [Operator; 5] =
            [(">=", f64::ge), ("<=", f64::le), (">", f64::gt), ("<", f64::lt), ("=", f64::eq)];
        let bad = || "give >, >=, <, <= or = and a percentage, in quotes, such as '>80%'".to_owned();
        let text = text.trim();
        let (fits, rest) =
            operators.into_iter().find_map(|(sign, fits)| Some((fits, text.strip_prefix(sign)?))).ok_or_else(bad)?;
        let percent: f64 = rest.trim().trim_end_matches('%').trim_end().parse().map_err(|_| bad())?;
        if percent.is_finite() && percent >= 0.0 { Ok(Self { fits, percent }) } else { Err(bad()) }
    }
}

pub(in crate::cli) fn run(asked: &List, root: &Root, out: &mut dyn Write) -> Result<(), SandboxError> {
    let mut query = Vec::new();
    query.extend(asked.status.map(|status| ("status", status.phase.name().to_owned())));
    query.extend(asked.selector.as_ref().map(|selector| ("selector", selector.to_string())));
    // What is chosen and sorted here cannot be cut there.
    let all = asked.cpu_usage.is_none()
        && asked.sort_by.is_none()
        && asked.status.is_none_or(|status| status.phase != Phase::Warming);
    query.extend(asked.limit.filter(|_| all).map(|limit| ("limit", limit.to_string())));
    let path = with_query("/v1/sandboxes", query);
    let Sandboxes { sandboxes } = block_on(Agent::of(root).ask(Method::GET, &path))?;
    let chosen = choose(asked, sandboxes);
    if asked.json {
        return Ok(output::json(out, &chosen)?);
    }
    if terminal::is_stdout() {
        return Ok(table(out, &chosen, SystemClock.timestamp(), terminal::has_colour())?);
    }
    for view in &chosen {
        writeln!(out, "{}", view.sandbox.id)?;
    }
    Ok(())
}

fn choose(asked: &List, mut all: Vec<SandboxView>) -> Vec<SandboxView> {
    all.retain(|view| asked.status.is_none_or(|status| view.sandbox.status() == status.shown));
    all.retain(|view| match (asked.cpu_usage, view.usage) {
        (Some(Bound { fits, percent }), Some(usage)) => fits(&usage.cpu_percent, &percent),
        (Some(_), None) => false,
        (None, _) => true,
    });
    if let Some(by) = asked.sort_by {
        all.sort_by(|a, b| compare(by, a, b)); // stable: the oldest first among equals
        if asked.descending {
            all.reverse();
        }
    }
    all.truncate(asked.limit.unwrap_or(usize::MAX));
    all
}

fn compare(by: SortBy, a: &SandboxView, b: &SandboxView) -> Ordering {
    let cpu = |view: &SandboxView| view.usage.map_or(-1.0, |usage| usage.cpu_percent);
    match by {
        SortBy::CpuUsage => cpu(a).total_cmp(&cpu(b)),
        SortBy::MemoryUsage => a.usage.map(|usage| usage.memory_bytes).cmp(&b.usage.map(|usage| usage.memory_bytes)),
        SortBy::Age => b.sandbox.created_at.cmp(&a.sandbox.created_at), // who came later is younger
    }
}

/// For people; `top` shows it too.
pub(in crate::cli) fn table(
    out: &mut dyn Write,
    views: &[SandboxView],
    now: Timestamp,
    colour: bool,
) -> std::io::Result<()> {
    let rows = views.iter().map(|SandboxView { sandbox, usage }| {
        vec![
            sandbox.id.to_string(),
            output::or_dash(sandbox.name.as_ref()),
            sandbox.status().to_owned(),
            output::or_dash(sandbox.pool.as_ref().map(|member| &member.pool)),
            sandbox.spec.backend.to_string(),
            output::age(now.since(sandbox.created_at)),
            output::or_dash(usage.map(|Usage { cpu_percent, .. }| format!("{cpu_percent:.1}%"))),
            output::or_dash(usage.map(|usage| output::bytes(usage.memory_bytes))),
            sandbox.spec.image.to_string(),
            output::or_dash(sandbox.agent.as_ref()),
        ]
    });
    let heading = ["ID", "NAME", "STATUS", "POOL", "RUNTIME", "AGE", "CPU", "MEMORY", "IMAGE", "AGENT"];
    match colour {
        true => output::coloured_table(out, &heading, rows, "STATUS", status_colour),
        false => output::table(out, &heading, rows),
    }
}

fn status_colour(status: &str) -> Colour {
    match status {
        "Ready" | "Running" => Colour::Green,
        "Failed" => Colour::Red,
        _ => Colour::Yellow,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trust::clock::Timestamp;

    use super::*;
    use crate::sandbox::{Generation, Membership, Sandbox};
    use crate::spec::SandboxSpec;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        list: List,
    }

    fn view(id: &str, phase: Phase, born: u64, usage: Option<(f64, u64)>) -> SandboxView {
        let spec = SandboxSpec::of("python:3.11".parse().unwrap());
        let mut sandbox =
            Sandbox::wished(id.parse().unwrap(), "n".parse().unwrap(), None, spec, Timestamp::from_unix(born));
        sandbox.phase = phase;
        let usage = usage.map(|(cpu_percent, memory_bytes)| Usage { cpu_percent, memory_bytes });
        SandboxView { sandbox, usage }
    }

    #[test]
    fn sandboxes_are_chosen_sorted_and_cut() {
        let mut member = view("warming", Phase::Warming, 3, None);
        let generation = Generation::of(b"");
        member.sandbox.pool = Some(Membership { pool: "p".parse().unwrap(), generation });
        let all = [
            view("old", Phase::Running, 1, Some((80.0, 300))),
            view("mid", Phase::Running, 2, Some((120.5, 100))),
            member,
            view("new", Phase::Warming, 4, None),
            view("end", Phase::Terminating, 5, Some((0.0, 200))),
        ];
        for (line, ids) in [
            ("", "old mid warming new end"),
            ("--limit 2", "old mid"),
            ("--limit 0", ""),
            ("--status running", "old mid"),
            ("--status Warming", "warming"),
            ("--status creating", "new"),
            ("--sort-by cpu_usage", "warming new end old mid"),
            ("--sort-by cpu_usage --descending --limit 2", "mid old"),
            ("--sort-by memory_usage --descending", "old end mid new warming"),
            ("--sort-by age", "end new warming mid old"),
            ("--sort-by age --descending", "old mid warming new end"),
            ("--cpu-usage >80%", "mid"),
            ("--cpu-usage >=80", "old mid"),
            ("--cpu-usage <=80%", "old end"),
            ("--cpu-usage <1%", "end"),
            ("--cpu-usage =120.5%", "mid"),
            ("--cpu-usage >=0 --sort-by age --limit 1", "end"),
        ] {
            let asked = Line::parse_from(["list"].into_iter().chain(line.split_whitespace())).list;
            let chosen: Vec<_> = choose(&asked, all.to_vec()).iter().map(|view| view.sandbox.id.to_string()).collect();
            assert_eq!(chosen.join(" "), ids, "{line}");
        }
    }

    #[test]
    fn a_bound_that_is_none_is_refused() {
        for bad in ["80%", ">", "> %", ">eighty", ">-1", ">NaN", ">inf%", "=>80", ""] {
            let error = bad.parse::<Bound>().expect_err(bad);
            assert!(error.contains("'>80%'"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_table_says_what_people_look_for() {
        let views =
            [view("box-1", Phase::Running, 100, Some((12.34, 512 << 20))), view("box-2", Phase::Failed, 3700, None)];
        let mut out = Vec::new();
        table(&mut out, &views, Timestamp::from_unix(7300), false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "ID     NAME  STATUS   POOL  RUNTIME  AGE  CPU    MEMORY   IMAGE        AGENT\n\
             box-1  -     Running  -     gvisor   2h   12.3%  512.0Mi  python:3.11  -\n\
             box-2  -     Failed   -     gvisor   1h   -      -        python:3.11  -\n"
        );
        let mut out = Vec::new();
        table(&mut out, &views, Timestamp::from_unix(7300), true).unwrap();
        let painted = String::from_utf8(out).unwrap();
        assert!(
            painted.contains("\u{1b}[32mRunning\u{1b}[0m  -") && painted.contains("\u{1b}[31mFailed\u{1b}[0m   -"),
            "{painted}"
        );
    }
}
