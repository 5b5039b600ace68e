//! An OCI process's capabilities as gVisor takes them: five bit masks. Source: capabilities(7), gVisor
//! `pkg/sentry/kernel/auth.TaskCapabilities`.

use serde::{Deserialize, Serialize};

/// By number, as in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// runsc withholds it from every container unless started with `--net-raw`; an exec must not get more.
pub const WITHHELD: &str = "NET_RAW";

/// As in config.json (`process.capabilities`); a set that is absent is empty.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    inheritable: Vec<String>,
    permitted: Vec<String>,
    ambient: Vec<String>,
}

/// As on the control socket.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Masks {
    permitted_caps: u64,
    inheritable_caps: u64,
    effective_caps: u64,
    bounding_caps: u64,
    ambient_caps: u64,
}

impl Capabilities {
    /// The masks, or the name that is no capability.
    pub fn masks(&self) -> Result<Masks, String> {
        Ok(Masks {
            permitted_caps: mask(&self.permitted)?,
            inheritable_caps: mask(&self.inheritable)?,
            effective_caps: mask(&self.effective)?,
            bounding_caps: mask(&self.bounding)?,
            ambient_caps: mask(&self.ambient)?,
        })
    }
}

/// A capability's number and its name without `CAP_`; `None` for what is no capability.
pub fn known(name: &str) -> Option<(usize, &'static str)> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().copied().enumerate().find(|(_, known)| *known == short)
}

fn mask(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(0, |mask, name| {
        let (bit, short) = known(name).ok_or_else(|| name.clone())?;
        Ok(if short == WITHHELD { mask } else { mask | 1 << bit })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_gets_what_its_spec_names_and_never_raw_sockets() {
        let given = r#"{"bounding":["CAP_CHOWN","CAP_NET_RAW","CAP_CHECKPOINT_RESTORE"],"effective":["CAP_KILL"]}"#;
        let masks = serde_json::from_str::<Capabilities>(given).unwrap().masks().unwrap();
        assert_eq!((masks.bounding_caps, masks.effective_caps, masks.permitted_caps), (1 | 1 << 40, 1 << 5, 0));
        assert_eq!(
            Capabilities { ambient: vec!["CAP_FLY".into()], ..Default::default() }.masks(),
            Err("CAP_FLY".into())
        );
    }
}
