//! What a test can switch, and what makes Create fail before anything is started. A ConfigPath names a TOML file, as
//! with Kata; where the task's options name none, the variable `CRETO_E2E_KATA_CONFIG` may.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::CodedInputStream;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{self, Code};
use serde::Deserialize;

/// The file; each key has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often each event is sent.
    pub events: Copies,
    /// Whether start, exec-started and a fast exit are told before the reply to Start.
    pub order: Order,
    /// What the machine lacks.
    pub hypervisor: Hypervisor,
    /// The machine has /dev/log.
    pub syslog: bool,
}

/// How often each event is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copies {
    None,
    #[default]
    Normal,
    Doubled,
}

/// Which comes first at Start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// In turn; whose turn is first depends on the sandbox's id.
    #[default]
    InTurn,
    /// An exit that comes within two seconds, too.
    EventFirst,
    ReplyFirst,
}

/// What is wrong with the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    #[default]
    Works,
    Missing,
    NoVsock,
    EndsAtOnce,
}

impl Default for Config {
    fn default() -> Self {
        let (events, order, hypervisor) = Default::default();
        Self { events, order, hypervisor, syslog: true }
    }
}

impl Config {
    /// Reads the file that Create's options name. runc's options are ignored (§2).
    pub fn of(options: Option<&Any>) -> ttrpc::Result<Self> {
        let named = options.filter(|any| any.type_url.ends_with("runtimeoptions.v1.Options"));
        let named = named.and_then(|any| config_path(&any.value)).map(PathBuf::from);
        let Some(path) = named.or_else(|| std::env::var_os("CRETO_E2E_KATA_CONFIG").map(PathBuf::from)) else {
            return Ok(Self::default());
        };
        // §1
        let unusable = |why: String| get_rpc_status(Code::NOT_FOUND, format!("Cannot find usable config file ({why})"));
        let text =
            fs::read_to_string(&path).map_err(|_| unusable(format!("file {} does not exist", path.display())))?;
        toml::from_str(&text).map_err(|error| get_rpc_status(Code::UNKNOWN, format!("{}: {error}", path.display())))
    }

    /// §1: what the real shim looks for, in its order.
    pub fn check(&self) -> ttrpc::Result<()> {
        let (code, text) = match (self.syslog, self.hypervisor) {
            (false, _) => (Code::UNKNOWN, "Unix syslog delivery error"),
            (_, Hypervisor::Works) => return Ok(()),
            (_, Hypervisor::Missing) => (Code::NOT_FOUND, "CONFIG: file /usr/bin/qemu-system-x86_64 does not exist"),
            (_, Hypervisor::NoVsock) => (
                Code::UNKNOWN,
                "CONFIG: host system doesn't support vsock: stat /dev/vhost-vsock: no such file or directory",
            ),
            (_, Hypervisor::EndsAtOnce) => (Code::UNKNOWN, "failed to launch cloud-hypervisor: \"CLH is not running\""),
        };
        Err(get_rpc_status(code, text))
    }
}

/// The field `config_path` of containerd's `runtimeoptions.v1.Options`, where it is set.
fn config_path(options: &[u8]) -> Option<String> {
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    let mut stream = CodedInputStream::from_bytes(options);
    let mut path = None;
    while let Ok(Some(tag)) = stream.read_raw_tag_or_eof() {
        let bytes = stream.read_bytes().ok()?; // all its fields are strings or bytes
        if tag == CONFIG_PATH {
            path = String::from_utf8(bytes).ok().filter(|path| !path.is_empty());
        }
    }
    path
}

/// The sandbox that a container belongs to, by the annotation of CRI; `None` where it is one of its own.
pub fn sandbox_of(config: &Path) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(config).ok()?).ok()?;
    Some(spec["annotations"]["io.kubernetes.cri.sandbox-id"].as_str()?.to_owned())
}
