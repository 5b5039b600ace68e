//! `top`: the node, its pools and its busiest sandboxes, again and again; once, where stdout is no terminal.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use trust::clock::{Clock, SystemClock};

use super::agent_api::{Agent, AgentApiError, block_on};
use super::{chain, chunks, health, output, pool, terminal};
use crate::api::types::{Health, PoolStats, SandboxView, Sandboxes};
use crate::channels::Size;
use crate::cli::sandbox::list;
use crate::cli::terminal::Raw;
use crate::node::Root;

/// So many sandboxes are shown where there is no terminal to fill.
const SHOWN: usize = 20;
/// What a terminal has that does not say its size.
const USUAL: Size = Size { width: 80, height: 24 };
/// Another screen, without a cursor.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
/// Back to where we were.
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// How it is shown.
#[derive(Debug, Args)]
pub struct Asked {
    /// How often it is asked anew
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TopError {
    #[error(transparent)]
    Agent(#[from] AgentApiError),
    #[error("setting the terminal up")]
    Terminal(#[source] io::Error),
    #[error("writing the answer")]
    Output(#[from] io::Error),
}

/// What is shown.
struct View {
    health: Health,
    pools: Vec<PoolStats>,
    sandboxes: Vec<SandboxView>,
}

pub(super) fn run(asked: &Asked, root: &Root, out: &mut dyn Write) -> Result<(), TopError> {
    let api = &Agent::of(root);
    if !(terminal::is_stdout() && terminal::is_stdin()) {
        let view = block_on(look(api))?;
        return Ok(show(out, &view, SHOWN, false)?);
    }
    block_on(async {
        let first = look(api).await?; // who does not answer is told on the screen that was there
        let _screen = Screen::enter()?;
        watch(api, first, asked.interval.max(Duration::from_millis(100)), out).await
    })
}

async fn look(api: &Agent) -> Result<View, AgentApiError> {
    let health = health::of(api).await?;
    let pools = pool::all(api).await?;
    let Sandboxes { mut sandboxes } = api.ask(Method::GET, "/v1/sandboxes").await?;
    let cpu = |view: &SandboxView| view.usage.map_or(-1.0, |usage| usage.cpu_percent);
    sandboxes.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)));
    Ok(View { health, pools, sandboxes })
}

/// Until somebody presses q or ^C.
async fn watch(api: &Agent, first: View, interval: Duration, out: &mut dyn Write) -> Result<(), TopError> {
    let mut keys = chunks::stdin();
    let mut ended =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(TopError::Terminal)?;
    let mut view = Ok(first);
    loop {
        draw(out, &view)?;
        tokio::select! {
            pressed = keys.recv() => match pressed {
                Some(Ok(keys)) if !keys.iter().any(|key| matches!(key, b'q' | 3)) => {}
                _ => return Ok(()),
            },
            _ = ended.recv() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
        view = look(api).await;
    }
}

fn draw(out: &mut dyn Write, view: &Result<View, AgentApiError>) -> io::Result<()> {
    let Size { width, height } = terminal::size().unwrap_or(USUAL);
    let mut text = Vec::new();
    match view {
        Ok(view) => show(&mut text, view, usize::from(height), true)?,
        Err(error) => writeln!(text, "{}", chain(error))?,
    }
    let text = String::from_utf8_lossy(&text);
    write!(out, "\u{1b}[H")?;
    let lines: Vec<String> = text
        .lines()
        .take(usize::from(height))
        .map(|line| line.chars().take(usize::from(width)).collect::<String>() + "\u{1b}[K")
        .collect();
    write!(out, "{}\u{1b}[J", lines.join("\r\n"))?;
    out.flush()
}

fn show(out: &mut dyn Write, view: &View, most: usize, bars: bool) -> io::Result<()> {
    let View { health, pools, sandboxes } = view;
    let troubles: Vec<_> = health.components.iter().filter(|(_, state)| *state != "ok").collect();
    let mut line = format!("node: {}, sandboxes: {}", health::word(health.status), sandboxes.len());
    for (name, state) in troubles {
        line = format!("{line}, {name}: {}", output::plain(state));
    }
    writeln!(out, "{line}\n")?;
    pool::table(out, pools, bars, false)?;
    writeln!(out)?;
    let shown = sandboxes.len().min(most);
    list::table(out, &sandboxes[..shown], SystemClock.timestamp(), false)
}

/// The terminal's other screen, with every key for us.
struct Screen {
    _keys: Raw,
}

impl Screen {
    fn enter() -> Result<Self, TopError> {
        let keys = Raw::enter().map_err(TopError::Terminal)?;
        write!(io::stdout(), "{ENTER}")?;
        Ok(Self { _keys: keys })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(io::stdout(), "{LEAVE}").and_then(|()| io::stdout().flush()); // it has hung up
    }
}
