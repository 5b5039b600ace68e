//! The system call filter that a spec brings, in the words that gVisor's builds have for it. What they cannot say is refused by
//! name: they would start no sandbox, or one with another filter. Pure. Measured with both builds: docs/hardening.md.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::shape::refuse;
use super::{BackendKind, Policy};
use crate::error::TaskError;

const FIELD: &str = "linux.seccomp";
/// As JSON. containerd's own profile has 10 KiB.
const LONGEST: usize = 256 << 10;
/// Calls, each time that a rule names one; Linux has fewer than 500.
const MOST_NAMES: usize = 4096;
/// Comparisons of arguments. The time that runsc takes to compile them grows with their square (500: 3 s), and its 2024 build
/// has no room for 500.
const MOST_COMPARISONS: usize = 256;
/// Of a call's arguments.
const LAST_ARGUMENT: u64 = 5;
/// What may happen to a call.
pub const ACTIONS: [&str; 6] =
    ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"];
const EPERM: u64 = 1;
const ENOSYS: u64 = 38;

/// Comparisons of an argument.
pub const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_GT", "SCMP_CMP_GE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_MASKED_EQ"];
/// Those of which gVisor has processes, and their 32-bit kin, of which it has none: a filter for them filters nothing.
pub const ARCHITECTURES: [&str; 5] =
    ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
/// Those that have no meaning or no effect in gVisor: a new process has one thread, and no mitigation is the sandbox's to lift.
const FLAGS: [&str; 2] = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];

/// As in config.json. Go writes an empty list as null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Option<String>,
    default_errno_ret: Option<u64>,
    architectures: Option<Vec<String>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u64>,
    args: Option<Vec<Comparison>>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Comparison {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Trap,
    /// EPERM.
    Errno,
    /// ENOSYS, which says that there is no such call: libc then takes another.
    NoSuchCall,
    Trace,
    Allow,
}

impl Action {
    /// `errno` counts for errors alone, as in runc.
    fn parse(field: &str, name: &str, errno: Option<u64>) -> Result<Self, TaskError> {
        match (name, errno) {
            ("SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD", _) => Ok(Self::Kill),
            ("SCMP_ACT_TRAP", _) => Ok(Self::Trap),
            ("SCMP_ACT_ALLOW", _) => Ok(Self::Allow),
            ("SCMP_ACT_ERRNO", None | Some(EPERM)) => Ok(Self::Errno),
            ("SCMP_ACT_ERRNO", Some(ENOSYS)) => Ok(Self::NoSuchCall),
            ("SCMP_ACT_TRACE", None | Some(EPERM)) => Ok(Self::Trace),
            ("SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE", Some(errno)) => {
                let why = format!("errnoRet {errno} with {name}: gVisor has 1 (EPERM) and, for an error, 38 (ENOSYS)");
                Err(refuse(field, why))
            }
            _ => Err(refuse(field, format!("{name:?}: gVisor's filter has {}; use one of these", ACTIONS.join(", ")))),
        }
    }

    /// In runsc's words. Its builds know one error, EPERM. But a call that a tracer is to decide fails with ENOSYS where there
    /// is none, and `NO_TRACER` sees to that.
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "SCMP_ACT_KILL",
            Self::Trap => "SCMP_ACT_TRAP",
            Self::Errno => "SCMP_ACT_ERRNO",
            Self::NoSuchCall | Self::Trace => "SCMP_ACT_TRACE",
            Self::Allow => "SCMP_ACT_ALLOW",
        }
    }
}

