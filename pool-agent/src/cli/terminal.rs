//! The terminal that people sit at: whether there is one, how large it is, and handing every key to somebody else.

use std::env;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::{self, OptionalActions, Termios};

use crate::channels::Size;

/// Whether answers are read by people rather than programs.
pub fn is_stdout() -> bool {
    io::stdout().is_terminal()
}

/// Whether somebody can be told meanwhile how it goes.
pub fn is_stderr() -> bool {
    io::stderr().is_terminal()
}

/// Whether keys come from one.
pub fn is_stdin() -> bool {
    io::stdin().is_terminal()
}

/// Whether colours are wanted (no-color.org).
pub fn has_colour() -> bool {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    is_stdout() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// The size of the one that stdout is; it can be stdin's while stdout is a pipe.
pub fn size() -> Option<Size> {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())).ok()?;
    let size = Size { width: size.ws_col, height: size.ws_row };
    (size.width > 0 && size.height > 0).then_some(size)
}

/// Every key is passed on as it is, ^C too, and nothing is echoed, until this is dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// From now on.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before); // it has hung up
    }
}

/// One line on stderr that says how it goes, where people see it; gone when this is dropped.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    pull: Option<ProgressBar>,
}

impl Progress {
    /// Nothing is said yet.
    pub fn begin() -> Self {
        Self { shown: is_stderr(), pull: None }
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// Instead of what was said before.
    pub fn say(&self, line: &str) {
        if self.shown && self.pull.is_none() {
            let width = size().map_or(80, |size| usize::from(size.width)).saturating_sub(1);
            let line: String = line.chars().take(width).collect();
            let _ = write!(io::stderr(), "\r\u{1b}[K{line}"); // nobody needs it
        }
    }
}

impl Progress {
    /// A bar, instead, while something is pulled.
    pub fn pulled(&mut self, what: &str, bytes: u64, total: u64) {
        if !self.shown {
            return;
        }
        let bar = self.pull.get_or_insert_with(|| {
            let _ = write!(io::stderr(), "\r\u{1b}[K"); // nobody needs it
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_message(what.to_owned());
        bar.set_length(total);
        bar.set_position(bytes);
        if bytes >= total {
            bar.finish_and_clear(); // it is unpacked now
            self.pull = None;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.pull {
            bar.finish_and_clear();
        }
        if self.shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}
