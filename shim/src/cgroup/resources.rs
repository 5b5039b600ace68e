//! `linux.resources` of the OCI runtime-spec, as far as a control group knows it: parsed once, in range. Not here: writing them.

use serde::Deserialize;
use serde_json::Value;

use crate::error::TaskError;
use crate::harden;

/// The kernel's own, in microseconds, where none is given.
const PERIOD: u64 = 100_000;

/// Limits to set; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory: Memory,
    /// Shares and time.
    pub cpu: Cpu,
    /// Number of host tasks.
    pub pids: Pids,
}

impl Resources {
    /// Of a spec's or an update's JSON; an error names the field. Absent and null are the same.
    pub fn parse(resources: &Value) -> Result<Self, TaskError> {
        harden::resources_in_range(resources)?;
        let mut given = resources.clone();
        without_nulls(&mut given);
        match given.is_null() {
            true => Ok(Self::default()),
            false => serde_json::from_value(given)
                .map_err(|e| TaskError::Invalid(format!("linux.resources: {e}; give those of the OCI spec"))),
        }
    }

    /// The same of an update, as containerd sends it.
    pub fn of_update(json: &[u8]) -> Result<Self, TaskError> {
        let why =
            |e: serde_json::Error| TaskError::Invalid(format!("resources: {e}; give linux.resources of the OCI spec"));
        let resources: Value = serde_json::from_slice(json).map_err(why)?;
        if !resources.is_object() {
            return Err(TaskError::Invalid("resources: give linux.resources of the OCI spec, an object".into()));
        }
        Self::parse(&resources)
    }

    /// Bytes of memory; none where there is no limit.
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
    }

    /// Quota and period in microseconds; none where there is no limit.
    pub fn cpu_limit(&self) -> Option<(u64, u64)> {
        let quota = self.cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)?;
        Some((quota, self.cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD)))
    }

    /// Number of tasks; none where there is no limit.
    pub fn pids_limit(&self) -> Option<u64> {
        self.pids.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
    }

    /// These, with what an update changes.
    pub fn updated(&self, by: &Self) -> Self {
        let (memory, cpu, pids) = (&by.memory, &by.cpu, &by.pids);
        Self {
            memory: Memory {
                limit: memory.limit.or(self.memory.limit),
                swap: memory.swap.or(self.memory.swap),
                reservation: memory.reservation.or(self.memory.reservation),
            },
            cpu: Cpu {
                shares: cpu.shares.or(self.cpu.shares),
                quota: cpu.quota.or(self.cpu.quota),
                period: cpu.period.or(self.cpu.period),
                cpus: cpu.cpus.clone().or_else(|| self.cpu.cpus.clone()),
                mems: cpu.mems.clone().or_else(|| self.cpu.mems.clone()),
            },
            pids: Pids { limit: pids.limit.or(self.pids.limit) },
        }
    }
}

fn without_nulls(value: &mut Value) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
        object.values_mut().for_each(without_nulls);
    }
}

/// `memory`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Bytes; -1 is none.
    pub limit: Option<i64>,
    /// Memory and swap together, bytes; -1 is none.
    pub swap: Option<i64>,
    /// Soft limit, bytes.
    pub reservation: Option<i64>,
}

/// `cpu`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Relative weight, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 is no limit.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// CPUs, as `0-1,3`.
    pub cpus: Option<String>,
    /// Memory nodes, the same way.
    pub mems: Option<String>,
}

/// `pids`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// 0 or less is no limit.
    pub limit: Option<i64>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_read_in_range_or_refused_by_their_field() {
        let most = i64::MAX;
        for (given, expected) in [
            (json!(null), (None, None, None)),
            (json!({"memory": null, "cpu": {"quota": null}, "pids": {}}), (None, None, None)),
            (json!({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}), (None, None, None)),
            (
                json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "period": 0}, "pids": {"limit": 0}}),
                (None, None, None),
            ),
            (json!({"memory": {"limit": most}}), (Some(most as u64), None, None)),
            (
                json!({"memory": {"limit": 5}, "cpu": {"quota": 1000}, "pids": {"limit": 7}}),
                (Some(5), Some((1000, PERIOD)), Some(7)),
            ),
            (json!({"cpu": {"quota": 1000, "period": 5000}}), (None, Some((1000, 5000)), None)),
        ] {
            let got = Resources::parse(&given).unwrap();
            assert_eq!((got.memory_limit(), got.cpu_limit(), got.pids_limit()), expected, "{given}");
        }
        for (given, field) in [
            (r#"{"memory":{"limit":-2}}"#, "linux.resources.memory.limit: -2"),
            (r#"{"memory":{"limit":9223372036854775808}}"#, "linux.resources.memory.limit: 9223372036854775808"),
            (r#"{"memory":{"limit":"1g"}}"#, "linux.resources.memory.limit"),
            (r#"{"cpu":{"quota":-7}}"#, "linux.resources.cpu.quota"),
            (r#"{"cpu":{"period":-1}}"#, "linux.resources.cpu.period"),
            (r#"{"cpu":{"cpus":7}}"#, "linux.resources"),
            (r#"{"pids":{"limit":1e30}}"#, "linux.resources.pids.limit"),
            (r#"{"memory":7}"#, "linux.resources"),
            (r#"[]"#, "resources"),
            (r#"null"#, "resources"),
            ("", "resources"),
        ] {
            let refused = Resources::of_update(given.as_bytes()).unwrap_err();
            assert!(matches!(&refused, TaskError::Invalid(why) if why.starts_with(field)), "{given}: {refused}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let parse = |json| Resources::parse(&json).unwrap();
        let before =
            parse(json!({"memory": {"limit": 5, "swap": 6}, "cpu": {"quota": 7, "cpus": "0"}, "pids": {"limit": 8}}));
        let after = before.updated(&parse(json!({"memory": {"limit": 9}, "cpu": {"period": 10}})));
        let expected = json!({"memory": {"limit": 9, "swap": 6}, "cpu": {"quota": 7, "period": 10, "cpus": "0"}, "pids": {"limit": 8}});
        assert_eq!(after, parse(expected));
    }
}
