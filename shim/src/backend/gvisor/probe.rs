//! What a build of runsc can do, asked once per build and remembered on disk: asking costs a process, and every shim
//! would pay it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{paths, program_digest};

/// Flags that older builds do not know, each with what is lost without it.
const OPTIONAL: [(&str, &str); 2] = [
    ("allow-suid", "set-uid bits of the image have no effect"),
    ("oci-seccomp", "the spec's seccomp profile has no effect inside the sandbox"),
];

/// A build's optional flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(Vec<&'static str>);

impl Features {
    /// Of a runsc, looked up in PATH if it is a bare name; none where there is no runsc, which Create will say. `memory`
    /// is a directory for what was learnt. The first time it waits for a process, without letting the reaper run.
    pub fn probe(program: &Path, memory: &Path) -> Self {
        let Some(runsc) = paths::in_path(program) else { return Self::default() };
        let remembered = memory.join(format!("runsc-{}.flags", program_digest::build(&runsc)));
        if let Ok(text) = fs::read_to_string(&remembered) {
            return Self::known(&text);
        }
        let asked = Command::new(&runsc).arg("flags").stdin(Stdio::null()).output();
        // Go's flag package lists on stderr.
        let all = asked.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        let text = String::from_utf8_lossy(&all);
        let features = Self::known(&text);
        for (flag, lost) in OPTIONAL {
            if !features.0.contains(&flag) {
                tracing::warn!(runsc = %runsc.display(), flag, lost, "this build of runsc lacks a flag");
            }
        }
        let known: String = features.0.iter().map(|flag| format!("-{flag}\n")).collect();
        if program_digest::keep(&remembered, &known).is_err() {
            tracing::debug!("what was learnt of runsc could not be kept");
        }
        features
    }

    /// Reads the list that `runsc flags` prints, a flag at the beginning of a line.
    fn known(text: &str) -> Self {
        let mut words =
            text.lines().filter_map(|line| line.trim_start().strip_prefix('-')?.split([' ', '\t', '=']).next());
        let all: Vec<_> = words.by_ref().map(|word| word.trim_start_matches('-').to_owned()).collect();
        Self(OPTIONAL.iter().map(|(flag, _)| *flag).filter(|flag| all.iter().any(|known| known == flag)).collect())
    }

    /// The flags as arguments.
    pub fn args(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|flag| format!("--{flag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_that_the_build_lists_are_used() {
        let new = "  -allow-suid\n\tallow set-uid\n  -oci-seccomp\n  -overlay2 value\n";
        assert_eq!(Features::known(new).args().collect::<Vec<_>>(), ["--allow-suid", "--oci-seccomp"]);
        let old = "  -oci-seccomp\n  the text names -allow-suid in passing\n";
        assert_eq!(Features::known(old).args().collect::<Vec<_>>(), ["--oci-seccomp"]);
        assert_eq!(Features::known(""), Features::default());
    }
}
