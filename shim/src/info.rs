//! `-info`: what containerd ≥ 2.2 asks a runtime before it makes tasks. What is announced is a promise (CRI acts on it),
//! so it is what gVisor does and no more. Source: containerd `api/types/introspection.proto`, OCI runtime-spec features.md.

use std::io::Write;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::json;

use crate::harden::seccomp::{ACTIONS, ARCHITECTURES, OPERATORS};

/// The runtime's name, as in `ctr run --runtime`.
pub const NAME: &str = "io.containerd.creto.v2";
/// How containerd names the features' type (`typeurl`), whose value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Options of mounts in config.json that gVisor honours. A read-only mount of it is so with all below, hence `rro`, and the same
/// is true of its other attributes.
const MOUNT_OPTIONS: [&str; 29] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "rnoatime",
    "rnodev",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rro",
    "rrw",
    "rslave",
    "runbindable",
    "rw",
    "slave",
    "suid",
    "unbindable",
];

/// Answers on stdout. What stands on stdin (runtime options) changes nothing and is not read.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    std::io::stdout().write_all(&info().write_to_bytes()?)?;
    Ok(())
}

fn info() -> RuntimeInfo {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true, "actions": ACTIONS, "operators": OPERATORS, "archs": ARCHITECTURES},
            "mountExtensions": {"idmap": {"enabled": true}},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
        },
    });
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let features = Any { type_url: FEATURES.into(), value: features.to_string().into_bytes(), ..Default::default() };
    RuntimeInfo {
        name: NAME.into(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..Default::default()
    }
}
