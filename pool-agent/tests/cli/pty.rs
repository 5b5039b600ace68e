//! A terminal for the program to run on, and somebody who looks at it and presses keys.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Pty {
    ours: File,
    /// Held open, so that what is read does not end with the program.
    theirs: File,
    child: Child,
    seen: Arc<(Mutex<String>, Condvar)>,
}

impl Pty {
    /// Runs the program on a terminal of its own, 100 by 30.
    pub fn run(command: Command) -> Self {
        let ours: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let ours = File::from(ours);
        resize(&ours, 100, 30);
        let stdio = || theirs.try_clone().unwrap();
        // So that the terminal is the program's own, and it hears of the terminal's size.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        session.env("TERM", "xterm").env_remove("NO_COLOR");
        let child = session.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let seen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut reader, shown) = (ours.try_clone().unwrap(), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
                shown.1.notify_all();
            }
        });
        Self { ours, theirs, child, seen }
    }

    /// Waits until it is to be seen; gives all that was shown.
    pub fn until(&self, text: &str) -> String {
        let seen = self.seen.0.lock().unwrap();
        let (seen, waited) = self.seen.1.wait_timeout_while(seen, PATIENCE, |seen| !seen.contains(text)).unwrap();
        assert!(!waited.timed_out(), "{text:?} is not in {seen:?}");
        seen.clone()
    }

    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, width: u16, height: u16) {
        resize(&self.ours, width, height);
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(&self.theirs).unwrap()
    }

    /// How it ended.
    pub fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {:?}", self.seen.0.lock().unwrap());
            thread::yield_now();
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, width: u16, height: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
