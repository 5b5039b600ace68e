//! `linux.sysctl` in gVisor, whose kernel and network are its own: what runsc sets, what is so anyway, what cannot matter. All
//! else is the operator's choice to refuse or to pass over. Measured: docs/hardening.md.

use serde_json::{Map, Value};

use super::shape::{object, refuse};
use super::{BackendKind, Policy};
use crate::error::TaskError;
use crate::settings::UnsupportedSysctls;

const FIELD: &str = "linux.sysctl";

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// runsc sets it to a number of these.
    Set(u64, u64),
    /// gVisor is so where the value is a number up to this.
    SoUpTo(u64),
    /// gVisor is so whatever is asked for.
    So,
    /// It tunes a queue, a buffer or a timer of Linux' network that gVisor's has not.
    NoMatter,
}

/// gVisor lets everybody serve any port and ping; its System V limits are as large as they get.
const KNOWN: [(&str, Fate); 40] = [
    ("fs.nr_open", Fate::Set(1, i32::MAX as u64)),
    ("net.ipv6.conf.all.disable_ipv6", Fate::Set(0, 1)),
    ("net.ipv4.ip_unprivileged_port_start", Fate::SoUpTo(1024)),
    ("net.ipv4.ping_group_range", Fate::So),
    ("net.ipv4.ip_forward", Fate::SoUpTo(0)),
    ("net.ipv4.conf.all.forwarding", Fate::SoUpTo(0)),
    ("net.ipv6.conf.all.forwarding", Fate::SoUpTo(0)),
    ("net.ipv4.ip_nonlocal_bind", Fate::SoUpTo(0)),
    ("kernel.shm_rmid_forced", Fate::SoUpTo(0)),
    ("kernel.shmmax", Fate::So),
    ("kernel.shmall", Fate::So),
    ("kernel.shmmni", Fate::SoUpTo(4096)),
    ("kernel.msgmax", Fate::SoUpTo(8192)),
    ("kernel.msgmnb", Fate::SoUpTo(16_384)),
    ("kernel.msgmni", Fate::SoUpTo(32_000)),
    ("net.core.netdev_max_backlog", Fate::NoMatter),
    ("net.core.optmem_max", Fate::NoMatter),
    ("net.core.rmem_default", Fate::NoMatter),
    ("net.core.rmem_max", Fate::NoMatter),
    ("net.core.somaxconn", Fate::NoMatter),
    ("net.core.wmem_default", Fate::NoMatter),
    ("net.core.wmem_max", Fate::NoMatter),
    ("net.ipv4.tcp_fin_timeout", Fate::NoMatter),
    ("net.ipv4.tcp_keepalive_intvl", Fate::NoMatter),
    ("net.ipv4.tcp_keepalive_probes", Fate::NoMatter),
    ("net.ipv4.tcp_keepalive_time", Fate::NoMatter),
    ("net.ipv4.tcp_max_syn_backlog", Fate::NoMatter),
    ("net.ipv4.tcp_max_tw_buckets", Fate::NoMatter),
    ("net.ipv4.tcp_mem", Fate::NoMatter),
    ("net.ipv4.tcp_notsent_lowat", Fate::NoMatter),
    ("net.ipv4.tcp_retries2", Fate::NoMatter),
    ("net.ipv4.tcp_rmem", Fate::NoMatter),
    ("net.ipv4.tcp_slow_start_after_idle", Fate::NoMatter),
    ("net.ipv4.tcp_syn_retries", Fate::NoMatter),
    ("net.ipv4.tcp_synack_retries", Fate::NoMatter),
    ("net.ipv4.tcp_syncookies", Fate::NoMatter),
    ("net.ipv4.tcp_tw_reuse", Fate::NoMatter),
    ("net.ipv4.tcp_wmem", Fate::NoMatter),
    ("net.ipv4.udp_rmem_min", Fate::NoMatter),
    ("net.ipv4.udp_wmem_min", Fate::NoMatter),
];

