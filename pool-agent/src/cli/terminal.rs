//! The terminal that people sit at: whether there is one, how large it is, and handing every key to somebody else.

use std::env;
use std::io::{self, IsTerminal, Write};

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
}

impl Progress {
    /// Nothing is said yet.
    pub fn begin() -> Self {
        Self { shown: is_stderr() }
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// Instead of what was said before.
    pub fn say(&self, line: &str) {
        if self.shown {
            let width = size().map_or(80, |size| usize::from(size.width)).saturating_sub(1);
            let line: String = line.chars().take(width).collect();
            let _ = write!(io::stderr(), "\r\u{1b}[K{line}"); // nobody needs it
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}
