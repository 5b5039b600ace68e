//! The host's processes, found by what they were told: a killed shim leaves no list of what it had started.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The pids of those with this flag, in any number of dashes but none, and this path as its value in the next word.
pub fn told(flag: &str, value: &Path) -> Vec<i32> {
    let (flag, value) = (format!("-{flag}"), value.as_os_str().as_bytes());
    whose_words(|words| words.windows(2).any(|pair| pair[0].ends_with(flag.as_bytes()) && pair[1] == value))
}

/// The pids of those with this flag, in two dashes, and this path in one word.
pub fn told_in_one_word(flag: &str, value: &Path) -> Vec<i32> {
    let word = [format!("--{flag}=").as_bytes(), value.as_os_str().as_bytes()].concat();
    whose_words(|words| words.contains(&word.as_slice()))
}

fn whose_words(are: impl Fn(&[&[u8]]) -> bool) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let was_told = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        are(&line.split(|byte| *byte == 0).collect::<Vec<_>>())
    };
    pids.filter(was_told).collect()
}
