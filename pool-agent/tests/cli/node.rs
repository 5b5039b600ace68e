//! A node in a directory of its own, and the program run on it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use trust::attestation::predicate::{
    Agent, Backend, Fence, Hardening, Image, Launch, Limits as CgroupLimits, Mounts, Node as AttestedNode, Sandbox,
};
use trust::attestation::{self, Observed};
use trust::audit::{About, Audit, Event, Limits, Spool};
use trust::clock::{Clock, SystemClock, Timestamp};
use trust::digest::Digest;
use trust::keys::Keyring;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const AGENT: &str = "spiffe://example.org/agents/research";

pub struct Node {
    root: TempDir,
}

/// What the program did.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its answer; it must have succeeded.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Its answer as JSON; it must have succeeded.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// Its complaint; it must have failed with this code.
    pub fn bad(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self.err
    }
}

impl Node {
    /// A node called `node-1`.
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/runtime.toml"), "backend = \"gvisor\"\n[identity]\nnode = \"node-1\"\n")
            .unwrap();
        Self { root }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_creto-runtime-cli"));
        command.arg("--root").arg(self.root.path()).args(line).env_remove("CRETO_ROOT");
        command
    }

    pub fn run(&self, line: &[&str]) -> Ran {
        Ran::of(self.command(line).stdin(Stdio::null()).output().unwrap())
    }

    pub fn keyring(&self) -> Keyring {
        Keyring::open(&self.path("lib"), &SystemClock).unwrap()
    }

    /// Keeps a statement about a sandbox, as the shim does; issued at `at` for an hour. Gives its digest.
    pub fn attest(&self, namespace: &str, id: &str, number: u32, previous: Option<Digest>, at: Timestamp) -> Digest {
        let observed = Observed {
            config: Digest::of(b"config"),
            policy: Digest::of(b"policy"),
            sandbox: Sandbox { id: id.parse().unwrap(), namespace: namespace.parse().unwrap() },
            agent: Agent::Operator { id: AGENT.parse().unwrap() },
            backend: Backend {
                name: "gvisor".parse().unwrap(),
                binary: Digest::of(b"runsc"),
                platform: "systrap".into(),
            },
            node: AttestedNode {
                id: "node-1".parse().unwrap(),
                boot_id: "0b5c5d5e-1111-4222-8333-123456789abc".parse().unwrap(),
                kernel: "6.1.0 #1".into(),
            },
            fence: Some(Fence { mechanism: "sealed".into(), digest: Digest::of(b"lo") }),
            hardening: Hardening {
                capabilities: Vec::new(),
                no_new_privileges: true,
                seccomp: false,
                masked_paths: 9,
                readonly_paths: 5,
                mounts: Mounts { readonly_root: true, total: 7, host: 1, host_writable: 0 },
                limits: CgroupLimits::default(),
            },
            image: Image::Unknown {},
            launch: Launch::Cold {},
        };
        let envelope = attestation::issue(observed, previous, &self.keyring().signer().unwrap(), at, HOUR).unwrap();
        let dir = self.path("lib/attestations").join(namespace).join(id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{number:08}.dsse.json")), envelope.to_json().unwrap()).unwrap();
        envelope.statement_digest()
    }

    /// Records what the shim records; it waits in the spool.
    pub fn record(&self, sandbox: &str, events: Vec<Event>) {
        self.keyring(); // the shim opens its keys first
        let spool = Spool::new(&self.path("lib/spool"), "shim", "node-1", Limits::default()).unwrap();
        let about = About {
            namespace: Some("default".into()),
            sandbox: Some(sandbox.into()),
            agent: Some(AGENT.into()),
            backend: Some("gvisor".into()),
        };
        spool.record_all(&about, events);
        assert_eq!(spool.lost(), 0);
    }
}

pub fn now() -> Timestamp {
    SystemClock.timestamp()
}

/// So much before now.
pub fn ago(time: Duration) -> Timestamp {
    Timestamp::from_unix(now().unix() - time.as_secs())
}
