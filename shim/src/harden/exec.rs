//! The same for a process that is added to a container: it brings what containerd once made of the image, and gets no more than
//! its container. Where gVisor would give it something else than it asks for, that is refused.

use serde_json::{Value, json};

use super::process::UMASK;
use super::shape::refuse;
use super::{BackendKind, PROCESS_RULES, Policy};
use crate::error::TaskError;

/// What a container was hardened by, and its execs are.
#[derive(Clone, Debug)]
pub struct ForExecs {
    policy: Policy,
    /// `process.rlimits`, by type.
    limits: Vec<(Value, Value, Value)>,
    /// It is under a seccomp profile.
    filtered: bool,
}

impl ForExecs {
    /// Of the container with this hardened spec.
    pub fn of(spec: &Value, policy: Policy) -> Self {
        let filtered = spec.pointer("/linux/seccomp").and_then(Value::as_object).is_some_and(|p| !p.is_empty());
        Self { policy, limits: limits(spec.get("process")), filtered }
    }

    /// The hardened `process` of an exec.
    pub fn harden(&self, process: Value) -> Result<Value, TaskError> {
        let mut spec = json!({ "process": process });
        for rule in PROCESS_RULES {
            rule(&mut spec, self.policy)?;
        }
        if self.policy.kind == BackendKind::Gvisor {
            self.as_gvisor_does(&spec)?;
        }
        Ok(spec["process"].take())
    }

    /// gVisor gives an exec its container's limits and a umask of its own.
    fn as_gvisor_does(&self, spec: &Value) -> Result<(), TaskError> {
        let umask = spec.pointer("/process/user/umask").and_then(Value::as_u64);
        if let Some(umask) = umask.filter(|umask| *umask != u64::from(UMASK)) {
            let why = format!("{umask}: gVisor gives an exec {UMASK} (022); omit it, and set it in the program");
            return Err(refuse("process.user.umask", why));
        }
        if let Some(limit) = limits(spec.get("process")).into_iter().find(|limit| !self.limits.contains(limit)) {
            let why = format!("{}: gVisor gives an exec its container's limits, which are others; omit it", limit.0);
            return Err(refuse("process.rlimits", why));
        }
        if self.filtered && !self.policy.build.recent {
            let why = "this build of runsc would run an exec outside its container's profile; install a newer one";
            return Err(refuse("linux.seccomp", why));
        }
        Ok(())
    }
}

fn limits(process: Option<&Value>) -> Vec<(Value, Value, Value)> {
    let all = process.and_then(|process| process.get("rlimits")).and_then(Value::as_array);
    all.into_iter().flatten().map(|l| (l["type"].clone(), l["soft"].clone(), l["hard"].clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{policy, spec_with};
    use super::super::{Build, Profile};
    use super::*;

    #[test]
    fn an_exec_gets_no_more_than_its_container() {
        let asked = json!({"args": ["id"], "capabilities": {"effective": ["CAP_SYS_ADMIN", "CAP_NET_BIND_SERVICE"]}});
        let harden =
            |profile| ForExecs::of(&json!({}), policy(profile, BackendKind::Gvisor)).harden(asked.clone()).unwrap();
        assert_eq!(harden(Profile::Default)["capabilities"], asked["capabilities"]);
        // A limit that strict adds is the container's, which has it too.
        let strict = policy(Profile::Strict, BackendKind::Gvisor);
        let container = super::super::harden(spec_with("/process/args", json!(["sh"])), strict).unwrap();
        let strict = ForExecs::of(&container, strict).harden(asked.clone()).unwrap();
        assert_eq!(strict["capabilities"], json!({"effective": ["CAP_NET_BIND_SERVICE"]}));
        assert_eq!((&strict["noNewPrivileges"], &strict["args"]), (&json!(true), &asked["args"]));
    }

    #[test]
    fn what_gvisor_would_give_an_exec_otherwise_is_refused() {
        let limit = |soft: u64| json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": 88}]);
        let (recent, old) = (Build::default(), Build { recent: false, ..Build::default() });
        let (gvisor, runc) = (BackendKind::Gvisor, BackendKind::HostKernel);
        for (kind, build, container, exec, why) in [
            (gvisor, recent, json!({}), json!({"user": {"umask": 63}}), Some("process.user.umask")),
            (gvisor, recent, json!({}), json!({"user": {"umask": 18}}), None),
            (runc, recent, json!({}), json!({"user": {"umask": 63}}), None),
            (gvisor, recent, json!({"process": {"rlimits": limit(7)}}), json!({"rlimits": limit(7)}), None),
            (
                gvisor,
                recent,
                json!({"process": {"rlimits": limit(7)}}),
                json!({"rlimits": limit(8)}),
                Some("process.rlimits"),
            ),
            (runc, recent, json!({"process": {"rlimits": limit(7)}}), json!({"rlimits": limit(8)}), None),
            (gvisor, old, json!({"linux": {"seccomp": {"defaultAction": "x"}}}), json!({}), Some("linux.seccomp")),
            (gvisor, recent, json!({"linux": {"seccomp": {"defaultAction": "x"}}}), json!({}), None),
            (gvisor, old, json!({"linux": {"seccomp": {}}}), json!({}), None),
        ] {
            let policy = Policy { build, ..policy(Profile::Default, kind) };
            let got = ForExecs::of(&container, policy).harden(exec.clone()).map_err(|e| e.to_string());
            match (why, &got) {
                (None, Ok(_)) => {}
                (Some(why), Err(said)) => assert!(said.starts_with(why), "{said}"),
                _ => panic!("{kind:?} {build:?} {container} {exec}: {got:?}"),
            }
        }
    }
}
