//! Where the real parts are. A part that is missing fails the test with the command that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::etcd::Version;

/// A containerd that `scripts/setup` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Containerd {
    /// Debian 12's.
    V1_6,
    /// The last of the 1.x line.
    V1_7,
    /// The newest.
    #[default]
    V2_4,
}

impl Containerd {
    /// The directory of its programs.
    pub fn bin(self) -> PathBuf {
        let part = match self {
            Self::V1_6 => "containerd-1.6",
            Self::V1_7 => "containerd-1.7",
            Self::V2_4 => "containerd-2",
        };
        part_dir(part).join("bin")
    }
}

/// A runsc that `scripts/setup` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Runsc {
    /// Debian's of July 2024.
    Y2024,
    /// The newest.
    #[default]
    Y2026,
}

impl Runsc {
    /// The directory of `runsc`.
    pub fn bin(self) -> PathBuf {
        let part = match self {
            Self::Y2024 => "runsc-2024",
            Self::Y2026 => "runsc",
        };
        part_dir(part).join("bin")
    }
}

/// The program of a runsc in which a method of the control socket has another name on both of its ends: it gets along
/// with itself, and to whoever calls the method by its own name it says what any build says of a method that it lacks.
pub fn renamed(runsc: Runsc, [from, to]: [&str; 2]) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "Go finds names by their place and length");
    let mut program = std::fs::read(runsc.bin().join("runsc")).unwrap();
    let (mut at, mut places) = (0, 0);
    while let Some(found) = find(&program[at..], from.as_bytes()) {
        program[at + found..][..to.len()].copy_from_slice(to.as_bytes());
        at += found + to.len();
        places += 1;
    }
    assert!(places > 1, "{from} is in runsc {places} times");
    program
}

/// The bytes of a program are many: by their first one, then the rest.
fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == part[0])?;
        if bytes[at..].starts_with(part) {
            return Some(at);
        }
        at += 1;
    }
}

/// The busybox that the test image is made of.
pub fn busybox() -> PathBuf {
    part_dir("busybox").join("bin/busybox")
}

/// An OCI archive of an image of Debian's Python.
pub fn python() -> PathBuf {
    part_dir("python").join("python.tar")
}

/// An etcd: the system's, or one beside it.
pub fn etcd(version: Version) -> PathBuf {
    match version {
        Version::V3_4 => {
            let found =
                ["/usr/bin/etcd", "/usr/local/bin/etcd"].map(PathBuf::from).into_iter().find(|path| path.exists());
            found.expect("etcd is not installed: run scripts/setup system")
        }
        Version::V3_7 => part_dir("etcd-3.7").join("bin/etcd"),
    }
}

/// The distribution project's registry.
pub fn registry() -> PathBuf {
    part_dir("registry").join("bin/docker-registry")
}

/// OpenTelemetry's collector, with an OTLP receiver and an exporter that writes what comes.
pub fn otelcol() -> PathBuf {
    part_dir("otelcol").join("bin/otelcol")
}

/// sigstore's verifier.
pub fn cosign() -> PathBuf {
    part_dir("cosign").join("bin/cosign")
}

/// Python's libraries that verify: securesystemslib (DSSE), PyJWT, cryptography.
pub fn verifiers() -> PathBuf {
    part_dir("verifiers").join("lib")
}

/// Prometheus' Python library, with its parser of OpenMetrics.
pub fn openmetrics() -> PathBuf {
    part_dir("openmetrics").join("lib")
}

/// What asks an API by its description: Python's libraries, schemathesis among them.
pub fn schemathesis() -> PathBuf {
    part_dir("schemathesis").join("lib")
}

/// gVisor's own shim, which only benchmarks need.
pub fn gvisor_shim() -> Option<PathBuf> {
    let dir = part_place("gvisor-shim");
    dir.join(".complete").exists().then(|| dir.join("bin/containerd-shim-runsc-v1"))
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// Where `scripts/setup` has put a part.
fn part_dir(part: &str) -> PathBuf {
    let dir = part_place(part);
    assert!(dir.join(".complete").exists(), "{part} is not installed: run scripts/setup {part}");
    dir
}

/// Where it puts it, whether or not it has.
fn part_place(part: &str) -> PathBuf {
    let setup = workspace().join("scripts/setup");
    let asked = Command::new(&setup).args(["--path", part]).output();
    let asked = asked.unwrap_or_else(|error| panic!("running {}: {error}", setup.display()));
    PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim())
}

/// The directory of the shim under test.
pub fn shim_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        built("containerd-shim-creto-v2", &["--release"]).parent().expect("a program lies in a directory").to_owned()
    })
}

/// The client under test.
pub fn cli() -> &'static Path {
    static CLI: OnceLock<PathBuf> = OnceLock::new();
    CLI.get_or_init(|| built("creto-runtime", &["--profile", "daemon", "--bin", "creto-runtime-cli"]))
}

/// The node agent under test.
pub fn pool_agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| built("creto-runtime", &["--profile", "daemon", "--bin", "creto-pool-agent"]))
}

/// The daemon under test.
pub fn egress() -> &'static Path {
    static EGRESS: OnceLock<PathBuf> = OnceLock::new();
    EGRESS.get_or_init(|| built("creto-egress", &["--profile", "daemon", "--features", "daemon"]))
}

/// The holder under test.
pub fn hold() -> &'static Path {
    static HOLD: OnceLock<PathBuf> = OnceLock::new();
    HOLD.get_or_init(|| {
        built_by("rustc", "creto-hold", &["--release", "--bin", "creto-hold", "--", "-C", "target-feature=+crt-static"])
    })
}

/// Without what cargo tells a test about its package: ring's build script is run again where that has changed, and with it
/// everything is built again that a user has built.
pub fn as_from_a_shell(command: &mut Command) {
    let of_package = |key: &str| key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_");
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_str().is_some_and(of_package)) {
        command.env_remove(key);
    }
}

/// The program of a package. Built for users, alone, as users get it: cargo merges the features of what it builds
/// together. Where nothing has changed this costs cargo's look at the clock.
fn built(package: &str, how: &[&str]) -> PathBuf {
    built_by("build", package, how)
}

fn built_by(command: &str, package: &str, how: &[&str]) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args([command, "--locked", "--message-format=json-render-diagnostics"]);
    build.args(["-p", package]).args(how).current_dir(workspace());
    as_from_a_shell(&mut build);
    let built = build.output().unwrap_or_else(|error| panic!("starting {build:?}: {error}"));
    assert!(built.status.success(), "{build:?}: {}", String::from_utf8_lossy(&built.stderr));
    let program = String::from_utf8_lossy(&built.stdout).lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    program.unwrap_or_else(|| panic!("cargo names no program of {package}"))
}
