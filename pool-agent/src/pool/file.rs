//! A pool as its file in pools.d says: `NAME.toml`. An error names the file, the key and what to give instead. Each file stands for itself:
//! a bad one hides no other. Not here: when the directory is read, and what becomes of pools whose file is gone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trust::clock::Timestamp;
use trust::id::PoolName;

use super::template::{AutoScaling, Mode, Origin, Pool, Probe, Readiness, Scaling, Template};
use crate::image::ImageRef;
use crate::labels::Labels;
use crate::quantity::{Cpus, Memory};
use crate::spec::{AbsolutePath, Backend, NetworkPolicy, ResourceLimits, SandboxSpec, SecretRef, User};
use crate::spec::{environment, secrets, words};

/// What a pool's file ends in.
const EXTENSION: &str = "toml";
/// No pool's file is larger, in bytes.
const LARGEST: usize = 1 << 20;

/// A pool as its file says.
#[derive(Clone, Debug, PartialEq)]
pub struct FilePool {
    /// The file's name.
    pub name: PoolName,
    /// What its members are made of.
    pub template: Template,
    /// How many there should be.
    pub scaling: Scaling,
}

/// A file that says no pool.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct BadFile {
    /// The file.
    pub path: PathBuf,
    /// The key, what is wrong with it and what to give.
    pub why: String,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Directory {
    /// By name.
    pub pools: Vec<FilePool>,
    /// What could not be read: whoever had such a pool keeps it as it was.
    pub bad: Vec<BadFile>,
}

impl FilePool {
    /// A new pool.
    pub fn into_pool(self, now: Timestamp) -> Pool {
        let Self { name, template, scaling } = self;
        Pool { name, template, scaling, draining: false, origin: Origin::File, created_at: now, revision: 0 }
    }

    /// What a file says; its path for its name, and for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, BadFile> {
        let bad = |why: String| BadFile { path: path.to_owned(), why };
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = stem.parse().map_err(|e| bad(format!("the file's name is the pool's: {e}")))?;
        if text.len() > LARGEST {
            return Err(bad("larger than 1 MiB: a pool's file holds one pool".into()));
        }
        let written: Written = toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
        let scaling = Scaling {
            min_ready: written.min_ready,
            max_ready: written.max_ready,
            max_age: written.max_age,
            auto_scaling: written.auto_scaling.into(),
            max_warming: written.max_warming.unwrap_or(Scaling::MAX_WARMING),
        };
        let scaling = scaling.checked().map_err(|e| bad(e.to_string()))?;
        let template = written.template().and_then(|template| template.checked().map_err(|e| e.to_string()));
        Ok(Self { name, template: template.map_err(bad)?, scaling })
    }
}

