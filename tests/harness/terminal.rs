//! A terminal with a program on it, for `ctr run --tty`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::pty::openpty;

use super::poll;
use super::process::{Finished, Running};

/// The user's side of a terminal on which a program runs.
pub struct Terminal {
    program: Running,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    device: OwnedFd,
}

impl Terminal {
    /// Runs `command` as the leader of a session on a new terminal of 80 by 24.
    #[track_caller]
    pub fn run(command: &Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let (keyboard, mut reader) = (File::from(pty.master.try_clone().unwrap()), File::from(pty.master));
        // setsid makes it the controlling terminal: that is how a resize is heard of.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        let fd = || pty.slave.try_clone().unwrap();
        session.stdin(fd()).stdout(fd()).stderr(fd());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let sink = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        let mut terminal = Self { program: Running::start_as_is(session), keyboard, screen, device: pty.slave };
        terminal.resize(24, 80);
        terminal
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the window's size, as a terminal emulator does.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows, "columns", &columns]).stdin(self.device.as_fd().try_clone_to_owned().unwrap());
        assert!(stty.status().unwrap().success());
    }

    /// All that was shown.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until `text` is shown.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        assert!(poll(|| self.shown().contains(text).then_some(())).is_some(), "no {text:?} on: {:?}", self.shown());
    }

    /// Waits for the program's end; also what was shown.
    #[track_caller]
    pub fn finish(self) -> (Finished, String) {
        let Self { program, keyboard, screen, device } = self;
        let finished = program.finish();
        drop((keyboard, device));
        let shown = String::from_utf8_lossy(&screen.lock().unwrap()).into_owned();
        (finished, shown)
    }
}
