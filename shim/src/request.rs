//! What one Create asks of us, beside the container itself: annotations over options. Pure but for looking at files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::TaskError;
use crate::options::{Backend, Settings};

const PREFIX: &str = "creto.dev/";
const BACKEND: &str = "creto.dev/backend";
const RUNSC_PATH: &str = "creto.dev/runsc-path";

/// Who makes the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// gVisor, by this runsc; `None` for the one in PATH.
    Gvisor(Option<PathBuf>),
}

/// Reads the annotations of a spec.
pub fn maker(spec: &Value, settings: &Settings) -> Result<Maker, TaskError> {
    let mut backend = settings.backend;
    let mut runsc = settings.gvisor.runsc_path.clone();
    let annotations = spec.get("annotations").and_then(Value::as_object).into_iter().flatten();
    for (key, value) in annotations.filter(|(key, _)| key.starts_with(PREFIX)) {
        let value = value.as_str().unwrap_or_default();
        match key.as_str() {
            BACKEND if value == "gvisor" => backend = Backend::Gvisor,
            BACKEND => {
                let why = format!("annotation {key}: {value:?} is not a backend of this version; allowed: gvisor");
                return Err(TaskError::Invalid(why));
            }
            RUNSC_PATH => runsc = Some(allowed(Path::new(value), &settings.gvisor.runsc_dirs)?),
            _ => {
                let why = format!("annotation {key}: unknown; allowed: {BACKEND}, {RUNSC_PATH}");
                return Err(TaskError::Invalid(why));
            }
        }
    }
    if let Some(path) = &runsc
        && !path.is_file()
    {
        return Err(TaskError::Invalid(format!("runsc {}: there is no such file", path.display())));
    }
    match backend {
        Backend::Gvisor => Ok(Maker::Gvisor(runsc)),
    }
}

/// A path that the operator allows; symbolic links do not lead out.
fn allowed(path: &Path, dirs: &[PathBuf]) -> Result<PathBuf, TaskError> {
    let invalid = |why: String| TaskError::Invalid(format!("annotation {RUNSC_PATH}: {why}"));
    if !path.is_absolute() {
        return Err(invalid(format!("{:?} is no absolute path", path.display().to_string())));
    }
    let within =
        |real: &PathBuf| dirs.iter().filter_map(|dir| dir.canonicalize().ok()).any(|dir| real.starts_with(dir));
    // One answer for what is not there and what is not allowed: the file system is not the pod's to ask about.
    path.canonicalize()
        .ok()
        .filter(within)
        .ok_or_else(|| invalid(format!("{} is in none of gvisor.runsc_dirs of runtime.toml: {dirs:?}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::GvisorSettings;
    use serde_json::json;

    fn ask(key: &str, value: &str, settings: &Settings) -> Result<Maker, String> {
        maker(&json!({"annotations": {key: value, "other": "kept"}}), settings).map_err(|e| e.to_string())
    }

    #[test]
    fn annotations_are_known_and_allowed_or_named() {
        let none = Settings::default();
        assert_eq!(maker(&json!({}), &none).unwrap(), Maker::Gvisor(None));
        assert_eq!(ask(BACKEND, "gvisor", &none).unwrap(), Maker::Gvisor(None));
        for (key, value, expected) in [
            (BACKEND, "qemu", "allowed: gvisor"),
            ("creto.dev/backned", "gvisor", "creto.dev/backned"),
            (RUNSC_PATH, "runsc", "absolute"),
            (RUNSC_PATH, "/bin/sh", "runsc_dirs"),
        ] {
            let error = ask(key, value, &none).unwrap_err();
            assert!(error.contains(expected), "{key}={value}: {error}");
        }
    }

    #[test]
    fn a_canary_comes_from_the_operators_directories_only() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let canary = inside.path().join("runsc");
        std::fs::write(&canary, "").unwrap();
        std::fs::write(outside.path().join("sh"), "").unwrap();
        std::os::unix::fs::symlink(outside.path().join("sh"), inside.path().join("link")).unwrap();
        let gvisor = GvisorSettings { runsc_dirs: vec![inside.path().to_owned()], ..Default::default() };
        let settings = Settings { gvisor, ..Default::default() };
        let path = |name: &str| inside.path().join(name).display().to_string();
        let real = canary.canonicalize().unwrap();
        assert_eq!(ask(RUNSC_PATH, &path("runsc"), &settings).unwrap(), Maker::Gvisor(Some(real)));
        for bad in ["link", "missing", "../../bin/sh"] {
            assert!(ask(RUNSC_PATH, &path(bad), &settings).unwrap_err().contains("runsc_dirs"), "{bad}");
        }
    }
}