/// All pools of a directory; of one that is not there none.
pub fn read(directory: &Path) -> io::Result<Directory> {
    let mut found = Directory::default();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        match fs::read_to_string(&path) {
            Err(error) => found.bad.push(BadFile { path, why: error.to_string() }),
            Ok(text) => match FilePool::parse(&path, &text) {
                Ok(pool) => found.pools.push(pool),
                Err(bad) => found.bad.push(bad),
            },
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    image: ImageRef,
    #[serde(default)]
    backend: Backend,
    runsc_path: Option<AbsolutePath>,
    #[serde(default)]
    mode: Mode,
    #[serde(default, deserialize_with = "words")]
    command: Vec<String>,
    cwd: Option<AbsolutePath>,
    user: Option<User>,
    #[serde(default = "yes")]
    network: bool,
    network_policy: Option<NetworkPolicy>,
    #[serde(default, deserialize_with = "secrets")]
    secrets: Vec<SecretRef>,
    #[serde(default, with = "crate::span::option")]
    ttl: Option<Duration>,
    #[serde(default, with = "crate::span::option")]
    idle_timeout: Option<Duration>,
    #[serde(default, with = "crate::span::option")]
    max_lifetime: Option<Duration>,
    min_ready: u32,
    max_ready: u32,
    #[serde(default, with = "crate::span::option")]
    max_age: Option<Duration>,
    max_warming: Option<u32>,
    #[serde(default)]
    auto_scaling: WrittenAutoScaling,
    #[serde(default)]
    resources: WrittenResources,
    #[serde(default, deserialize_with = "environment")]
    env: BTreeMap<String, String>,
    #[serde(default)]
    labels: Labels,
    readiness: Option<WrittenReadiness>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAutoScaling {
    #[serde(default)]
    enabled: bool,
    headroom: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenResources {
    memory: Option<Memory>,
    cpus: Option<Cpus>,
    pids: Option<NonZeroU32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReadiness {
    #[serde(default, deserialize_with = "words")]
    exec: Vec<String>,
    tcp: Option<NonZeroU16>,
    file: Option<AbsolutePath>,
    #[serde(default, with = "crate::span::option")]
    interval: Option<Duration>,
    #[serde(default, with = "crate::span::option")]
    timeout: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    deadline: Option<Duration>,
}

fn yes() -> bool {
    true
}

impl From<WrittenAutoScaling> for AutoScaling {
    fn from(written: WrittenAutoScaling) -> Self {
        let default = Self::default();
        Self { enabled: written.enabled, headroom: written.headroom.unwrap_or(default.headroom) }
    }
}

impl Written {
    fn template(self) -> Result<Template, String> {
        let WrittenResources { memory, cpus, pids } = self.resources;
        let spec = SandboxSpec {
            backend: self.backend,
            runsc_path: self.runsc_path,
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            network_policy: self.network_policy,
            resource_limits: ResourceLimits { memory_bytes: memory, cpu_millis: cpus, pids },
            secrets: self.secrets,
            labels: self.labels,
            network: self.network,
            ttl: self.ttl,
            idle_timeout: self.idle_timeout,
            max_lifetime: self.max_lifetime,
            ..SandboxSpec::of(self.image)
        };
        let readiness = self.readiness.map(WrittenReadiness::read).transpose()?;
        Ok(Template { spec, mode: self.mode, readiness })
    }
}

impl WrittenReadiness {
    fn read(self) -> Result<Readiness, String> {
        let exec = Some(self.exec).filter(|exec| !exec.is_empty()).map(Probe::Exec);
        let mut probes = [exec, self.tcp.map(Probe::Tcp), self.file.map(Probe::File)].into_iter().flatten();
        let (Some(probe), None) = (probes.next(), probes.next()) else {
            return Err("readiness: give one of exec, tcp and file".into());
        };
        let readiness = Readiness::of(probe);
        let interval = self.interval.unwrap_or(readiness.interval);
        let timeout = self.timeout.unwrap_or(readiness.timeout);
        let deadline = self.deadline.unwrap_or(readiness.deadline);
        Ok(Readiness { interval, timeout, deadline, ..readiness })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../configs/pools.d/agent-executor-pool.toml.example");

    fn parse(text: &str) -> Result<FilePool, BadFile> {
        FilePool::parse(Path::new("/etc/creto/pools.d/agent-executor-pool.toml"), text)
    }

    #[test]
    fn the_example_is_read() {
        let pool = parse(EXAMPLE).unwrap();
        assert_eq!(pool.name.to_string(), "agent-executor-pool");
        assert_eq!((pool.scaling.min_ready, pool.scaling.max_ready), (3, 20));
        assert_eq!(pool.scaling.auto_scaling, AutoScaling { enabled: true, headroom: 1.5 });
        assert_eq!(pool.scaling.max_age, Some(Duration::from_secs(2700)));
        let spec = &pool.template.spec;
        assert_eq!(spec.resource_limits.memory_bytes.unwrap().to_string(), "512Mi");
        assert_eq!(spec.labels.get("team"), Some("research"));
        assert_eq!(pool.into_pool(Timestamp::from_unix(0)).origin, Origin::File);
    }

    #[test]
    fn the_example_names_every_key_there_is_and_says_something_of_it() {
        // What is commented out is given, too; of the three probes one.
        let given: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.contains(" = ") && !key.contains(": ") => format!("{key}\n"),
                Some("[readiness]") => "[readiness]\n".into(),
                _ => format!("{line}\n"),
            })
            .filter(|line| !line.starts_with("tcp") && !line.starts_with("file"))
            .collect::<String>()
            .replace("mode = \"hold\"", "mode = \"run\"");
        let pool = parse(&given).unwrap();
        assert_eq!(pool.template.readiness.unwrap().probe, Probe::Exec(vec!["/bin/healthy".into()]));
        assert!(pool.template.spec.runsc_path.is_some());
        let unknown = parse("image = \"a\"\nmin_ready = 1\nmax_ready = 1\ncolour = 1").unwrap_err().why;
        let keys: Vec<_> = unknown.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 20, "{unknown}");
        for key in keys {
            assert!(
                EXAMPLE.contains(&format!("{key} = ")) || EXAMPLE.contains(&format!("[{key}]")),
                "{key} is missing"
            );
        }
    }

    #[test]
    fn little_is_enough() {
        let pool = parse("image = \"python:3.11\"\nmin_ready = 1\nmax_ready = 2").unwrap();
        let spec = SandboxSpec::of("python:3.11".parse().unwrap());
        assert_eq!(pool.template, Template { spec, mode: Mode::Hold, readiness: None });
        assert_eq!(pool.scaling, Scaling::fixed(1, 2).unwrap());
    }

    #[test]
    fn an_error_names_the_file_the_key_and_what_to_give() {
        let least = "image = \"a\"\nmin_ready = 1\nmax_ready = 2\n";
        for (text, why) in [
            ("min_ready = 1\nmax_ready = 2", &["missing field `image`"][..]),
            ("image = \"Python\"\nmin_ready = 1\nmax_ready = 2", &["line 1", "image", "lower case"]),
            ("image = \"a\"\nmin_ready = 3\nmax_ready = 2", &["min_ready 3", "max_ready 2", "raise"]),
            (&format!("{least}max_age = \"1s\""), &["max_age", "10s"]),
            (&format!("{least}max_age = \"soon\""), &["line 4", "max_age"]),
            (&format!("{least}backend = \"runc\""), &["line 4", "backend", "gvisor"]),
            (&format!("{least}[resources]\nmemory = \"12\""), &["line 5", "memory", "16Mi"]),
            (&format!("{least}[auto_scaling]\nheadroom = -1.0"), &["auto_scaling.headroom", "0 to 1000"]),
            (&format!("{least}colour = \"red\""), &["line 4", "colour", "unknown field"]),
            (&format!("{least}network_policy = {{ rules = 1 }}"), &["network_policy", "rules"]),
            (&format!("{least}mode = \"run\"\n[readiness]\ntcp = 80\nfile = \"/a\""), &["readiness", "one of"]),
            (&format!("{least}[readiness]\ntcp = 80"), &["readiness", "mode", "run"]),
            (&format!("{least}mode = \"run\"\n[readiness]\ntcp = 80\ninterval = \"1ms\""), &["interval", "10ms"]),
            (&format!("{least}mode = \"run\"\n[readiness]\ntcp = 80\ndeadline = \"0s\""), &["readiness.deadline"]),
            (&format!("{least}backend = \"kata\"\nrunsc_path = \"/a\""), &["runsc_path", "gvisor"]),
            ("image =", &["line 1"]),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with("/etc/creto/pools.d/agent-executor-pool.toml: "), "{error}");
            for part in why {
                assert!(error.contains(part), "{part:?} is not in: {error}");
            }
        }
        let error = FilePool::parse(Path::new("/p/a b.toml"), least).unwrap_err().to_string();
        assert!(error.contains("the file's name is the pool's"), "{error}");
    }

    #[test]
    fn a_bad_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("not-there")).unwrap().pools.is_empty());
        let least = "image = \"a\"\nmin_ready = 1\nmax_ready = 2";
        for (name, text) in
            [("b.toml", least), ("a.toml", least), ("c.toml", "["), (".d.toml", "["), ("e.toml.bak", "[")]
        {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let found = read(dir.path()).unwrap();
        let names: Vec<_> = found.pools.iter().map(|pool| pool.name.to_string()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found.bad.iter().map(|bad| bad.path.clone()).collect::<Vec<_>>(), [dir.path().join("c.toml")]);
    }
}
