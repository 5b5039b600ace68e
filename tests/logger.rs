//! A logging program for `binary://`, as nerdctl's is one: reads the output on descriptors 3 and 4, says on 5 that it
//! is ready, and notes in the directory given by the argument `dir` what it was given and when it ended.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;

fn main() -> std::io::Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let dir = match args.as_slice() {
        [.., key, dir] if key == "dir" => PathBuf::from(dir),
        _ => return Err(std::io::Error::other("usage: creto-e2e-logger [KEY VALUE …] dir DIR")),
    };
    // The descriptors are opened by name: taking them by number would need unsafe code.
    let (mut out, mut err) = (File::open("/proc/self/fd/3")?, File::open("/proc/self/fd/4")?);
    let mut ready = File::options().write(true).open("/proc/self/fd/5")?;
    let name = |key| std::env::var(key).unwrap_or_default();
    let identity = format!("{} {}", name("CONTAINER_NAMESPACE"), name("CONTAINER_ID"));
    fs::write(dir.join("identity"), identity)?;
    fs::write(dir.join("args"), args.join(&OsString::from(" ")).as_encoded_bytes())?;
    let (out_path, err_path) = (dir.join("stdout"), dir.join("stderr"));
    let stdout = thread::spawn(move || std::io::copy(&mut out, &mut File::create(out_path)?));
    let stderr = thread::spawn(move || std::io::copy(&mut err, &mut File::create(err_path)?));
    ready.write_all(b"\0")?;
    let ended = |copied: thread::JoinHandle<_>| copied.join().unwrap_or_else(|_| Err(std::io::Error::other("panic")));
    let (out_bytes, err_bytes) = (ended(stdout)?, ended(stderr)?);
    fs::write(dir.join("ended"), format!("{out_bytes} {err_bytes}"))
}