/// In gVisor: those that are set stay in the spec. Elsewhere the kernel says what it can.
pub fn sysctls(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.kind != BackendKind::Gvisor || spec.pointer("/linux/sysctl").is_none_or(Value::is_null) {
        return Ok(());
    }
    let all = object(spec, FIELD)?;
    let mut set = Map::new();
    for (given, value) in std::mem::take(all) {
        let name = given.replace('/', ".");
        let Some(text) = value.as_str() else {
            return Err(refuse(FIELD, format!("{name}: {value} is no text; write it in quotes")));
        };
        let number = text.trim().parse::<u64>().ok();
        let fate = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, fate)| *fate);
        match (fate, number) {
            (Some(Fate::Set(least, most)), Some(number)) if (least..=most).contains(&number) => {
                set.insert(name, number.to_string().into());
            }
            (Some(Fate::Set(least, most)), _) => {
                return Err(refuse(FIELD, format!("{name}: {text:?} is no number from {least} to {most}")));
            }
            (Some(Fate::SoUpTo(most)), Some(number)) if number <= most => {}
            (Some(Fate::So), _) => {}
            (Some(Fate::NoMatter), _) => tracing::info!(sysctl = name, "tunes what gVisor's network has not: dropped"),
            _ if policy.sysctls == UnsupportedSysctls::Warn => {
                tracing::warn!(sysctl = name, value = text, "gVisor cannot set it: dropped");
            }
            (fate, _) => {
                let so = match fate {
                    Some(Fate::SoUpTo(most)) => format!("gVisor has it up to {most} and "),
                    _ => "gVisor ".into(),
                };
                let why = format!("{name}: {so}cannot set it to {text:?}; omit it, or let the operator pass it over");
                let how = "gvisor.unsupported_sysctls = \"warn\" in runtime.toml";
                return Err(refuse(FIELD, format!("{why} ({how})")));
            }
        }
    }
    *object(spec, FIELD)? = set;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{policy, spec_with};
    use super::super::{Profile, harden};
    use super::*;

    fn of(name: &str, value: Value, sysctls: UnsupportedSysctls) -> Result<Value, String> {
        let policy = Policy { sysctls, ..policy(Profile::Default, BackendKind::Gvisor) };
        let spec = spec_with("/linux/sysctl", json!({name: value}));
        Ok(harden(spec, policy).map_err(|e| e.to_string())?["linux"]["sysctl"].take())
    }

    #[test]
    fn a_sysctl_is_set_or_so_or_of_no_matter_or_else_refused_by_name() {
        let nothing = || Ok(json!({}));
        for (name, value, refuse, warn) in [
            ("fs.nr_open", "5000", Ok(json!({"fs.nr_open": "5000"})), Ok(json!({"fs.nr_open": "5000"}))),
            ("fs/nr_open", "5000", Ok(json!({"fs.nr_open": "5000"})), Ok(json!({"fs.nr_open": "5000"}))),
            ("fs.nr_open", "0", Err("from 1 to"), Err("from 1 to")),
            ("net.ipv6.conf.all.disable_ipv6", "2", Err("from 0 to 1"), Err("from 0 to 1")),
            ("net.ipv4.ip_unprivileged_port_start", "0", nothing(), nothing()),
            ("net.ipv4.ip_unprivileged_port_start", "2000", Err("up to 1024"), nothing()),
            ("net.ipv4.ping_group_range", "0 2147483647", nothing(), nothing()),
            ("net.core.somaxconn", "1024", nothing(), nothing()),
            ("net.ipv4.ip_local_port_range", "20000 20100", Err("net.ipv4.ip_local_port_range"), nothing()),
            ("kernel.core_pattern", "|/x", Err("unsupported_sysctls"), nothing()),
        ] {
            for (sysctls, expected) in [(UnsupportedSysctls::Refuse, refuse), (UnsupportedSysctls::Warn, warn)] {
                match (of(name, json!(value), sysctls), expected) {
                    (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{name} {value} {sysctls:?}"),
                    (Err(got), Err(expected)) => {
                        assert!(got.starts_with("linux.sysctl: ") && got.contains(expected), "{name}: {got}");
                    }
                    (got, expected) => panic!("{name} {value} {sysctls:?}: {got:?}, not {expected:?}"),
                }
            }
        }
        assert!(of("fs.nr_open", json!(5000), UnsupportedSysctls::Warn).unwrap_err().contains("in quotes"));
    }
}