/// Nobody asks to be told of what the filter decides: `ptrace` with PTRACE_SETOPTIONS or PTRACE_SEIZE and
/// PTRACE_O_TRACESECCOMP.
fn no_tracer() -> [Value; 2] {
    [0x4200, 0x4206].map(|request: u64| {
        let asks = json!({"index": 0, "value": request, "valueTwo": 0, "op": "SCMP_CMP_EQ"});
        let to_be_told = json!({"index": 3, "value": 0x80, "valueTwo": 0x80, "op": "SCMP_CMP_MASKED_EQ"});
        json!({"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "args": [asks, to_be_told]})
    })
}

/// In gVisor: a filter that it can express, or a refusal. The spec keeps its own words; the backend has [`for_runsc`].
pub fn expressible(spec: &mut Value, policy: Policy) -> Result<(), TaskError> {
    if policy.kind != BackendKind::Gvisor {
        return Ok(());
    }
    let Some(profile) = spec.pointer("/linux/seccomp") else { return Ok(()) };
    if for_runsc(profile)?.is_some() && !policy.build.seccomp {
        return Err(refuse(FIELD, "this build of runsc has no --oci-seccomp and would ignore it; install a newer one"));
    }
    Ok(())
}

/// The same filter in runsc's words; `None` where there is none.
pub fn for_runsc(profile: &Value) -> Result<Option<Value>, TaskError> {
    match profile {
        Value::Null => return Ok(None),
        Value::Object(profile) if profile.is_empty() => return Ok(None),
        Value::Object(_) => {}
        _ => return Err(refuse(FIELD, "must be an object")),
    }
    let length = profile.to_string().len();
    if length > LONGEST {
        return Err(refuse(FIELD, format!("has {length} bytes of JSON; at most {LONGEST}")));
    }
    let profile = Profile::deserialize(profile).map_err(|e| refuse(FIELD, e))?;
    let among = |field: &str, names: &Option<Vec<String>>, known: &[&str]| match names
        .iter()
        .flatten()
        .find(|name| !known.contains(&name.as_str()))
    {
        None => Ok(()),
        Some(name) => {
            Err(refuse(&format!("{FIELD}.{field}"), format!("{name:?}: gVisor has {}; omit it", known.join(", "))))
        }
    };
    among("architectures", &profile.architectures, &ARCHITECTURES)?;
    among("flags", &profile.flags, &FLAGS)?;
    if profile.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(refuse(&format!("{FIELD}.listenerPath"), "gVisor tells nobody of calls; omit it"));
    }
    let default = profile.default_action.unwrap_or_default();
    let default = Action::parse(&format!("{FIELD}.defaultAction"), &default, profile.default_errno_ret)?;
    let rules = rules(profile.syscalls.unwrap_or_default(), default)?;
    let has = |action| default == action || rules.iter().any(|rule| rule.action == action);
    if has(Action::NoSuchCall) && has(Action::Trace) {
        let why = "errnoRet 38 (ENOSYS) beside SCMP_ACT_TRACE: gVisor can have one of them; use EPERM (1)";
        return Err(refuse(FIELD, why));
    }
    let guard = if has(Action::NoSuchCall) { no_tracer().to_vec() } else { Vec::new() };
    let calls: Vec<_> = guard.into_iter().chain(rules.iter().map(Expressed::json)).collect();
    Ok(Some(json!({
        "defaultAction": default.name(),
        "architectures": profile.architectures.unwrap_or_default(),
        "syscalls": calls,
    })))
}

struct Expressed {
    names: Vec<String>,
    action: Action,
    args: Vec<Comparison>,
}

impl Expressed {
    fn json(&self) -> Value {
        json!({"names": self.names, "action": self.action.name(), "args": self.args})
    }
}

/// runsc takes the first rule that matches. In libseccomp, for which profiles are written, what does what happens anyway is
/// no rule, and of a call's other rules the first without comparisons wins, wherever it stands.
fn rules(given: Vec<Rule>, default: Action) -> Result<Vec<Expressed>, TaskError> {
    let (mut rules, mut names, mut comparisons) = (Vec::new(), 0, 0);
    let mut whole: BTreeMap<String, usize> = BTreeMap::new();
    for (n, rule) in given.into_iter().enumerate() {
        let field = |name: &str| format!("{FIELD}.syscalls[{n}].{name}");
        let action = Action::parse(&field("action"), &rule.action, rule.errno_ret)?;
        let args = rule.args.unwrap_or_default();
        for arg in &args {
            if arg.index > LAST_ARGUMENT {
                return Err(refuse(&field("args"), format!("index {}: a call has 6, from 0 to 5", arg.index)));
            }
            if !OPERATORS.contains(&arg.op.as_str()) {
                let why = format!("op {:?}: gVisor has {}", arg.op, OPERATORS.join(", "));
                return Err(refuse(&field("args"), why));
            }
        }
        let called: BTreeSet<String> = rule.names.unwrap_or_default().into_iter().collect();
        names += called.len();
        comparisons += called.len() * args.len();
        if action == default {
            continue;
        }
        if args.is_empty() {
            for name in &called {
                whole.entry(name.clone()).or_insert(rules.len());
            }
        }
        rules.push(Expressed { names: called.into_iter().collect(), action, args });
    }
    for (what, count, most) in
        [("names", names, MOST_NAMES), ("comparisons of arguments", comparisons, MOST_COMPARISONS)]
    {
        if count > most {
            return Err(refuse(&format!("{FIELD}.syscalls"), format!("have {count} {what}; at most {most}")));
        }
    }
    for (n, rule) in rules.iter_mut().enumerate() {
        rule.names.retain(|name| whole.get(name).is_none_or(|winner| *winner == n));
    }
    rules.retain(|rule| !rule.names.is_empty());
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expressed(profile: &Value) -> Value {
        for_runsc(profile).unwrap().unwrap()
    }

    fn rule(names: &[&str], action: &str) -> Value {
        json!({"names": names, "action": format!("SCMP_ACT_{action}"), "args": []})
    }

    fn if_first(mut rule: Value, value: u64) -> Value {
        rule["args"] = json!([{"index": 0, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]);
        rule
    }

    fn profile(default: &str, rules: &[Value]) -> Value {
        json!({"defaultAction": format!("SCMP_ACT_{default}"), "syscalls": rules})
    }

    #[test]
    fn what_gvisor_cannot_express_is_refused_by_name() {
        let with = |key: &str, value: Value| {
            let mut one = profile("ALLOW", &[rule(&["mkdir"], "ERRNO")]);
            one["syscalls"][0][key] = value;
            one
        };
        let beside = |key: &str, value: Value| {
            let mut one = profile("ALLOW", &[]);
            one[key] = value;
            one
        };
        let arg = |index: u64, op: &str| with("args", json!([{"index": index, "value": 1, "op": op}]));
        let many: Vec<_> = (0..=MOST_COMPARISONS as u64).map(|n| if_first(rule(&["ioctl"], "ERRNO"), n)).collect();
        for (profile, field, why) in [
            (with("action", json!("SCMP_ACT_LOG")), "linux.seccomp.syscalls[0].action", "SCMP_ACT_LOG"),
            (
                with("action", json!("SCMP_ACT_KILL_PROCESS")),
                "linux.seccomp.syscalls[0].action",
                "SCMP_ACT_KILL_PROCESS",
            ),
            (with("action", json!("SCMP_ACT_NOTIFY")), "linux.seccomp.syscalls[0].action", "SCMP_ACT_NOTIFY"),
            (with("errnoRet", json!(13)), "linux.seccomp.syscalls[0].action", "errnoRet 13"),
            (with("errnoRet", json!(-1)), "linux.seccomp", "-1"),
            (with("names", json!("mkdir")), "linux.seccomp", "mkdir"),
            (arg(6, "SCMP_CMP_EQ"), "linux.seccomp.syscalls[0].args", "index 6"),
            (arg(0, "SCMP_CMP_FLY"), "linux.seccomp.syscalls[0].args", "SCMP_CMP_FLY"),
            (beside("architectures", json!(["SCMP_ARCH_S390X"])), "linux.seccomp.architectures", "SCMP_ARCH_S390X"),
            (beside("flags", json!(["SECCOMP_FILTER_FLAG_LOG"])), "linux.seccomp.flags", "SECCOMP_FILTER_FLAG_LOG"),
            (beside("listenerPath", json!("/run/x")), "linux.seccomp.listenerPath", "omit it"),
            (beside("defaultAction", json!("ALLOW")), "linux.seccomp.defaultAction", "ALLOW"),
            (json!({"syscalls": []}), "linux.seccomp.defaultAction", "SCMP_ACT_KILL"),
            (json!([]), "linux.seccomp", "must be an object"),
            (profile("ALLOW", &many), "linux.seccomp.syscalls", "257 comparisons"),
            (beside("x", json!("y".repeat(LONGEST))), "linux.seccomp", "at most 262144"),
            (
                profile("ALLOW", &[with("errnoRet", json!(38))["syscalls"][0].clone(), rule(&["ptrace"], "TRACE")]),
                "linux.seccomp",
                "beside SCMP_ACT_TRACE",
            ),
        ] {
            let said = for_runsc(&profile).unwrap_err().to_string();
            assert!(said.starts_with(&format!("{field}: ")) && said.contains(why), "{why}: {said}");
        }
        assert!(for_runsc(&json!({})).unwrap().is_none() && for_runsc(&Value::Null).unwrap().is_none());
    }

    #[test]
    fn what_gvisor_has_other_words_for_is_put_into_them() {
        let kills = profile("ALLOW", &[rule(&["mkdir"], "KILL_THREAD")]);
        assert_eq!(expressed(&kills)["syscalls"], json!([rule(&["mkdir"], "KILL")]));
        let mut no_call = rule(&["clone3"], "ERRNO");
        no_call["errnoRet"] = json!(38);
        let [options, seize] = no_tracer();
        let allows = rule(&["ptrace", "read"], "ALLOW");
        let got = expressed(&profile("ERRNO", &[allows.clone(), no_call]));
        assert_eq!(got["syscalls"], json!([options, seize, allows, rule(&["clone3"], "TRACE")]));
        let got = expressed(&json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": null}));
        assert_eq!((&got["defaultAction"], got["syscalls"].as_array().unwrap().len()), (&json!("SCMP_ACT_TRACE"), 2));
    }

    #[test]
    fn of_a_calls_rules_the_one_counts_that_counts_in_libseccomp() {
        for (default, given, counts) in [
            // Without comparisons before all with some.
            (
                "ALLOW",
                vec![if_first(rule(&["socket"], "TRAP"), 2), rule(&["socket", "bind"], "ERRNO")],
                vec![rule(&["bind", "socket"], "ERRNO")],
            ),
            // The first of those without.
            ("TRAP", vec![rule(&["mkdir"], "ALLOW"), rule(&["mkdir"], "ERRNO")], vec![rule(&["mkdir"], "ALLOW")]),
            // What happens anyway is no rule.
            (
                "ERRNO",
                vec![rule(&["socket"], "ERRNO"), if_first(rule(&["socket"], "ALLOW"), 2)],
                vec![if_first(rule(&["socket"], "ALLOW"), 2)],
            ),
            ("ALLOW", vec![rule(&[], "ERRNO")], vec![]),
        ] {
            assert_eq!(expressed(&profile(default, &given))["syscalls"], json!(counts), "{given:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_profile_holds_it_is_expressed_or_refused_and_stays_as_it_is_when_it_was(
            profile in crate::arbitrary::altered(profile("ERRNO", &[
                rule(&["read", "mkdir"], "ALLOW"), if_first(rule(&["socket"], "ALLOW"), 2), rule(&["bpf"], "KILL"),
            ])),
        ) {
            match for_runsc(&profile) {
                Ok(Some(once)) => proptest::prop_assert!(
                    once.to_string().contains("TRACE") || for_runsc(&once).unwrap() == Some(once)
                ),
                Ok(None) => proptest::prop_assert!(profile.as_object().is_none_or(serde_json::Map::is_empty)),
                Err(why) => proptest::prop_assert!(why.to_string().starts_with("linux.seccomp"), "{}", why),
            }
        }
    }
}
