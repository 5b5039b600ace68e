//! What a build of runsc can do, asked once per build and remembered on disk: asking costs a process, and every shim
//! would pay it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::inside::Version;
use crate::harden::Build;
use crate::{paths, program_digest};

/// Flags that older builds do not know, as they are given, each with what is lost without it.
const OPTIONAL: [(&str, &str, &str); 3] = [
    ("allow-suid", "", "set-uid bits of the image have no effect"),
    ("oci-seccomp", "", "the spec's seccomp profile has no effect inside the sandbox"),
    (INSIDE, "=v2", "a limit of processes holds for the sandbox's host tasks alone, which ends it"),
];
const INSIDE: &str = "in-sandbox-cgroup";
/// Under this name they are remembered; another one than before, where the list has changed.
const KEPT: &str = "flags-2";

/// What is remembered of one build of runsc: the same file, unchanged.
#[derive(Clone, Debug)]
pub struct Known {
    /// Where it is; `None` where there is no runsc.
    runsc: Option<PathBuf>,
    /// The beginning of the names of the files in which it is remembered.
    files: PathBuf,
}

impl Known {
    /// Of a runsc, looked up in PATH if it is a bare name. `memory` is a directory.
    pub fn of(program: &Path, memory: &Path) -> Self {
        let runsc = paths::in_path(program);
        let files = memory.join(format!("runsc-{}", runsc.as_deref().map(program_digest::build).unwrap_or_default()));
        Self { runsc, files }
    }

    /// Where it is, for people.
    pub fn runsc(&self) -> String {
        self.runsc.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn file(&self, what: &str) -> PathBuf {
        self.files.with_extension(what)
    }

    /// What was learnt of this; `None` where nothing was yet.
    pub fn recall(&self, what: &str) -> Option<String> {
        fs::read_to_string(self.file(what)).ok()
    }

    /// Remembers.
    pub fn keep(&self, what: &str, text: &str) {
        if self.runsc.is_none() || program_digest::keep(&self.file(what), text).is_err() {
            tracing::debug!(what, "what was learnt of runsc could not be kept");
        }
    }
}

/// A build's optional flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(Vec<&'static str>);

impl Features {
    /// Of a build; none where there is no runsc, which Create will say. The first time it waits for a process, without
    /// letting the reaper run.
    pub fn probe(known: &Known) -> Self {
        let Some(runsc) = &known.runsc else { return Self::default() };
        if let Some(text) = known.recall(KEPT) {
            return Self::known(&text);
        }
        let asked = Command::new(runsc).arg("flags").stdin(Stdio::null()).output();
        let Ok(asked) = asked else { return Self::default() }; // Create will say so
        // Go's flag package lists on stderr.
        let all = [asked.stdout, asked.stderr].concat();
        let text = String::from_utf8_lossy(&all);
        let features = Self::known(&text);
        for (flag, _, lost) in OPTIONAL {
            if !features.0.contains(&flag) {
                tracing::warn!(runsc = %runsc.display(), flag, lost, "this build of runsc lacks a flag");
            }
        }
        known.keep(KEPT, &features.0.iter().map(|flag| format!("-{flag}\n")).collect::<String>());
        features
    }

    /// Reads the list that `runsc flags` prints, a flag at the beginning of a line.
    fn known(text: &str) -> Self {
        let mut words =
            text.lines().filter_map(|line| line.trim_start().strip_prefix('-')?.split([' ', '\t', '=']).next());
        let all: Vec<_> = words.by_ref().map(|word| word.trim_start_matches('-').to_owned()).collect();
        Self(OPTIONAL.iter().map(|(flag, ..)| *flag).filter(|flag| all.iter().any(|known| known == flag)).collect())
    }

    /// What hardening must know of the build. Of its other qualities that `harden::Build` names, none has a flag: they came
    /// with set-uid bits, or before.
    pub fn build(&self) -> Build {
        Build { seccomp: self.0.contains(&"oci-seccomp"), recent: self.0.contains(&"allow-suid") }
    }

    /// Which control groups a sandbox has inside.
    pub fn inside(&self) -> Version {
        if self.0.contains(&INSIDE) { Version::V2 } else { Version::V1 }
    }

    /// The flags as arguments.
    pub fn args(&self) -> impl Iterator<Item = String> {
        let given = OPTIONAL.iter().filter(|(flag, ..)| self.0.contains(flag));
        given.map(|(flag, value, _)| format!("--{flag}{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_one_build_is_not_believed_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let runsc = dir.path().join("runsc");
        fs::write(&runsc, "one").unwrap();
        let known = Known::of(&runsc, dir.path());
        assert_eq!(known.recall("calls"), None);
        known.keep("calls", "socket");
        known.keep("flags", "-x");
        assert_eq!(Known::of(&runsc, dir.path()).recall("calls").as_deref(), Some("socket"));
        fs::write(&runsc, "another").unwrap();
        assert_eq!(Known::of(&runsc, dir.path()).recall("calls"), None);
        let none = Known::of(&dir.path().join("missing"), dir.path());
        none.keep("calls", "socket");
        assert_eq!(none.recall("calls"), None);
    }

    #[test]
    fn only_flags_that_the_build_lists_are_used() {
        let new = "  -allow-suid\n\tallow set-uid\n  -oci-seccomp\n  -overlay2 value\n";
        assert_eq!(Features::known(new).build(), Build::default());
        assert_eq!(Features::known(new).args().collect::<Vec<_>>(), ["--allow-suid", "--oci-seccomp"]);
        let newer = format!("{new}  -in-sandbox-cgroup value\n");
        let args: Vec<_> = Features::known(&newer).args().collect();
        assert_eq!(args, ["--allow-suid", "--oci-seccomp", "--in-sandbox-cgroup=v2"]);
        assert_eq!((Features::known(&newer).inside(), Features::known(new).inside()), (Version::V2, Version::V1));
        let old = "  -oci-seccomp\n  the text names -allow-suid in passing\n";
        assert_eq!(Features::known(old).args().collect::<Vec<_>>(), ["--oci-seccomp"]);
        assert_eq!(Features::known(old).build(), Build { seccomp: true, recent: false });
        assert_eq!(Features::known(""), Features::default());
    }
}
